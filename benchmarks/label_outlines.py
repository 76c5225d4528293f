"""Whether whole heads are captured, and how near the mask and the registration come to drawn brains.

    python benchmarks/label_outlines.py COHORT [HEAD...] [--lines FILE]

COHORT holds participants.tsv with the columns file, labels and age; its label maps lie on the heads' own
voxels, and what of them is not 0, its sulci closed, is the brain. Every head is prepared with the
template's mask and 12 degrees of freedom: Dice and the mean distance of the surfaces of the mask, and of
the template's outline through the final pose, which judges the registration alone. A HEAD without labels
is told to be captured or not. --lines keeps what was measured so far, one head a line, and goes on from
there. Prints JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))

from hz_runtime.errors import ScanError
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.morphology import dilated, eroded, filled
from hz_runtime.model_space.resample import resample
from hz_runtime.preparation.gates import Refused
from hz_runtime.preparation.registration import scales
from hz_runtime.preparation.steps import PreparedHead, prepare_head
from hz_runtime.preparation.template import mni152
from hz_train.studies.anatomy import dice, surface_distance

CLOSING_MM = 6.0  # sulci narrower than twice this belong to a brain's outline
MEDIAN_WANTED, LEAST_WANTED = 0.96, 0.93  # Dice of the mask
Mask = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("heads", nargs="*", type=Path)
    parser.add_argument("--lines", type=Path, help="JSON lines, one a head; heads in it are not run again")
    given = parser.parse_args()
    kept = given.lines.read_text().splitlines() if given.lines and given.lines.exists() else []
    lines = [json.loads(line) for line in kept]
    for head, labels, age in asked(given.cohort, given.heads, {line["head"] for line in lines}):
        lines.append(measured(head, labels, age))
        if given.lines:
            with given.lines.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(json.dumps({**summary(lines), "machine": describe_machine(), "heads": lines}, indent=2))


def asked(
    cohort: Path, heads: list[Path], done: set[str]
) -> Iterator[tuple[Path, Path | None, float | None]]:
    """(head, its labels, its age) of what is not done yet, the oldest first."""
    with (cohort / "participants.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in sorted(rows, key=lambda row: -float(row["age"])):
        if Path(row["file"]).name not in done:
            yield cohort / row["file"], cohort / row["labels"], float(row["age"])
    yield from ((head, None, None) for head in heads if head.name not in done)


def measured(path: Path, labels: Path | None, age: float | None) -> dict[str, Any]:
    """One head: whether it passed every gate, and its outlines against the drawn one."""
    scan = read_volume(path)
    result: dict[str, Any] = {"head": path.name, "age": age, "refused": None}
    try:
        head = prepare_head(scan, mni152(), dof=12, brain_mask="template")
    except ScanError as error:
        gates = {v.gate: round(v.value, 4) for v in error.verdicts} if isinstance(error, Refused) else {}
        return {**result, "refused": error.message, "gates": gates}
    result["similarity"] = round(head.similarity, 4)
    result["scales"] = [round(scale, 3) for scale in scales(head.pose)]
    result["gates"] = {v.gate: round(v.value, 4) for v in head.verdicts}
    result["seconds"] = {step: round(took, 2) for step, took in head.seconds.items()}
    return {**result, **(outlines(scan, head, labels) if labels is not None else {})}


def outlines(scan: Volume, head: PreparedHead, labels: Path) -> dict[str, float]:
    """Dice, and mean distance of the surfaces in mm, of the mask and of the template's outline."""
    drawn = read_volume(labels)
    if drawn.shape != scan.shape or not np.allclose(drawn.affine, scan.affine, atol=1e-3):
        raise SystemExit(f"{labels.name} is not on the voxels of its head.")
    size = float(scan.spacing.mean())
    brain = closed(drawn.data > 0, round(CLOSING_MM / size))
    template = mni152()
    back = np.linalg.inv(head.pose) @ template.affine
    outline = resample(template.mask.astype(np.float32), back, scan.shape, scan.affine) > 0.5
    return {
        "mask_dice": round(dice(head.mask, brain), 4),
        "mask_surface_mm": round(size * surface_distance(head.mask, brain), 3),
        "template_dice": round(dice(outline, brain), 4),
        "template_surface_mm": round(size * surface_distance(outline, brain), 3),
    }


def closed(mask: Mask, steps: int) -> Mask:
    """The mask with its clefts and holes, in a box large enough for both."""
    wide = np.pad(mask, steps + 1)
    inner = (slice(steps + 1, -steps - 1),) * 3
    return filled(eroded(dilated(wide, steps), steps))[inner]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all heads: how many passed, and median and worst of every measure of those with labels."""
    drawn = [line for line in lines if "mask_dice" in line]
    result: dict[str, Any] = {
        "n": len(lines),
        "refused": [line["head"] for line in lines if line["refused"]],
        "with_labels": len(drawn),
    }
    for name, worst in (("dice", min), ("surface_mm", max)):
        for outline in ("mask", "template"):
            values = [line[f"{outline}_{name}"] for line in drawn]
            if values:
                result[f"{outline}_{name}"] = {
                    "median": round(statistics.median(values), 4),
                    "worst": worst(values),
                }
    found = [line["similarity"] for line in lines if not line["refused"]]
    result["similarity"] = {"median": round(statistics.median(found), 4), "least": min(found)}
    result["met"] = met(result)
    return result


def met(result: Mapping[str, Any]) -> dict[str, bool]:
    reached = result.get("mask_dice", {"median": 0.0, "worst": 0.0})
    return {
        "no head refused": not result["refused"],
        f"median Dice of the mask at least {MEDIAN_WANTED}": reached["median"] >= MEDIAN_WANTED,
        f"worst Dice of the mask at least {LEAST_WANTED}": reached["worst"] >= LEAST_WANTED,
    }


if __name__ == "__main__":
    main()
