"""A run that is divided among jobs: who takes what, what is noted, its status, and what is gathered."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.gather import gather
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.shard import ARRAY, Shard
from hz_runtime.batch.shard_folder import Plan, ShardFolder
from hz_runtime.batch.shard_run import run_shard
from hz_runtime.batch.stages import Stages
from hz_runtime.batch.status import folder_status
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shared_file
from hz_runtime.results.run_report import RunReport
from small_scans import results, write_scans
from snapshots import snapshot

AGES = KnownAges({f"sub-0{n}_T1w.nii.gz": 20.0 + 5 * n for n in range(1, 8)})
RUN = RunOptions(backend="onnxruntime-cpu", threads=1, ages=AGES)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven heads, and a file that is none."""
    folder = tmp_path_factory.mktemp("in")
    bad = folder / "sub-00_T1w.nii.gz"
    bad.write_bytes(b"\x1f\x8b nothing")
    return [*write_scans(folder, 7), bad]


@pytest.fixture(scope="module")
def serial(scans: list[Path], bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial") / "out"
    assert run_batch(scans, bundle, out, RUN).exit_code == 3
    return out


Run = Callable[..., RunReport]


@pytest.fixture
def shard(scans: list[Path], bundle: Bundle, tmp_path: Path) -> Run:
    """Run a shard into out/."""

    def run(text: str, inputs: list[Path] | None = None, **more: Any) -> RunReport:
        part = Shard.of(text, {})
        return run_shard(inputs or scans, bundle, tmp_path / "out", part, RUN, command=["in"], **more)

    return run


def made(out: Path) -> dict[str, bytes]:
    """What must be as a serial run has it."""
    return {name: data for name, data in results(out).items() if not name.startswith("shards/")}


def without_times(out: Path) -> dict[str, Any]:
    run = json.loads((out / "run.json").read_text())
    for key in ("started", "seconds", "timings"):
        del run[key]
    for scan in run["scans"]:
        del scan["seconds"]
    return run  # type: ignore[no-any-return]


def test_every_scan_has_one_shard_whatever_the_order() -> None:
    scans = [InputScan(Path(f"{n}"), f"{n}", f"sub-{n:03}") for n in range(40)]
    parts = [Shard(index, 12).takes(scans) for index in range(1, 13)]
    assert sorted(scan.name for part in parts for scan in part) == [scan.name for scan in scans]
    assert {len(part) for part in parts} == {3, 4}
    for index, part in enumerate(parts, 1):
        again = Shard(index, 12).takes(scans[::-1])
        assert [scan.name for scan in again] == [scan.name for scan in part][::-1]


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, "1/4"),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, "4/4"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "30",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "10",
                "SLURM_ARRAY_TASK_COUNT": "5",
            },
            "3/5",
        ),
        ({"SGE_TASK_ID": "7", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}, "4/5"),
        ({"SGE_TASK_ID": "undefined", "SGE_TASK_LAST": "undefined"}, "no element of a job array"),
        ({}, "no element of a job array"),
        # sbatch --array=3,9
        (
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"},
            "has gaps",
        ),
    ],
)
def test_an_element_of_a_job_array(variables: dict[str, str], shard: str) -> None:
    if "/" in shard:
        assert str(Shard.of(ARRAY, variables)) == shard
    else:
        with pytest.raises(UsageError, match=shard):
            Shard.of(ARRAY, variables)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        Shard.of(text, {})


def test_shards_give_what_a_serial_run_gives(
    shard: Run, scans: list[Path], serial: Path, tmp_path: Path
) -> None:
    """A job that finds the files in another order has the same part, and the table the first job's order."""
    out = tmp_path / "out"
    jobs = ((2, scans), (3, scans[::-1]), (1, scans))
    assert [len(shard(f"{n}/3", inputs).scans) for n, inputs in jobs] == [3, 2, 3]
    assert not (out / "run.json").exists()
    report = gather(out)
    assert made(out) == made(serial) and without_times(out) == without_times(serial)
    assert report.exit_code == 3 and report.counts["failed"] == 1 and not report.interrupted
    assert "sub-00_T1w.nii.gz: failed" in (out / "hz-run.log").read_text()
    before = snapshot(out)
    assert gather(out).unchanged and snapshot(out) == before


