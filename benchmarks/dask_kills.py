"""Kills Dask workers of a run at random moments, and holds what it leaves to a serial run; prints JSON.

    python benchmarks/dask_kills.py [--kills 10] [--scans 200] [--seed 20231106]

Two local workers and small heads, networks of tests/tiny.py. A kill is kill -9 of one of the worker processes
at a random moment after the run got further; each may cost the scans that the worker had, never a result.
With --poison, one scan more ends every worker that takes it: wanted is one failed row, and all others done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
sys.path[:0] = [*(str(ROOT / room) for room in ROOMS), str(ROOT / "tests")]
POISON = "poison_T1w.nii.gz"
# Reading the poison scan ends a process of Dask's, as a library that crashes on it does.
DEADLY = f"""
import os, signal, sys
if "forkserver" in " ".join(sys.orig_argv):
    import hz_runtime.io.volume as volume
    real = volume.read_volume
    def read(path, *arguments, **options):
        if str(path).endswith("{POISON}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *arguments, **options)
    volume.read_volume = read
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20231106)
    parser.add_argument("--poison", action="store_true", help="no kills, and a scan that ends its worker")
    given = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), given.scans, 0 if given.poison else given.kills, given.seed, given.poison
        )
    print(json.dumps({**found, "machine": machine}, indent=2))


def measure(work: Path, count: int, kills: int, seed: int, poison: bool) -> dict[str, Any]:
    from small_scans import results, write_scan, write_scans
    from tiny import make_tiny_bundle

    bundle = make_tiny_bundle(work / "tiny.hz")
    write_scans(work / "in", count)
    how = [
        str(work / "in"),
        "--model",
        str(bundle),
        "--backend",
        "onnxruntime-cpu",
        "--threads",
        "1",
        "--plain",
    ]
    serial = run([*how, "--out", str(work / "serial")])
    assert serial.wait() == 0, serial.communicate()
    if poison:
        write_scan(work / "in" / POISON)
        (work / "deadly").mkdir()
        (work / "deadly" / "sitecustomize.py").write_text(DEADLY)
    started, out, chosen = time.monotonic(), work / "out", random.Random(seed)
    process = run([*how, "--out", str(out), "--dask", "local:2"], work / "deadly")
    moments: list[float] = []
    before = 0
    while len(moments) < kills and process.poll() is None:
        time.sleep(0.05)
        if (done := len(list(out.glob("*.json")))) <= before:
            continue
        time.sleep(chosen.random())
        if process.poll() is None and (living := workers(process.pid)):
            os.kill(chosen.choice(living), signal.SIGKILL)
            moments.append(round(time.monotonic() - started, 2))
            before = done
    said, told = process.communicate()
    if not (out / "run.json").exists():
        raise SystemExit(
            f"kills at {moments}; the run ended with exit code {process.returncode}: {told or said}"
        )
    counts = json.loads((out / "run.json").read_text())["counts"]
    failed = [scan for scan in json.loads((out / "run.json").read_text())["scans"] if scan["reason"]]
    names = {name for name in results(out) if not name.startswith("predictions")}
    whole, left = results(work / "serial"), results(out)
    return {
        "scans": count + poison,
        "kills_at_s": moments,
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": process.returncode,
        "counts": counts,
        "failed": [{"input": scan["input"], "reason": scan["reason"]} for scan in failed],
        "summary": said.splitlines()[-1] if said else told,
        "results_are_the_bytes_of_a_serial_run": all(left[name] == whole.get(name) for name in names)
        and len(left) == len(whole),
    }


def run(words: list[str], *first: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([*map(str, first), *(str(ROOT / room) for room in ROOMS)])
    return subprocess.Popen(
        [sys.executable, "-m", "hz_cli.run", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers(pid: int) -> list[int]:
    """Worker processes of a run: forked from the process that it had import what they need."""
    return [
        worker for child in children(pid) if b"forkserver" in command(child) for worker in children(child)
    ]


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in children_of(task)]
    return []


def children_of(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
