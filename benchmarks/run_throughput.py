"""hz-run against the plain sequential script, and against its own slowest stage.

    python benchmarks/run_throughput.py [--bundle NAME.hz] [--scans N] [--repeat N] [--checkpoint FILE]
                                        [--against CHECKOUT] [--precision fast] [--brains FOLDER]

N 1 mm scans (20) are made in a temporary folder: the MNI152 head of the demo through N random scanners; or
the first N brains (.nii.gz) below FOLDER are taken.
Over the same scans, in turns, are timed

    plain    benchmarks/plain_script.py: nibabel, scipy, eager torch; in this process, already imported
    hz-run   the command in a process of its own, start-up, report and all
    fast     the same with --precision, where one is named: what it ran in, how much sooner it is done, how
             far its voxels and ages are from those of hz-run
    stages   hz-run's own steps, one kind at a time, each with the threads it has in hz-run
    against  the command of another checkout of hz, with that one's reference bundle, where one is named

Weights of the plain script come from the bundle's ONNX file (the very numbers), or from --checkpoint; where
neither can be had they are random, which the result says: the work is the same, the output is not.
Prints JSON: medians, ratios, peak memory of hz-run, agreement of the outputs, machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
sys.path[:0] = [str(ROOT / room) for room in ROOMS]

# As in hz-run: numpy's own threads would compete with the stages'.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from hz_runtime.bundle.store import load_bundle  # noqa: E402
from hz_runtime.cpus import usable_cpus  # noqa: E402
from machine import describe_machine  # noqa: E402
from plain_script import harmonize_all  # noqa: E402
from process_memory import waited_for  # noqa: E402
from weights import load_from_onnx  # noqa: E402

RATIO_WANTED, STAGE_RATIO_ALLOWED, MEMORY_ALLOWED_GB = 2.0, 1.25, 0.7


def make_scans(folder: Path, number: int) -> list[Path]:
    """`number` 1 mm scans of one head through as many scanners."""
    from hz_cli.demo_scans import mni152_head, random_scanner, write_scans

    return write_scans(folder, mni152_head(), tuple(random_scanner(seed) for seed in range(number)))


def copied(folder: Path, brains: Path, number: int) -> list[Path]:
    """The first `number` brains below a folder, under names that say nothing of them."""
    folder.mkdir(parents=True)
    made = []
    for k, path in enumerate(sorted(brains.rglob("*.nii.gz"))[:number]):
        made.append(Path(shutil.copyfile(path, folder / f"sub-{k:03d}_T1w.nii.gz")))
    if not made:
        raise SystemExit(f"no .nii.gz below {brains.name}")
    return made


def networks(bundle: Path, checkpoint: Path | None) -> tuple[torch.nn.Module, torch.nn.Module | None, str]:
    """(generator, age network or None, where the generator's weights are from)."""
    from hz_train.volume_cyclegan import Generator

    loaded = load_bundle(bundle)
    age = None
    if any(entry.role == "age" for entry in loaded.models):
        from hz_train.age_cnn import AgeCNN

        # Batch norm is folded in ONNX, so its weights do not map back; the work does not depend on them.
        age = AgeCNN().eval()
    generator = Generator()
    if checkpoint is not None:
        from hz_train.checkpoint import load_checkpoint, without_prefix

        generator.load_state_dict(without_prefix("generator", load_checkpoint(checkpoint)[0]))
        return generator.eval(), age, "checkpoint"
    if load_from_onnx(generator, loaded.read(loaded.model("harmonizer", precision="fp32"))):
        return generator.eval(), age, "bundle"
    return generator.eval(), age, "random (the bundle's do not map back to the network)"


def run_hz(
    bundle: Path,
    scans: Path,
    out: Path,
    threads: int,
    report: bool,
    require: str | None,
    checkout: Path = ROOT,
    precision: str | None = None,
) -> dict[str, float]:
    """hz-run over a folder as a user would start it: wall and CPU seconds, peak memory, its own account."""
    command = ["-m", "hz_cli.run", str(scans), "--out", str(out), "--model", str(bundle), "--quiet"]
    command += ["--threads", str(threads), *([] if report else ["--no-report"])]
    command += ["--require", require] if require else []
    command += ["--precision", precision] if precision else []
    paths = [*(str(checkout / room) for room in ROOMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(variable, None)  # what hz-run sets is part of what is measured
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.DEVNULL)
    usage, peak = waited_for(process)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"hz-run ended with exit code {process.returncode}")
    inside = json.loads((out / "run.json").read_text())["timings"]["wall_s"]
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_s": seconds, "cpu_s": cpu, "inside_s": inside, "peak_gb": peak / 1e9}


def time_stages(
    bundle: Path, paths: list[Path], out: Path, threads: int, report: bool, require: str | None
) -> dict[str, float]:
    """Wall seconds of each of hz-run's steps alone over all scans, with that step's threads."""
    from hz_runtime.batch.inputs import collect
    from hz_runtime.batch.opened import open_bundle
    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.batch.scan_stages import Ticket

    out.mkdir(parents=True, exist_ok=True)
    opened = open_bundle(
        load_bundle(bundle), RunOptions(require=require, threads=threads, overwrite=True, report=report)
    )
    stages, batch = opened.stages(out), opened.batch
    workers = {"read": min(4, max(1, threads // 4)), "write": min(8, max(1, threads // 2))}
    workers["prepare"] = workers["read"]
    tickets = [Ticket(n, scan) for n, scan in enumerate(collect([str(p) for p in paths], out).scans)]
    seconds = dict.fromkeys(("read", "prepare", "infer", "write"), 0.0)

    def timed(stage: str, group: list[Any], step: Any) -> list[Any]:
        started = time.perf_counter()
        with ThreadPoolExecutor(workers[stage]) as pool:
            done = list(pool.map(step, group))
        seconds[stage] += time.perf_counter() - started
        return done

    # Groups of a few scans, so that twenty float32 volumes need not lie in memory at once.
    for start in range(0, len(tickets), 5):
        prepared = timed("prepare", timed("read", tickets[start : start + 5], stages.read), stages.prepare)
        started = time.perf_counter()
        inferred: list[Any] = []
        for first in range(0, len(prepared), batch):
            inferred += stages.infer(prepared[first : first + batch])
        seconds["infer"] += time.perf_counter() - started
        timed("write", inferred, lambda scan: stages.write(stages.draw(scan)))
    return seconds


def agreement(plain: Path, harmonized: Path) -> float:
    """Mean absolute difference of the two ways' volumes inside the brain, [0, 1] units; worst scan."""
    worst = 0.0
    for path in sorted(plain.glob("*.nii.gz")):
        name = path.name if "_desc-" in path.name else path.name.replace("_T1w", "_desc-harmonized_T1w")
        other = harmonized / name
        a, b = (np.asarray(nib.load(p).dataobj, np.float32) for p in (path, other))
        worst = max(worst, float(np.abs(a - b)[(a > 0) | (b > 0)].mean()))
    return worst


def in_precision(
    asked: str,
    hz: list[dict[str, float]],
    others: list[dict[str, float]],
    chosen: list[dict[str, float]],
    threads: int,
    work: Path,
) -> dict[str, Any]:
    """hz-run in the precision asked for, beside hz-run as it is and the other checkout's: medians."""
    runs = [json.loads((work / name / "run.json").read_text()) for name in ("hz", "chosen")]
    ages = [[scan.get("age_raw") for scan in run["scans"]] for run in runs]
    gaps = [abs(a - b) for a, b in zip(*ages, strict=True) if a is not None and b is not None]
    keys = ("name", "version", "precision", "operators", "hint", "ladder")

    def times(slower: list[dict[str, float]]) -> float:
        return round(
            statistics.median(s["wall_s"] / c["wall_s"] for s, c in zip(slower, chosen, strict=True)), 3
        )

    return {
        "asked": asked,
        "ran": {key: runs[1]["backend"][key] for key in keys if key in runs[1]["backend"]},
        "wall_s": round(statistics.median(c["wall_s"] for c in chosen), 3),
        "cpu_s": round(statistics.median(c["cpu_s"] for c in chosen), 3),
        "wall_over_cpu_a_core": round(
            statistics.median(c["wall_s"] * threads / c["cpu_s"] for c in chosen), 3
        ),
        "hz_run_over_it": times(hz),
        **({"against_over_it": times(others)} if others else {}),
        "voxels_differ_by": round(agreement(work / "hz", work / "chosen"), 6),
        "ages_differ_by": {"median": statistics.median(gaps), "most": max(gaps)} if gaps else None,
    }


def against(hz: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """How many times as long the other checkout's command takes: medians over the turns."""
    return {
        f"against_over_hz_run_{key}": round(
            statistics.median(o[key] / h[key] for h, o in zip(hz, others, strict=True)), 3
        )
        for key in ("wall_s", "inside_s")
        if others
    }


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    machine = describe_machine()
    torch.set_num_threads(args.threads)
    generator, age, weights = networks(args.bundle, args.checkpoint)
    level = float(load_bundle(args.bundle).recipe.get("white_level", 0.0))
    if args.brains:
        paths = copied(work / "scans", args.brains, args.scans)
    else:
        paths = make_scans(work / "scans", args.scans)
    plain, hz, stage_times, others, chosen = [], [], [], [], []
    harmonize_all(paths[:1], work / "warm", generator, age, level)  # torch's first call plans its kernels
    for _ in range(args.repeat):
        started = time.perf_counter()
        harmonize_all(paths, work / "plain", generator, age, level)
        plain.append(time.perf_counter() - started)
        shutil.rmtree(work / "hz", ignore_errors=True)
        how = args.threads, not args.no_report, args.require
        hz.append(run_hz(args.bundle, work / "scans", work / "hz", *how))
        if args.against:
            theirs = args.against.resolve()
            shutil.rmtree(work / "against", ignore_errors=True)
            reference = theirs / "models" / "reference.hz"
            others.append(run_hz(reference, work / "scans", work / "against", *how, checkout=theirs))
        if args.precision:
            shutil.rmtree(work / "chosen", ignore_errors=True)
            out = work / "chosen"
            chosen.append(run_hz(args.bundle, work / "scans", out, *how, precision=args.precision))
        stage_times.append(time_stages(args.bundle, paths, work / "alone", *how))
    run = json.loads((work / "hz" / "run.json").read_text())
    stages = {name: statistics.median(t[name] for t in stage_times) for name in stage_times[0]}
    slowest = max(stages, key=lambda name: stages[name])
    wall = statistics.median(h["wall_s"] for h in hz)
    ratio = statistics.median(p / h["wall_s"] for p, h in zip(plain, hz, strict=True))
    over_stage = statistics.median(
        h["wall_s"] / max(t.values()) for h, t in zip(hz, stage_times, strict=True)
    )
    peak = max(h["peak_gb"] for h in hz)
    return {
        "scans": len(paths),
        "shape": list(nib.load(paths[0]).shape),
        "threads": args.threads,
        "repeat": args.repeat,
        "engine": {key: run["backend"][key] for key in ("name", "provider", "version", "precision")},
        "report": not args.no_report,
        "plain_s": round(statistics.median(plain), 3),
        "hz_run_s": round(wall, 3),
        "hz_run_without_startup_s": round(statistics.median(h["inside_s"] for h in hz), 3),
        "plain_over_hz_run": round(ratio, 3),
        "stages_alone_s": {name: round(value, 3) for name, value in stages.items()},
        "slowest_stage": slowest,
        "hz_run_over_slowest_stage": round(over_stage, 3),
        "hz_run_peak_gb": round(peak, 3),
        **against(hz, others),
        **(
            {"in_precision": in_precision(args.precision, hz, others, chosen, args.threads, work)}
            if chosen
            else {}
        ),
        "plain_weights": weights,
        "outputs_differ_by": round(agreement(work / "plain", work / "hz"), 5),
        "met": {
            f"plain over hz-run at least {RATIO_WANTED}": ratio >= RATIO_WANTED,
            f"hz-run within {STAGE_RATIO_ALLOWED} of its slowest stage": over_stage <= STAGE_RATIO_ALLOWED,
            f"peak memory at most {MEMORY_ALLOWED_GB} GB": peak <= MEMORY_ALLOWED_GB,
        },
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    parser.add_argument("--checkpoint", type=Path, help="CycleGAN checkpoint for the plain script")
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--require", help="engine of hz-run, e.g. onnxruntime-cuda: fails rather than falls")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of hz")
    parser.add_argument(
        "--precision", metavar="P", help="of hz-run, beside its default in turns: fast, int8, bf16"
    )
    parser.add_argument("--brains", type=Path, metavar="FOLDER", help="prepared brains in place of made ones")
    parser.add_argument("--no-report", action="store_true", help="hz-run without pictures and report")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(measure(args, Path(work)), indent=2))


if __name__ == "__main__":
    main()
