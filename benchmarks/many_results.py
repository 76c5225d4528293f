"""Seconds and memory of `hz-run status` and `gather` over simulated results of three sizes; prints JSON.

    python benchmarks/many_results.py [--sizes 2500,5000,10000]

The results are journals of ten shards and empty files of the right names: nothing reads images there.
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

from hz_runtime.batch.gather import gather
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.shard import Shard
from hz_runtime.batch.shard_folder import Plan, ShardFolder
from hz_runtime.batch.status import folder_status
from hz_runtime.results.prediction import Prediction
from hz_runtime.results.scan_result import ScanResult
from machine import describe_machine

SHARDS = 10


def simulate(out: Path, size: int) -> None:
    """An output folder as ten jobs leave it, every hundredth scan failed."""
    place = ShardFolder(out)
    (out / "shards").mkdir(parents=True)
    scans = [InputScan(Path(f"sub-{n:06}"), f"sub-{n:06}_T1w.nii.gz", f"sub-{n:06}") for n in range(size)]
    (out / "shards" / "plan.json").write_bytes(Plan.of(scans, SHARDS, ["in"]).to_bytes())
    options = {
        "space": "native",
        "dtype": "int16",
        "to": "A",
        "precision": None,
        "prepare": None,
        "report": True,
    }
    run = {
        "schema": "1.0",
        "started": "2026-01-01T00:00:00+00:00",
        "bundle": {"name": "made up", "id": "sha256:0"},
        "backend": {},
        "options": options,
        "age": {"shown": "age_raw", "training_range": [18.0, 90.0]},
    }
    for index in range(1, SHARDS + 1):
        shard = Shard(index, SHARDS)
        lines = [{"run": run}]
        for scan in shard.takes(scans):
            number = int(scan.name[4:])
            lines.append({"begun": scan.name})
            lines.append({"scan": {**result(scan, number).to_dict(), "site": f"site {number % 7}"}})
            if number % 100:
                for end in (".nii.gz", ".json"):
                    (out / f"{scan.name}_desc-harmonized_T1w{end}").touch()
        lines.append({"end": {"seconds": 100.0, "interrupted": False}})
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (place.path / f"{shard.name}.jsonl").write_text(text)


def result(scan: InputScan, number: int) -> ScanResult:
    age = 20.0 + number % 60
    if number % 100 == 0:
        return ScanResult(scan.label, scan.name, "failed", "made to fail", age=age)
    names = tuple(f"{scan.name}_desc-harmonized_T1w{end}" for end in (".nii.gz", ".json"))
    found = Prediction(age + 3.0 * ((number * 0.618) % 1) - 1.5)
    return ScanResult(scan.label, scan.name, "ok", "", names, prediction=found, age=age, sha256="0" * 64)


def measure(size: int) -> dict[str, float]:
    """In this process, which has done nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        simulate(out, size)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clock = time.process_time()
        status = folder_status(out)
        status_s = time.process_time() - clock
        assert status.counts()["failed"] == size // 100
        clock = time.process_time()
        report = gather(out)
        gather_s = time.process_time() - clock
        assert len(report.scans) == size and not report.problems, report.problems
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "scans": size,
            "status_cpu_s": round(status_s, 2),
            "gather_cpu_s": round(gather_s, 2),
            "peak_mb": peak // 1024,
            "peak_before_mb": base // 1024,
            "report_mb": round((out / "report.html").stat().st_size / 1e6, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="2500,5000,10000")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    rows = []
    for size in map(int, given.sizes.split(",")):
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(size)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout))
    print(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
