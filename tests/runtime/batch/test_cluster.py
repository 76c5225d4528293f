"""Runs on Dask workers: what they leave is what one process leaves, whatever becomes of the workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra dask")

from hz_runtime.batch import cluster as cluster_module
from hz_runtime.batch.cluster import Cluster
from hz_runtime.batch.cluster_executor import KILLED
from hz_runtime.batch.cluster_work import ScanWork, Task
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.opened import open_bundle
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.worker_processes import own_environment
from hz_runtime.bids.layout import find_units
from hz_runtime.bids.participant import run_participants
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.results.scan_result import NOT_REACHED
from processes import finished
from small_bids import write_study
from small_scans import results, write_scans
from snapshots import snapshot

AGES = KnownAges({f"sub-{n:02}_T1w.nii.gz": 20.0 + n for n in range(1, 13)})
RUN = RunOptions(backend="onnxruntime-cpu", threads=1, ages=AGES)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve heads, and a file that is none."""
    folder = tmp_path_factory.mktemp("in")
    bad = folder / "sub-00_T1w.nii.gz"
    bad.write_bytes(b"\x1f\x8b nothing")
    return [bad, *write_scans(folder, 12)]


@pytest.fixture(scope="module")
def serial(scans: list[Path], tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hz-run leaves, whose linear algebra keeps to one core, as that of workers does."""
    folder = tmp_path_factory.mktemp("serial")
    rows = [f"{name}\t{age}" for name, age in AGES.by_file.items()]
    (folder / "ages.tsv").write_text("\n".join(["file\tage", *rows]) + "\n")
    code, _, told = finished(
        "run", *scans, "--model", tiny_bundle, "--backend", "onnxruntime-cpu", "--threads", 1,
        "--participants", folder / "ages.tsv", "--out", folder / "out", "--no-build",
    )  # fmt: skip
    assert code == 3, told
    return folder / "out"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two processes of one thread each."""
    # Fewer deaths of workers to wait for, which take seconds each.
    patch = pytest.MonkeyPatch()
    patch.setitem(cluster_module._HERE, "distributed.scheduler.allowed-failures", 1)
    try:
        with Cluster.opened("local:2") as workers:
            yield workers
    finally:
        patch.undo()


def pids(cluster: Cluster) -> list[int]:
    return list(cluster._client.run(os.getpid).values())


def without_times(out: Path) -> dict[str, Any]:
    run = json.loads((out / "run.json").read_text())
    for key in ("started", "seconds", "timings"):
        del run[key]
    for scan in run["scans"]:
        del scan["seconds"]
    return run  # type: ignore[no-any-return]


def origin() -> tuple[str, int, str, str, str]:
    """Of a worker: its parent's command and threads, where it has hz from, and its environment."""
    parent = Path(f"/proc/{os.getppid()}")
    one_core = "".join(os.environ[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL", "OPENBLAS"))
    threads = len(list((parent / "task").iterdir()))
    found = os.environ.get("PYTHONPATH", "")
    return (parent / "cmdline").read_text(), threads, str(cluster_module.__file__), one_core, found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every worker imports all for itself")
def test_workers_are_forked_from_a_process_of_one_thread_that_has_this_hz(cluster: Cluster) -> None:
    """A fork would lose other threads; and what was imported there is not imported again from elsewhere."""
    for command, threads, where, one_core, found in cluster._client.run(origin).values():
        assert "forkserver" in command and "hz_runtime.batch.cluster_work" in command and threads == 1
        assert where == cluster_module.__file__
        assert one_core == "111" and found == os.environ.get("PYTHONPATH", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers end with Ctrl-C")
def test_workers_outlive_ctrl_c(cluster: Cluster) -> None:
    """A terminal sends it to them, too: what they have in flight is to be finished."""
    before = pids(cluster)
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert pids(cluster) == before and cluster.threads == 2


def test_workers_have_the_variables_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that they are forked from is of the first cluster: keys to trust may be others since."""
    monkeypatch.setenv("HZ_TRUST", "others")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    variables = own_environment()
    assert variables["HZ_TRUST"] == "others" and variables["PYTHONPATH"] == ""


def test_workers_start_while_this_process_goes_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    @contextmanager
    def local(number: int) -> Iterator[str]:
        assert number == 1 and goes_on.wait(60)
        yield cluster._client.scheduler.address

    monkeypatch.setattr(cluster_module, "_local", local)
    with Cluster.opened("local:1") as another:
        goes_on.set()
        assert another.threads == 2


def as_many(items: list[int]) -> list[int]:
    return [len(items)] * len(items)


def test_chunks_grow_smaller_towards_the_end(cluster: Cluster) -> None:
    """No worker goes on for long when there is nothing left for the others."""
    chunks = dict(cluster.each(range(40), as_many, 40, 8, threading.Event()))
    sizes = [size for _, size in sorted(chunks.items())]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 8 and sizes[-4:] == [1] * 4


def test_workers_leave_what_one_process_leaves(
    cluster: Cluster, scans: list[Path], bundle: Bundle, serial: Path, tmp_path: Path
) -> None:
    heard: list[Any] = []
    report = run_batch(scans, bundle, tmp_path / "out", RUN, heard.append, cluster=cluster)
    assert report.exit_code == 3 and cluster.threads == 2
    assert results(tmp_path / "out") == results(serial)
    assert without_times(tmp_path / "out") == without_times(serial)
    assert [event.done for event in heard if event.kind == "scan"] == list(range(1, 14))
    log = (tmp_path / "out/hz-run.log").read_text()
    assert "sub-00_T1w.nii.gz: failed" in log and "sub-12_T1w.nii.gz: ok" in log
    before = snapshot(tmp_path / "out")
    again = run_batch(scans, bundle, tmp_path / "out", RUN, cluster=cluster)
    assert again.unchanged and snapshot(tmp_path / "out") == before


def test_a_worker_that_is_killed_loses_nothing(
    cluster: Cluster,
    scans: list[Path],
    bundle: Bundle,
    serial: Path,
    tmp_path: Path,
) -> None:
    """What one had done before it was killed is this run's all the same."""
    out, over = tmp_path / "out", threading.Event()

    def kill() -> None:
        while len(list(out.glob("*.json"))) < 3 and not over.wait(0.01):
            pass
        os.kill(pids(cluster)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        report = run_batch(scans, bundle, out, RUN, cluster=cluster)
    finally:
        over.set()
        killer.join(60)
    assert report.counts == {**report.counts, "failed": 1, "skipped": 0}
    assert results(out) == results(serial) and without_times(out) == without_times(serial)


class Poison(ScanWork):
    """As `ScanWork`, but that one scan ends its process."""

    def __call__(self, tasks: list[Task]) -> Any:
        if any(task.scan.name == "sub-03" for task in tasks):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(tasks)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_slow_to_come_back_is_waited_for() -> None:
    """Dask's own 15 seconds are over before a busy machine has started one, and none takes its place then."""
    import dask
    from dask.utils import parse_timedelta

    waits = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
    assert waits >= cluster_module._REVIVAL > 60


def test_a_scan_that_kills_every_worker_is_one_failed_row(
    cluster: Cluster,
    scans: list[Path],
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hz_runtime.batch.cluster_executor.ScanWork", Poison)
    report = run_batch(scans[1:7], bundle, tmp_path / "out", RUN, cluster=cluster)
    failed = [scan for scan in report.scans if scan.status == "failed"]
    assert [(scan.name, scan.reason, scan.age) for scan in failed] == [("sub-03", KILLED, 23.0)]
    assert report.exit_code == 3 and report.counts["failed"] == 1 and report.counts["skipped"] == 0
    assert "sub-03_T1w.nii.gz: failed: its worker" in (tmp_path / "out/hz-run.log").read_text()


def test_a_run_that_is_stopped_goes_on_later(
    cluster: Cluster, scans: list[Path], bundle: Bundle, serial: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    out = tmp_path / "out"
    report = run_batch(
        scans, bundle, out, RUN, lambda event: stop.set() if event.kind == "scan" else None, stop, cluster
    )
    left = [scan for scan in report.scans if scan.reason == NOT_REACHED]
    assert report.exit_code == 130 and left and report.counts["skipped"] == len(left)
    assert run_batch(scans, bundle, out, RUN, cluster=cluster).exit_code == 3
    assert results(out) == results(serial)


def test_participants_on_workers(cluster: Cluster, bundle: Bundle, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    units, _ = find_units(study)
    lean = RunOptions(backend="onnxruntime-cpu", threads=1, report=False)
    levels = [
        run_participants(units, bundle, study, tmp_path / name, lean, cluster=workers)
        for name, workers in (("one", None), ("many", cluster))
    ]
    assert [[scan.status for scan in level.scans] for level in levels] == [["ok"] * 4] * 2
    made = [
        sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("sub-*.nii.gz"))
        for name in ("one", "many")
    ]
    assert made[0] == made[1] and len(made[0]) == 8  # in .hz, too


def test_a_process_opens_a_bundle_once_and_never_another(
    bundle: Bundle, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle, RUN)
    calls: list[object] = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return open_bundle(*given)

    monkeypatch.setattr("hz_runtime.batch.cluster_work.open_bundle", counted)
    work = ScanWork.of(opened)
    task = Task(0, InputScan(scans[1], scans[1].name, "sub-01"), tmp_path)
    for _ in range(2):
        assert [done.result.status in ("ok", "skipped") for done in work([task])] == [True]
    assert len(calls) == 1
    with pytest.raises(HzError, match="another bundle than the one"):
        ScanWork(work.path, "sha256:0", work.options)([task])


def test_what_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("local:0", "somewhere", "slurm:x"):
        with pytest.raises(UsageError, match="neither the address of a scheduler"), Cluster.opened(text):
            pass
    monkeypatch.setattr("hz_runtime.batch.cluster._CONNECT", 1)
    with pytest.raises(HzError, match="no Dask scheduler answers at"), Cluster.opened("tcp://127.0.0.1:9"):
        pass
