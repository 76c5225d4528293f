"""hz-run --prepare beside what a user would script today for raw heads, on the same heads and cores.

    python benchmarks/peers.py COHORT [--heads N] [--cores N] [--turns N] [--venv FOLDER]
                               [--torch-index URL] [--bundle NAME.hz] [--brain-mask auto]

The peer is peer_script.py: antspyx's N4 and rigid registration, deepbet's mask, the bundle's generator in
eager torch, nibabel. It runs in a virtual environment with the versions below, which is made in --venv where
it is not there yet (deepbet's weights come in its wheel). COHORT is that of label_outlines.py. In every turn
each of the two takes the first N heads in one process that starts afresh, on the same --cores: CPU seconds
and wall seconds a head, start-up in them, and the peak memory of all its processes. Dice is that of each
one's mask with the drawn brain. --brain-mask is hz-run's. Prints JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine
from process_memory import waited_for
from raw_head import ROOMS, ROOT, hz_run

PINNED = (
    "antspyx==0.6.3",
    "deepbet==1.0.2",
    "torch==2.13.0",
    "nibabel==5.4.2",
    "scipy==1.15.3",  # the newest that antspyx takes
    "setuptools",
)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TIMES_WANTED = 5.0  # the peer's CPU seconds over hz-run's
MEMORY_WANTED = 0.5  # hz-run's over the peer's
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--venv", type=Path, default=Path("peers-venv"))
    parser.add_argument(
        "--torch-index", default=TORCH_INDEX, help="with torch for CPUs; '' for none besides pip's"
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    parser.add_argument("--brain-mask", default="auto")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    machine = describe_machine()
    python = environment(given.venv.absolute(), given.torch_index)
    with (given.cohort / "participants.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[: given.heads]
    heads = [(given.cohort / row["file"]).resolve() for row in rows]
    labels = [given.cohort / row["labels"] for row in rows]
    with tempfile.TemporaryDirectory() as name:
        result = measured(heads, labels, given, python, Path(name))
    print(json.dumps({**result, "cores": given.cores, "turns": given.turns, "machine": machine}, indent=2))


def environment(folder: Path, torch_index: str) -> Path:
    """Python of the peer's environment, made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        index = ["--extra-index-url", torch_index] if torch_index else []
        command = [python, "-m", "pip", "install", "--quiet", *index, *PINNED]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return python


def measured(
    heads: Sequence[Path], labels: Sequence[Path], given: argparse.Namespace, python: Path, work: Path
) -> dict[str, Any]:
    """Both in turns over all heads, the masks of the last turn, and whether the aims are met."""
    options = ["--model", str(given.bundle), "--brain-mask", given.brain_mask, "--dof", "6"]
    template, weights, where_from = what_the_peer_needs(given.bundle, work)
    ours: list[Run] = []
    theirs: list[Run] = []
    for turn in range(given.turns):
        started = time.perf_counter()
        run = hz_run(heads, options, work / f"hz-{turn}")
        ours.append({**run, "wall_s": time.perf_counter() - started})
        theirs.append(peer(python, heads, work / f"peer-{turn}", template, weights, given.cores))
    last = given.turns - 1
    dice = {
        "hz": [dice_with(hz_brain(work / f"hz-{last}", head), drawn) for head, drawn in pairs(heads, labels)],
        "peer": [
            dice_with(work / f"peer-{last}" / f"{head.name.split('.')[0]}_mask.nii.gz", drawn)
            for head, drawn in pairs(heads, labels)
        ],
    }
    each = {"hz": medians(ours, len(heads)), "peer": medians(theirs, len(heads))}
    for who, found in dice.items():
        each[who]["dice"] = found
        each[who]["dice_median"] = statistics.median(one for one in found if one is not None)
    times = statistics.median(b["cpu_s"] / a["cpu_s"] for a, b in pairs(ours, theirs))
    memory = max(run["peak_gb"] for run in ours) / max(run["peak_gb"] for run in theirs)
    return {
        "heads": [head.name for head in heads],
        **each,
        "peer_weights": where_from,
        "peer_packages": theirs[-1]["packages"],
        "peer_seconds": theirs[-1]["heads"],
        "hz_seconds": [
            {key: scan[key] for key in ("head", "status", "seconds")} for scan in ours[-1]["scans"]
        ],
        "cpu_ratio": round(times, 2),
        "memory_ratio": round(memory, 3),
        "met": {
            f"the peer's CPU seconds at least {TIMES_WANTED:g} times": times >= TIMES_WANTED,
            f"memory at most {MEMORY_WANTED:g} of the peer's": memory <= MEMORY_WANTED,
            "Dice no lower": each["hz"]["dice_median"] >= each["peer"]["dice_median"],
        },
    }


def pairs(ones: Sequence[Any], others: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(ones, others, strict=True))


def medians(runs: Sequence[Run], heads: int) -> dict[str, Any]:
    """CPU and wall seconds a head over the turns, and the most memory of any."""
    found: dict[str, Any] = {
        f"{key}_a_head": round(statistics.median(run[key] for run in runs) / heads, 2)
        for key in ("cpu_s", "wall_s")
    }
    return {**found, "peak_gb": max(run["peak_gb"] for run in runs)}


def what_the_peer_needs(bundle: Path, work: Path) -> tuple[Path, Path, str]:
    """(the template's brain as a file, the generator's weights as one, where these are from)."""
    sys.path[:0] = [str(ROOT / room) for room in ROOMS]
    import nibabel
    import torch

    from hz_runtime.preparation.template import mni152
    from run_throughput import networks

    template, weights = work / "template.nii.gz", work / "generator.pt"
    nibabel.save(nibabel.Nifti1Image(mni152().data, mni152().affine), template)
    generator, _, where_from = networks(bundle, None)
    torch.save(generator.state_dict(), weights)
    return template, weights, where_from


def peer(python: Path, heads: Sequence[Path], out: Path, template: Path, weights: Path, cores: int) -> Run:
    """peer_script.py over all heads, in a process of its own."""
    script = Path(__file__).resolve().with_name("peer_script.py")
    command = [python, script, *heads, "--out", out, "--template", template]
    command += ["--generator", weights, "--threads", str(cores)]
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "OMP_", "OPENBLAS_", "MKL_"))
    }
    out.mkdir(parents=True)
    started = time.perf_counter()
    with (out / "said.txt").open("w+") as said:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=said)
        usage, peak = waited_for(process)
        wall = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"peer_script.py ended with exit code {process.returncode}")
        said.seek(0)
        printed = json.loads(said.read().splitlines()[-1])
    cpu = usage.ru_utime + usage.ru_stime
    return {"cpu_s": cpu, "wall_s": wall, "peak_gb": round(peak / 1e9, 2), **printed}


def hz_brain(out: Path, head: Path) -> Path | None:
    """The harmonized volume of a head, which is not 0 in its brain; None where the head was refused."""
    path = out / f"{head.name.split('.')[0].removesuffix('_T1w')}_desc-harmonized_T1w.nii.gz"
    return path if path.exists() else None


def dice_with(path: Path | None, labels: Path) -> float | None:
    """Dice of what is not 0 in a file with the brain of a label map, its sulci closed; both without holes."""
    if path is None:
        return None
    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.morphology import filled
    from hz_train.studies.anatomy import dice
    from label_outlines import CLOSING_MM, closed

    found, drawn = read_volume(path), read_volume(labels)
    brain = closed(drawn.data > 0, round(CLOSING_MM / float(drawn.spacing.mean())))
    return round(dice(filled(found.data > 0), brain), 4)


if __name__ == "__main__":
    main()
