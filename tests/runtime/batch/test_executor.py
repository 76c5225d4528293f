"""A run ends, whatever its threads meet: a share that goes stale, a step that takes its thread with it."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import tiny
from hz_runtime.batch import run as run_module
from hz_runtime.batch import stages as stages_module
from hz_runtime.batch.budget import Budget
from hz_runtime.batch.failures import blames_the_scan
from hz_runtime.batch.inputs import Inputs, InputScan
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.stages import Stages
from hz_runtime.batch.stop import Stop
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import GridMismatch, HzError, NoBrain, UnreadableScan
from hz_runtime.results.scan_result import NOT_REACHED
from small_scans import results, write_scan, write_scans

T = TypeVar("T")
LEAN = RunOptions(report=False, threads=2, max_voxels=1)
PATIENCE = 120  # seconds that a run of a few small scans may take; one that waits for ever takes more


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> dict[str, bytes]:
    """What a run of five scans leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_batch(write_scans(folder / "in", 5), bundle, folder / "out", LEAN).exit_code == 0
    return results(folder / "out")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; fails where it does neither in time."""
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append((call(), None))
        except BaseException as error:
            ends.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ends, f"still waiting after {seconds} s"
    value, error = ends[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


class StalePath(type(Path())):  # type: ignore[misc]
    """A file on a share; from `gone` on the system knows nothing of it any more."""

    gone = False

    def stat(self, **how: Any) -> os.stat_result:
        if StalePath.gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return super().stat(**how)  # type: ignore[no-any-return]

    def is_file(self, **_: Any) -> bool:  # Python 3.14's does not come by `stat`
        return stat.S_ISREG(self.stat().st_mode)


def test_a_share_that_goes_stale_ends_in_a_row_and_takes_nothing_away(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "in/sub-01_T1w.nii.gz", 1)
    other = write_scan(tmp_path / "in/sub-02_T1w.nii.gz", 2)
    out, options = tmp_path / "out", RunOptions(report=False)
    run_batch([path], bundle, out, options)
    before = {name: data for name, data in results(out).items() if name.startswith("sub-01")}
    real = stages_module.read_volume

    def goes_stale(given: Path, *limits: Any) -> Any:
        if given.name != path.name:
            return real(given, *limits)
        StalePath.gone = True
        raise UnreadableScan(f"{path.name}: ends early.", "Copy it again.")

    monkeypatch.setattr(stages_module, "read_volume", goes_stale)
    monkeypatch.setattr(StalePath, "gone", False)
    scans = (InputScan(StalePath(path), path.name, "sub-01"), InputScan(other, other.name, "sub-02"))
    monkeypatch.setattr(run_module, "collect", lambda *_: Inputs(scans))
    report = within(PATIENCE, lambda: run_batch([], bundle, out, RunOptions(report=False, overwrite=True)))
    assert [scan.status for scan in report.scans] == ["failed", "ok"]
    assert "ends early" in report.scans[0].reason
    assert {name: data for name, data in results(out).items() if name.startswith("sub-01")} == before


def test_clearing_up_that_fails_leaves_the_row(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"no clearing up in {tmp_path / 'out'}")

    monkeypatch.setattr(Stages, "withdraw", broken)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    report = within(PATIENCE, lambda: run_batch([tmp_path / "in"], bundle, tmp_path / "out"))
    assert [scan.status for scan in report.scans] == ["failed"]
    log = (tmp_path / "out/hz-run.log").read_text()
    assert "may be left: internal: RuntimeError" in log and str(tmp_path) not in log


@pytest.mark.parametrize("step", ["read", "prepare", "infer", "draw", "write", "withdraw"])
def test_a_thread_that_dies_ends_the_run_with_an_error(
    tmp_path: Path,
    bundle: Bundle,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Readers wait for memory and others for full queues then: they must end, too."""
    scans = write_scans(tmp_path / "in", 5)
    broken = tmp_path / "in/sub-00_T1w.nii.gz"
    broken.write_bytes(b"\x1f\x8bnonsense")  # what `withdraw` is called for
    calls, real = iter(range(100)), getattr(Stages, step)

    def dying(self: Stages, *given: Any) -> Any:
        if next(calls) == (0 if step == "withdraw" else 2):
            raise SystemExit(f"no more, {tmp_path / 'out'}")
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Stages, step, dying)
        with pytest.raises(HzError, match=r"broke off with \d scans? left: thread hz-\w+-\d died") as caught:
            within(PATIENCE, lambda: run_batch([broken, *scans], bundle, tmp_path / "out", LEAN))
    assert "SystemExit: no more" in caught.value.message and str(tmp_path) not in caught.value.message
    assert "goes on from here" in caught.value.remedy and caught.value.exit_code == 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hz-")]
    log = (tmp_path / "out/hz-run.log").read_text()
    assert "Traceback" in log and str(tmp_path) not in log
    again = within(PATIENCE, lambda: run_batch(scans, bundle, tmp_path / "out", LEAN))
    assert again.exit_code == 0
    assert results(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("step", ["prepare", "draw"])
def test_a_run_whose_time_is_up_waits_for_nothing(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As after SIGTERM: what hangs is left out, results and tables are there, and a run later goes on."""
    scans, stop, hangs = write_scans(tmp_path / "in", 5), Stop(), threading.Event()
    calls, real = iter(range(100)), getattr(Stages, step)

    def hanging(self: Stages, *given: Any) -> Any:
        if next(calls) == 2:
            stop.within(0.3)
            hangs.wait(PATIENCE)
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Stages, step, hanging)
        try:
            report = within(PATIENCE / 2, lambda: run_batch(scans, bundle, tmp_path / "out", LEAN, stop=stop))
        finally:
            hangs.set()
    statuses = [scan.status for scan in report.scans]
    assert report.exit_code == 130 and statuses[:2] == ["ok", "ok"] and statuses[2] == "skipped"
    assert {scan.reason for scan in report.scans if scan.status == "skipped"} == {NOT_REACHED}
    assert len((tmp_path / "out/predictions.tsv").read_text().splitlines()) == 6
    until_ended(PATIENCE)
    assert run_batch(scans, bundle, tmp_path / "out", LEAN).exit_code == 0


def until_ended(seconds: float) -> None:
    """Wait for the threads of a run that was not waited for."""
    for thread in threading.enumerate():
        if thread.name.startswith("hz-"):
            thread.join(seconds)


def test_a_bound_that_is_lifted_lets_everyone_pass() -> None:
    budget = Budget(10)
    budget.take(10)
    waiting = threading.Thread(target=budget.take, args=(5,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    budget.lift()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_bound_on_the_number_of_scans_holds_whatever_their_size() -> None:
    budget = Budget(10, scans=2)
    budget.take(1)
    budget.take(1)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (budget.take(1), passed.set()), daemon=True)
    waiting.start()
    assert not passed.wait(0.1)
    budget.give(1)
    assert passed.wait(PATIENCE)


@pytest.mark.parametrize(
    ("error", "blames"),
    [
        (NoBrain("empty"), True),
        (GridMismatch("a batch of (2, 3)"), False),  # of hz or the bundle, not of the scan
        (OSError(errno.ESTALE, "stale"), False),
        (MemoryError(), False),
    ],
)
def test_what_says_something_of_the_scan(error: Exception, blames: bool) -> None:
    assert blames_the_scan(error) is blames
