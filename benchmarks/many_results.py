"""Seconds and memory of `hz-run status` and `gather` and `hz-bids ... group` over simulated results, as JSON.

    python benchmarks/many_results.py [--sizes 2500,5000,10000]

The results are journals of ten shards and empty files of the right names, or records of as many participants:
nothing reads images there. Each is measured in a process of its own, with its pages.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hz_runtime.batch.gather import gather
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.shard import Shard
from hz_runtime.batch.shard_folder import Plan, ShardFolder
from hz_runtime.batch.status import folder_status
from hz_runtime.bids.group import run_group
from hz_runtime.results.prediction import Prediction
from hz_runtime.results.scan_result import ScanResult
from machine import describe_machine

SHARDS = 10


OPTIONS = {
    "space": "native",
    "dtype": "int16",
    "to": "A",
    "precision": None,
    "prepare": None,
    "report": True,
}
RUN = {
    "schema": "1.0",
    "started": "2026-01-01T00:00:00+00:00",
    "bundle": {"name": "made up", "id": "sha256:0"},
    "backend": {},
    "options": OPTIONS,
    "age": {"shown": "age_raw", "training_range": [18.0, 90.0]},
}


def scans_of(size: int) -> list[InputScan]:
    return [InputScan(Path(f"sub-{n:06}"), f"sub-{n:06}_T1w.nii.gz", f"sub-{n:06}") for n in range(size)]


def simulate_shards(out: Path, size: int) -> None:
    """An output folder as ten jobs leave it, every hundredth scan failed."""
    place, scans = ShardFolder(out), scans_of(size)
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "plan.json").write_bytes(Plan.of(scans, SHARDS, ["in"]).to_bytes())
    for index in range(1, SHARDS + 1):
        shard = Shard(index, SHARDS)
        lines: list[dict[str, Any]] = [{"run": RUN}]
        for scan in shard.takes(scans):
            lines.append({"begun": scan.name})
            lines.append({"scan": entry(scan)})
            if int(scan.name[4:]) % 100:
                for end in (".nii.gz", ".json"):
                    (out / f"{scan.name}_desc-harmonized_T1w{end}").touch()
        lines.append({"end": {"seconds": 100.0, "interrupted": False}})
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (place.path / f"{shard.name}.jsonl").write_text(text)


def simulate_participants(out: Path, size: int) -> None:
    """The records of a derivative data set of as many participants, one scan each."""
    (out / "logs").mkdir(parents=True)
    for scan in scans_of(size):
        record = {**RUN, "seconds": 1.0, "interrupted": False, "scans": [entry(scan)]}
        (out / "logs" / f"{scan.name}_run.json").write_text(json.dumps(record))


def entry(scan: InputScan) -> dict[str, Any]:
    """A scan as run.json has it."""
    number = int(scan.name[4:])
    return {**result(scan, number).to_dict(), "site": f"site {number % 7}"}


def result(scan: InputScan, number: int) -> ScanResult:
    age = 20.0 + number % 60
    if number % 100 == 0:
        return ScanResult(scan.label, scan.name, "failed", "made to fail", age=age)
    names = tuple(f"{scan.name}_desc-harmonized_T1w{end}" for end in (".nii.gz", ".json"))
    found = Prediction(age + 3.0 * ((number * 0.618) % 1) - 1.5)
    return ScanResult(scan.label, scan.name, "ok", "", names, prediction=found, age=age, sha256="0" * 64)


def of_shards(out: Path, size: int) -> dict[str, float]:
    clock = time.process_time()
    status = folder_status(out)
    status_s = time.process_time() - clock
    assert status.counts()["failed"] == size // 100
    clock = time.process_time()
    report = gather(out)
    gather_s = time.process_time() - clock
    assert len(report.scans) == size and not report.problems, report.problems
    return {"status_cpu_s": round(status_s, 2), "gather_cpu_s": round(gather_s, 2)}


def of_participants(out: Path, size: int) -> dict[str, float]:
    clock = time.process_time()
    level = run_group(out)
    group_s = time.process_time() - clock
    assert len(level.scans) == size and not level.problems, level.problems
    return {"group_cpu_s": round(group_s, 2)}


MEASURED = {"shards": (simulate_shards, of_shards), "participants": (simulate_participants, of_participants)}


def measure(what: str, size: int) -> dict[str, float]:
    """In this process, which has done nothing else."""
    simulate, timed = MEASURED[what]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        simulate(out, size)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row = timed(out, size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "scans": size,
            **row,
            "peak_mb": peak // 1024,
            "peak_before_mb": base // 1024,
            "report_mb": round((out / "report.html").stat().st_size / 1e6, 1),
            "group_mb": round((out / "group.html").stat().st_size / 1e6, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="2500,5000,10000")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, size = given.one.split(":")
        print(json.dumps(measure(what, int(size))))
        return
    machine = describe_machine()
    found: dict[str, list[dict[str, float]]] = {}
    for what in MEASURED:
        for size in given.sizes.split(","):
            done = subprocess.run(
                [sys.executable, __file__, "--one", f"{what}:{size}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found.setdefault(what, []).append(json.loads(done.stdout))
    print(json.dumps({**found, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