def test_a_shard_again_notes_only_what_is_new(shard: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shard("2/3").exit_code == 0
    before = snapshot(out)
    assert [scan.status for scan in shard("2/3").scans] == ["skipped"] * 3
    assert {name for name in before if snapshot(out)[name] != before[name]} <= {"shards/2-of-3.log"}
    (out / "sub-04_desc-harmonized_T1w.json").unlink()
    (lost,) = (scan for scan in folder_status(out).scans if scan.state == "half done")
    assert (lost.name, lost.reason) == ("sub-04", "sub-04_desc-harmonized_T1w.json is gone")
    assert [scan.status for scan in shard("2/3").scans] == ["skipped", "ok", "skipped"]
    assert folder_status(out).counts()["half done"] == 0


def test_status_of_what_is_done_failed_and_never_reached(shard: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="holds no results"):
        folder_status(out)
    shard("1/3")
    status = folder_status(out)
    counts = status.counts()
    assert counts["ok"] + counts["flagged"] == 2 and counts["failed"] == 1 and counts["not reached"] == 5
    assert [(one.shard, one.state, one.scans) for one in status.shards] == [
        ("1/3", "ended", 3),
        ("2/3", "never started", 3),
        ("3/3", "never started", 2),
    ]
    assert {one.name: one.shard for one in status.missing} == {
        "sub-00": "1/3", "sub-01": "2/3", "sub-02": "3/3", "sub-04": "2/3", "sub-05": "3/3", "sub-07": "2/3",
    }  # fmt: skip
    (failed,) = (one for one in status.scans if one.state == "failed")
    assert "gzip" in failed.reason and failed.shard == "1/3"
    partial = gather(out)
    assert partial.exit_code == 130 and partial.counts["skipped"] == 5
    shown = json.loads(json.dumps(status.to_dict()))
    assert shown["total"] == 8 and len(shown["scans"]) == 6


def test_a_job_that_is_killed_and_one_that_runs(
    shard: Run, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed one notes no end: what was in flight is half done, and run again with what is missing."""
    out, seen = tmp_path / "out", []

    def killed(self: Stages, *_: Any) -> Any:
        seen.append(folder_status(self.out))
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "draw", killed)
        with pytest.raises(Exception, match="broke off"):
            shard("2/3")
    (running,) = (one for one in seen[0].shards if one.state == "running")
    assert running.shard == "2/3" and seen[0].counts()["running"] >= 1
    status = folder_status(out)
    assert [one.state for one in status.shards] == ["never started", "killed", "never started"]
    half = [one for one in status.scans if one.state == "half done"]
    assert half and all("in flight when shard 2/3 was killed" in one.reason for one in half)
    with open(out / "shards/2-of-3.jsonl", "ab") as journal:
        journal.write(b'{"scan": {"name": "sub-0')  # in the middle of a line
    assert folder_status(out) == status
    shard("1/3")
    whole = shard("1/1", missing=True)
    assert len(whole.scans) == 6 and whole.counts["failed"] == 1  # the two that shard 1 did are left alone
    assert [one.name for one in folder_status(out).missing] == ["sub-00"]
    assert gather(out).counts["skipped"] == 0
    assert made(out) == made(serial) and without_times(out) == without_times(serial)
    assert len(folder_status(out).shards) == 3  # the division stays that of the jobs


def test_who_must_not_meet_is_refused(shard: Run, scans: list[Path], bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refusals: list[str] = []

    def refused(run: Callable[[], object]) -> None:
        with pytest.raises(UsageError) as caught:
            run()
        refusals.append(caught.value.message)

    def at_work(event: Any) -> None:
        if event.kind == "scan" and not refusals:
            refused(lambda: shard("1/2"))
            refused(lambda: shard("2/3"))
            refused(lambda: shard("2/2", scans[:4]))
            refused(lambda: shard("1/1", missing=True))
            refused(lambda: run_batch(scans, bundle, out, RUN))
            refused(lambda: gather(out))
            assert shard("2/2").exit_code == 0

    shard("1/2", on_event=at_work)
    assert "another job is at work on shard 1/2" in refusals[0]
    assert "another number of shards" in refusals[1] and "other scans" in refusals[2]
    assert "another number of shards" in refusals[3]
    assert all("another run of hz is writing" in text for text in refusals[4:]) and len(refusals) == 6
    with locked(out), pytest.raises(UsageError, match="another run of hz is writing"):
        shard("1/2")


def test_jobs_that_start_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finds the other's journal held, and no plan yet: it waits for the plan, and agrees."""
    place, scans = ShardFolder(tmp_path), [InputScan(Path(name), name, name) for name in ("a", "b")]
    plan, refused = Plan.of(scans, 2, ["in"]), list[UsageError]()

    def start() -> None:
        try:
            with place.hold(Shard(2, 2), plan):
                pass
        except UsageError as error:
            refused.append(error)

    second = threading.Thread(target=start)

    def slow(path: Path, data: bytes) -> bool:
        if second.ident is None:
            second.start()
            second.join(0.2)
        return shared_file(path, data)

    monkeypatch.setattr("hz_runtime.batch.shard_folder.shared_file", slow)
    with place.hold(Shard(1, 2), plan):
        second.join(60)
    assert not refused and not second.is_alive() and place.plan() == plan


def test_a_job_that_starts_while_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`running` holds a journal for a moment, which is nobody at work."""
    place, plan, one = ShardFolder(tmp_path), Plan.of([], 2, ["in"]), Shard(1, 2)
    with place.hold(one, plan) as (path, _):
        assert place.running(one)
    with open(path, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("hz_runtime.batch.shard_folder.time.sleep", lambda _: looking.close())
        with place.hold(one, plan):
            assert looking.closed


def test_other_options_are_not_gathered(
    shard: Run, scans: list[Path], bundle: Bundle, tmp_path: Path
) -> None:
    shard("1/2")
    other = RunOptions(**{**vars(RUN), "dtype": "float32"})
    run_shard(scans, bundle, tmp_path / "out", Shard(2, 2), other)
    with pytest.raises(UsageError, match=r"[12]/2 and [12]/2 were run with different bundles or options"):
        gather(tmp_path / "out")
    with pytest.raises(UsageError, match="was not divided"):
        gather(tmp_path / "elsewhere")


def test_the_rest_of_an_undivided_run(
    scans: list[Path], bundle: Bundle, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, read = threading.Event(), Stages.read

    def waiting(stages: Stages, ticket: Any) -> Any:
        """However busy the machine is, the run is stopped before its last scans have their turn."""
        if ticket.index == 4:
            assert stop.wait(60)
        return read(stages, ticket)

    monkeypatch.setattr(Stages, "read", waiting)
    done = run_batch(
        scans, bundle, tmp_path, RUN, lambda event: stop.set() if event.kind == "scan" else None, stop
    )
    left = done.counts["skipped"]
    assert left and folder_status(tmp_path).counts()["not reached"] == left
    run_shard(scans, bundle, tmp_path, Shard(1, 1), RUN, missing=True)
    gather(tmp_path)
    assert made(tmp_path) == made(serial) and without_times(tmp_path) == without_times(serial)


def test_more_shards_than_scans_and_no_dicom(shard: Run, tmp_path: Path) -> None:
    assert shard("9/9").scans == () and shard("9/9").exit_code == 0
    exam = tmp_path / "exam.zip"
    exam.write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="an archive, and no scan"):
        shard("1/2", [exam])
