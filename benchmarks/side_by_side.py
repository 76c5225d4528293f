"""Dask against one process, and hz-bids against hz-run, over the same scans, in turns.

    python benchmarks/side_by_side.py dask [--scans 40] [--repeat 3] [--model NAME.hz]
    python benchmarks/side_by_side.py bids HEAD... [--participants 20] [--repeat 3] [--model NAME.hz]

dask    so many prepared scans (the MNI152 head of the demo through random scanners) by two local workers of
        one thread, and by hz-run with two threads. Wanted: at least .95 of the throughput.
bids    HEADs in turn as so many participants of a BIDS data set by hz-bids, and the same files by
        hz-run --prepare, two threads each. Wanted: at most 1.15 times as long.

Every run is a process of its own, timed from its start to its end, with pages and tables; Python's modules
are compiled by a turn before the first, as installing does it. Prints JSON: seconds of every turn, medians,
their ratio, CPU seconds of all processes (which other work on the machine disturbs least), machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
sys.path[:0] = [str(ROOT / room) for room in ROOMS]
THREADS = 2
DASK_WANTED, BIDS_ALLOWED = 0.95, 1.15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["dask", "bids"])
    parser.add_argument("heads", nargs="*", type=Path, help="bids: raw heads (.nii.gz)")
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    given = parser.parse_args()
    if given.what == "bids" and not given.heads:
        parser.error("bids takes raw heads")
    adopt()
    with tempfile.TemporaryDirectory() as work:
        if given.what == "dask":
            result = dask(given.scans, given.model, given.repeat, Path(work))
        else:
            result = bids(given.heads, given.participants, given.model, given.repeat, Path(work))
    print(json.dumps({"what": given.what, **result, "machine": describe_machine()}, indent=2))


def dask(count: int, model: Path, repeat: int, work: Path) -> dict[str, Any]:
    from hz_cli.demo_scans import mni152_head, random_scanner, write_scans

    write_scans(work / "in", mni152_head(), tuple(random_scanner(seed) for seed in range(count)))
    one = ["run", str(work / "in"), "--model", str(model), "--quiet"]
    taken = in_turns(
        {
            "dask": [*one, "--dask", "local:2", "--threads", "1"],
            "hz_run": [*one, "--threads", str(THREADS)],
        },
        repeat,
        work,
    )
    ratio = taken["median_s"]["hz_run"] / taken["median_s"]["dask"]
    met = {f"throughput of dask at least {DASK_WANTED}": ratio >= DASK_WANTED}
    return {"scans": count, **taken, "throughput_ratio": round(ratio, 3), "met": met}


def bids(heads: Sequence[Path], count: int, model: Path, repeat: int, work: Path) -> dict[str, Any]:
    study = work / "study"
    for number in range(count):
        label = f"sub-{number + 1:03}"
        folder = study / label / "anat"
        folder.mkdir(parents=True)
        shutil.copyfile(heads[number % len(heads)], folder / f"{label}_T1w.nii.gz")
    (study / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.9.0"}')
    scans = [str(path) for path in sorted(study.glob("sub-*/anat/*.nii.gz"))]
    how = ["--model", str(model), "--quiet"]
    taken = in_turns(
        {
            "hz_bids": ["bids", str(study), "OUT", "participant", *how, "--n-cpus", str(THREADS)],
            "hz_run": ["run", "--prepare", *scans, *how, "--threads", str(THREADS)],
        },
        repeat,
        work,
    )
    ratio = taken["median_s"]["hz_bids"] / taken["median_s"]["hz_run"]
    met = {f"hz-bids at most {BIDS_ALLOWED} times hz-run": ratio <= BIDS_ALLOWED}
    return {"participants": count, **taken, "time_ratio": round(ratio, 3), "met": met}


def in_turns(commands: Mapping[str, Sequence[str]], repeat: int, work: Path) -> dict[str, Any]:
    """Seconds of every command, one after the other, `repeat` times, after a turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    loads: list[float] = []
    for turn in range(repeat + 1):
        for name, words in commands.items():
            out = work / f"{name}-{turn}"
            took, used = timed(words, out, work / "pycache")
            if turn:
                seconds[name].append(round(took, 2))
                cpu[name].append(round(used, 2))
            shutil.rmtree(out)
        loads.append(round(os.getloadavg()[0], 2))
    median = {name: round(statistics.median(found), 2) for name, found in seconds.items()}
    return {
        "threads": THREADS,
        "repeat": repeat,
        "seconds": seconds,
        "median_s": median,
        "cpu_s": cpu,
        "load_1min_after_each_turn": loads[1:],
    }


def timed(words: Sequence[str], out: Path, compiled: Path) -> tuple[float, float]:
    """Wall seconds of an hz command from start to end, and CPU seconds of all its processes.

    out : a new folder, for OUT in `words` or --out.  compiled : where Python keeps bytecode.
    """
    placed = [str(out) if word == "OUT" else word for word in words]
    if placed == list(words):
        placed += ["--out", str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(variable, None)  # what hz sets is part of what is measured
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed hz is compiled, and a checkout by its first run
    env["PYTHONPYCACHEPREFIX"] = str(compiled)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"hz_cli.{placed[0]}", *placed[1:]],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"hz-{placed[0]} ended with exit code {done.returncode}: {done.stderr.strip()}")
    with suppress(ChildProcessError):  # processes that outlived the one that started them, see `adopt`
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def adopt() -> None:
    """Let processes that their own parents do not wait for be this one's to wait for, with their CPU time."""
    set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
