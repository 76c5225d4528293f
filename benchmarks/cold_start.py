"""One prepared scan from nothing, file to file, by a fresh hz-run: seconds, and where they go.

    python benchmarks/cold_start.py [--scan FILE] [--repeat N] [--threads N] [--against CHECKOUT]
                                    [-- OPTION...]

Every run is a process of its own with an empty folder of the user's caches; then as many with the folder that
the run before has filled, where it filled one. CPU seconds (user and system) are what a busy machine spoils
least, those of the wall what a user waits. --against runs another checkout of hz in turns, with its own
reference bundle and an empty folder: `ratio` is of CPU seconds, `wall_ratio` of the wall's. Without --scan it
is a 1 mm brain of the demo. Steps are CPU seconds of one more process, which takes one step after the other:
where a run's CPU time goes. Imports are those of one more run under `-X importtime`: seconds of the modules
of each package. Opening is what the CPU's engine spends on each network, from ONNX, and beside it what would
come from a cache: writing, hashing and reading the compiled network. Options after -- go to hz-run. Prints
JSON.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
COLD_WANTED, CACHED_WANTED = 0.6, 0.4  # times the CPU seconds of the other checkout
PACKAGES = 8  # that are listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="of hz-run, after --")
    given = parser.parse_args()
    if given.steps:
        print(json.dumps(steps(given.scan, given.threads)))
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        scan = given.scan.resolve() if given.scan else demo_scan(work / "scans")
        asked = [str(scan), "--threads", str(given.threads), *given.options]
        other = given.against and given.against.resolve()
        result = measured(asked, given.repeat, other, given.threads, work)
    print(
        json.dumps({**result, "threads": given.threads, "repeat": given.repeat, "machine": machine}, indent=2)
    )


def demo_scan(folder: Path) -> Path:
    """A 1 mm brain of the demo in a new folder."""
    sys.path[:0] = [str(ROOT / room) for room in ROOMS]
    from hz_cli.demo_scans import mni152_head, random_scanner, write_scans

    (path,) = write_scans(folder, mni152_head(), (random_scanner(0),))
    return path


def measured(
    asked: Sequence[str], repeat: int, other: Path | None, threads: int, work: Path
) -> dict[str, Any]:
    """Every kind of run in turns; the first of each, which fills the disk's cache, does not count."""
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "with_cache": [], "against": []}
    filled = False
    for turn in range(repeat + 1):
        caches = work / f"caches-{turn}"
        runs["cold"].append(hz_run(asked, work / f"cold-{turn}", caches))
        filled = any(path.is_file() for path in caches.rglob("*"))
        if filled:
            runs["with_cache"].append(hz_run(asked, work / f"cached-{turn}", caches))
        if other:
            theirs = [*asked, "--model", str(other / "models" / "reference.hz")]
            runs["against"].append(hz_run(theirs, work / f"other-{turn}", work / f"theirs-{turn}", other))
    result: dict[str, Any] = {kind: medians(found[1:]) for kind, found in runs.items() if found}
    result["cache_filled"] = filled
    result["steps_cpu_s"] = in_steps(asked[0], threads, repeat, work)
    result["imports_s"] = imports(asked, work / "imports")
    result["opening_s"] = opening(threads)
    if other:
        commit = subprocess.run(
            ["git", "-C", str(other), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        result["against"]["commit"] = commit.stdout.strip()
        result["ratio"], result["wall_ratio"], result["met"] = {}, {}, {}
        for kind, wanted in (("cold", COLD_WANTED), ("with_cache", CACHED_WANTED)):
            pairs = list(zip(runs[kind], runs["against"], strict=False))[1:]
            if pairs:
                for name, key in (("ratio", "cpu_s"), ("wall_ratio", "wall_s")):
                    result[name][kind] = round(statistics.median(a[key] / b[key] for a, b in pairs), 3)
                result["met"][f"{kind} at most {wanted}"] = result["ratio"][kind] <= wanted
    return result


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number of the runs, steps of the scan included."""
    result: dict[str, Any] = {
        key: round(statistics.median(run[key] for run in runs), 3) for key in ("cpu_s", "wall_s", "inside_s")
    }
    result["steps_s"] = {
        step: round(statistics.median(run["steps"].get(step, 0.0) for run in runs), 3)
        for step in runs[0]["steps"]
    }
    return result


def hz_run(asked: Sequence[str], out: Path, caches: Path, checkout: Path = ROOT) -> dict[str, Any]:
    """One hz-run in a process of its own; `inside_s` and `steps` are of its own account, run.json."""
    command = [sys.executable, "-m", "hz_cli.run", *asked, "--out", str(out), "--quiet"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment(caches, checkout), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hz-run ended with exit code {process.returncode}")
    run = json.loads((out / "run.json").read_text())
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": wall,
        "inside_s": run["timings"]["wall_s"],
        "steps": run["scans"][0]["seconds"],
    }


def environment(caches: Path, checkout: Path = ROOT) -> dict[str, str]:
    """Of a user with these caches; threads are hz-run's own choice."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(checkout / room) for room in ROOMS)}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HZ_ENGINES"):
        env.pop(variable, None)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed hz is compiled, and a checkout by its first run
    caches.mkdir(exist_ok=True)
    compiled = caches.parent / "pycache"
    return {**env, "XDG_CACHE_HOME": str(caches), "PYTHONPYCACHEPREFIX": str(compiled)}


def in_steps(scan: str, threads: int, repeat: int, work: Path) -> dict[str, float]:
    """`steps` of so many new processes: the median of each."""
    command = [sys.executable, __file__, "--steps", "--scan", scan, "--threads", str(threads)]
    env = environment(work / "steps-caches")
    found = [json.loads(subprocess.check_output(command, env=env)) for _ in range(repeat + 1)][1:]
    return {step: round(statistics.median(one[step] for one in found), 3) for step in found[0]}


def steps(scan: Path, threads: int) -> dict[str, float]:
    """CPU seconds of this process by step of a scan, on its way through it; of imports what hz-run takes."""
    seconds = {}
    last = time.process_time()
    seconds["python"] = last

    def step(name: str) -> None:
        nonlocal last
        now = time.process_time()
        seconds[name], last = now - last, now

    import hz_cli.run  # noqa: F401
    import hz_runtime.batch.run  # noqa: F401
    from hz_runtime.backends.ov import quiet_openvino
    from hz_runtime.batch.inputs import collect
    from hz_runtime.batch.opened import open_bundle
    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.batch.scan_stages import Ticket
    from hz_runtime.bundle.store import load_bundle

    quiet_openvino()
    step("imports")
    bundle = load_bundle(ROOT / "runtime/hz_runtime/models/reference.hz")
    step("bundle")
    with tempfile.TemporaryDirectory() as out:
        stages = open_bundle(bundle, RunOptions(threads=threads)).stages(Path(out))
        step("engines")
        read = stages.read(Ticket(0, collect([str(scan)], Path(out)).scans[0]))
        step("reading")
        prepared = stages.prepare(read)
        step("preparing")
        (inferred,) = stages.infer([prepared])
        step("networks")
        drawn = stages.draw(inferred)
        step("drawing")
        stages.write(drawn)
        step("writing")
    return seconds


def opening(threads: int) -> dict[str, dict[str, float]]:
    """CPU seconds of OpenVINO for the reference bundle's float32 networks, by where they come from."""
    sys.path[:0] = [str(ROOT / room) for room in ROOMS]
    from hz_runtime.backends.ov import OpenVinoBackend, quiet_openvino
    from hz_runtime.bundle.store import load_bundle

    core, bundle = quiet_openvino().Core(), load_bundle(ROOT / "runtime/hz_runtime/models/reference.hz")
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    found: dict[str, dict[str, float]] = {}
    for role in ("harmonizer", "age"):
        model = bundle.read(bundle.model(role, precision="fp32"))
        times = [time.process_time()]
        backend = OpenVinoBackend(model, threads)
        times.append(time.process_time())
        blob = backend._compiled.export_model().getvalue()
        times.append(time.process_time())
        hashlib.sha256(blob).hexdigest()
        core.import_model(blob, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})
        times.append(time.process_time())
        steps = ("from_onnx", "writing", "from_cache")
        found[role] = {step: round(b - a, 3) for step, a, b in zip(steps, times, times[1:], strict=False)}
        found[role]["megabytes"] = round(len(blob) / 1e6, 1)
        backend.close()
    return found


def imports(asked: Sequence[str], out: Path) -> dict[str, float]:
    """Seconds that the modules of each package take of themselves, the most costly packages first."""
    command = [sys.executable, "-X", "importtime", "-m", "hz_cli.run", *asked, "--out", str(out), "--quiet"]
    done = subprocess.run(
        command, env=environment(out.parent / "imports-caches"), capture_output=True, text=True, check=True
    )
    spent: collections.Counter[str] = collections.Counter()
    for line in done.stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            spent[fields[2].strip().split(".")[0]] += int(fields[0])
    most = {name: round(us / 1e6, 3) for name, us in spent.most_common(PACKAGES)}
    return {"all": round(spent.total() / 1e6, 3), **most}


if __name__ == "__main__":
    main()
