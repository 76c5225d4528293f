"""What raw heads cost from scan to harmonized volume and age, what the gates measure, how the mask fits.

    python benchmarks/raw_head.py HEAD... [--alone N] [--batch 10] [--bundle NAME.hz] [--brain-mask auto]
                                  [--dof 6] [--reference HEAD=STRIPPED]... [--against CHECKOUT] [--turns 3]

Every HEAD (a scan or DICOM), or so many of them as --alone says, the same ones each time, goes through
`hz-run --prepare` in a process of its own: seconds by stage and by step of preparation, CPU seconds of all
its processes, and every gate's number. Then so many heads as --batch says, HEADs in turn, go through one
hz-run: the gain is the time that they took one at a time over this time, start-up left out of both. Memory
is that of hz-run and of its programs together, looked at ten times a second. --reference compares the
template's mask of HEAD with what is not air in STRIPPED, the same scan skull-stripped elsewhere (a mask
will do), on its own voxels: Dice, and cm3 of both. --against runs those heads, and the batch, by another
checkout of hz and its own reference bundle as well, in turns, so many times as --turns says: how many times
as long that one takes, heads that only one of them captures, and how far apart the brains of the batch lie
by their poses. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine
from process_memory import waited_for

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
GAIN_WANTED, SECONDS_ALLOWED, MASK_SECONDS_ALLOWED, MEMORY_ALLOWED_GB = 1.6, 25.0, 10.0, 0.9
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="*", type=Path)
    parser.add_argument("--alone", type=int, help="heads that go alone; all where it is not given")
    parser.add_argument("--batch", type=int, default=10, help="heads of the batch; 0 for none")
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    parser.add_argument("--brain-mask", default="auto")
    parser.add_argument("--dof", default="6", choices=["6", "12"])
    parser.add_argument("--reference", action="append", default=[], metavar="HEAD=STRIPPED")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--turns", type=int, default=3, help="of each build against the other")
    given = parser.parse_args()
    options = ["--model", str(given.bundle), "--brain-mask", given.brain_mask, "--dof", given.dof]
    result: dict[str, Any] = {"brain_mask": Path(given.brain_mask).name, "dof": int(given.dof)}
    if given.heads:
        with tempfile.TemporaryDirectory() as work:
            alone = given.heads
            if given.alone is not None:
                alone = random.Random(0).sample(given.heads, min(given.alone, len(given.heads)))
            batch = [given.heads[n % len(given.heads)] for n in range(given.batch)]
            if given.against:
                result["against"] = against(
                    given.against.resolve(), alone, batch, options, given.turns, Path(work)
                )
            else:
                result.update(measured(alone, batch, options, Path(work)))
    pairs = [tuple(map(Path, text.split("=", 1))) for text in given.reference]
    result["template_mask"] = [fitted(head, reference) for head, reference in pairs]
    result["machine"] = describe_machine()
    print(json.dumps(result, indent=2))


def measured(
    heads: Sequence[Path], batch: Sequence[Path], options: Sequence[str], work: Path
) -> dict[str, Any]:
    """Every head alone, then a batch."""
    alone = [hz_run([head], options, work / f"alone-{number}") for number, head in enumerate(heads)]
    run = hz_run(renamed(batch, work / "heads"), options, work / "batch") if batch else None
    return summary(alone, run)


def summary(runs: Sequence[Run], run: Run | None) -> dict[str, Any]:
    """What one build took for heads alone, `runs`, and for a batch, `run`."""
    alone = [{**one["scans"][0], **{k: v for k, v in one.items() if k != "scans"}} for one in runs]
    done = [one for one in alone if one["status"] != "failed"]
    result: dict[str, Any] = {"heads": alone}
    if not done:
        return result
    median = {key: round(statistics.median(one[key] for one in done), 2) for key in ("inside_s", "cpu_s")}
    steps = {
        step: statistics.median(one["seconds"].get(step, 0.0) for one in done) for step in done[0]["seconds"]
    }
    result["median"] = {**median, "seconds": {step: round(took, 2) for step, took in steps.items()}}
    result["peak_gb"] = max(one["peak_gb"] for one in done)
    met = {
        f"CPU seconds of a head at most {SECONDS_ALLOWED:g}": median["cpu_s"] <= SECONDS_ALLOWED,
        f"of which mask at most {MASK_SECONDS_ALLOWED:g}": steps["prepare.mask"] <= MASK_SECONDS_ALLOWED,
    }
    if run:
        batch = len(run["scans"])
        gain = batch * statistics.mean(one["inside_s"] for one in alone) / run["inside_s"]
        result["batch"] = {
            "heads": batch,
            "inside_s": run["inside_s"],
            "cpu_s": run["cpu_s"],
            "peak_gb": run["peak_gb"],
            "heads_a_minute": round(60 * batch / run["inside_s"], 2),
            "gain": round(gain, 2),
            "failed": sum(scan["status"] == "failed" for scan in run["scans"]),
        }
        result["peak_gb"] = max(result["peak_gb"], run["peak_gb"])
        met[f"batch over one at a time at least {GAIN_WANTED}"] = gain >= GAIN_WANTED
    met[f"peak memory at most {MEMORY_ALLOWED_GB} GB"] = result["peak_gb"] <= MEMORY_ALLOWED_GB
    return {**result, "met": met}


def against(
    other: Path,
    heads: Sequence[Path],
    batch: Sequence[Path],
    options: Sequence[str],
    turns: int,
    work: Path,
) -> dict[str, Any]:
    """How many times as long another checkout takes, head by head and for a batch: medians of ratios."""
    builds = ((ROOT, options), (other, [*options, "--model", str(other / "models" / "reference.hz")]))
    ratios: dict[str, list[float]] = {"cpu_s": [], "inside_s": [], "batch_inside_s": [], "batch_cpu_s": []}

    def in_turns(given: Sequence[Path], name: str, prefix: str) -> list[Run]:
        """Both builds' runs of the last turn, this one's first."""
        for turn in range(turns):
            runs = [
                hz_run(given, chosen, work / f"{name}-{turn}-{build}", checkout)
                for build, (checkout, chosen) in enumerate(builds)
            ]
            for key in ("cpu_s", "inside_s"):
                ratios[prefix + key].append(runs[1][key] / runs[0][key])
        return runs

    alone = [in_turns([head], f"turns-{number}", "") for number, head in enumerate(heads)]
    together = in_turns(renamed(batch, work / "turned-heads"), "turned-batch", "batch_") if batch else []
    commit = subprocess.run(
        ["git", "-C", str(other), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    result: dict[str, Any] = {"commit": commit.stdout.strip(), "turns": turns}
    for name, of in (("this", 0), ("other", 1)):
        result[name] = summary([runs[of] for runs in alone], together[of] if together else None)
    result |= {f"{key}_ratio": round(statistics.median(found), 3) for key, found in ratios.items() if found}
    if together:
        last = f"turned-batch-{turns - 1}"
        result["captured"] = captured(together, work / f"{last}-0", work / f"{last}-1")
    return result


def captured(runs: Sequence[Run], ours: Path, theirs: Path) -> dict[str, Any]:
    """Heads of a batch that only one build has brought to the template; how far apart the others lie.

    poses_apart : of every head the mean distance of the brain's points, and the largest, between the poses.
    """
    import numpy as np

    sys.path[:0] = [str(ROOT / room) for room in ROOMS]
    from hz_runtime.preparation.refinement import distances
    from hz_runtime.preparation.template import mni152, points

    brain = points(mni152().mask, mni152().affine)
    failed = [{scan["head"] for scan in run["scans"] if scan["status"] == "failed"} for run in runs]
    apart: dict[str, list[float]] = {"mean_mm": [], "farthest_mm": []}
    for sidecar in sorted(ours.glob("*_T1w.json")):
        if (theirs / sidecar.name).exists():
            one, two = (
                np.array(json.loads((out / sidecar.name).read_text())["Preparation"]["transform"]["matrix"])
                for out in (ours, theirs)
            )
            gaps = distances(one @ np.linalg.inv(two), np.eye(4), brain)
            apart["mean_mm"].append(float(gaps.mean()))
            apart["farthest_mm"].append(float(gaps.max()))
    return {
        "both": len(apart["mean_mm"]),
        "only_this": sorted(failed[1] - failed[0]),
        "only_other": sorted(failed[0] - failed[1]),
        "poses_apart": {
            key: {"median": round(statistics.median(found), 4), "worst": round(max(found), 4)}
            for key, found in apart.items()
            if found
        },
    }


def renamed(heads: Sequence[Path], folder: Path) -> list[Path]:
    """Links to the heads under different names: the same path twice would be one scan."""
    folder.mkdir()
    links = [folder / f"{number:03}-{head.name}" for number, head in enumerate(heads)]
    for link, head in zip(links, heads, strict=True):
        link.symlink_to(head.resolve())
    return links


def hz_run(heads: Sequence[Path], options: Sequence[str], out: Path, checkout: Path = ROOT) -> dict[str, Any]:
    """hz-run --prepare as a user would start it: time without start-up, CPU seconds and memory with it."""
    command = [
        sys.executable,
        "-m",
        "hz_cli.run",
        "--prepare",
        *map(str, heads),
        "--out",
        str(out),
        "--quiet",
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(checkout / room) for room in ROOMS)}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(variable, None)  # what hz-run sets is part of what is measured
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed hz is compiled, and a checkout by its first run
    process = subprocess.Popen(
        [*command, *options], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    usage, peak = waited_for(process)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    if process.returncode not in (0, 3):
        raise SystemExit(f"hz-run ended with exit code {process.returncode}: {said.strip()}")
    run = json.loads((out / "run.json").read_text())
    return {
        "inside_s": round(run["timings"]["wall_s"], 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gb": round(peak / 1e9, 2),
        "scans": [scan_row(scan) for scan in run["scans"]],
    }


def scan_row(scan: dict[str, Any]) -> dict[str, Any]:
    """What a scan of run.json says that is of use here."""
    return {
        "head": scan["input"],
        "status": scan["status"],
        "reason": scan["reason"],
        "age_raw": scan["age_raw"],
        "gates": {gate["gate"]: gate["value"] for gate in scan["gates"]},
        "seconds": {step: round(took, 2) for step, took in scan["seconds"].items()},
    }


def fitted(head: Path, reference: Path) -> dict[str, Any]:
    """Dice of the template's mask of a head with the head stripped elsewhere."""
    import numpy as np

    from hz_runtime.io.geometry import spacing_of
    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.resample import resample
    from hz_runtime.preparation.mask import propagated_mask
    from hz_runtime.preparation.registration import registered
    from hz_runtime.preparation.template import mni152

    scan, stripped = read_volume(head), read_volume(reference)
    pose, *_ = registered(scan.data, scan.affine, mni152())
    mask = propagated_mask(scan.data, scan.affine, pose, mni152())
    truth = stripped.data != np.median(stripped.data[:, :, 0])
    truth = resample(truth.astype(np.float32), stripped.affine, scan.shape, scan.affine) > 0.5
    voxel = float(spacing_of(scan.affine).prod()) / 1000
    return {
        "head": head.name,
        "dice": round(2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()), 4),
        "cm3": round(float(mask.sum()) * voxel, 1),
        "reference_cm3": round(float(truth.sum()) * voxel, 1),
    }


if __name__ == "__main__":
    main()
