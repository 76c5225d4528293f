"""Held-out scans after a method, against what is known of the same head: its scan, its truth, its rescans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs
from hz_train.studies.anatomy import Kept, kept, kept_of_labels, tissue_volumes, tissues
from hz_train.studies.baselines import Raw, foreground
from hz_train.studies.estimate import by_site, estimates
from hz_train.studies.overlap import distances
from hz_train.studies.result import Column, Row
from hz_train.studies.similarity import mean_absolute_error, ssim
from hz_train.studies.truth import NAME
from hz_train.studies.views import OTHERS, flat_blocks

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

BETWEEN = "between sites"
OWN, LABELS = "own raw scan", "label map"  # what anatomy is compared with, besides the truth
HOW = "held-out scans; 95 % bootstrap intervals over subjects"
PAIRED = (
    Column("error", "Mean absolute error", "", 4, "lower"),
    Column("ratio", "Error / raw error", "", 3, "lower"),
    Column("ssim", "SSIM", "", 4, "higher"),
)
ANATOMY = (
    Column("csf", "CSF", "%", 2),
    Column("grey", "Grey matter", "%", 2),
    Column("white", "White matter", "%", 2),
    Column("volume", "Mean |volume change|", "%", 2, "lower"),
    Column("boundary", "White surface", "voxels", 3, "lower"),
    Column("dice", "White Dice", "", 4, "higher"),
    Column("edges", "Edge correlation", "", 4, "higher"),
)
RESCANS = (
    Column("volume", "Tissue volumes differ", "%", 2, "lower"),
    Column("gap", "Mean |difference|", "", 4, "lower"),
    Column("ssim", "SSIM", "", 4, "higher"),
    Column("fingerprint", "Distance / strangers'", "", 3, "lower"),
)


@dataclass(frozen=True)
class Known:
    """What the held-out scans of one seed are compared with.

    raw : the scans as they are; masks : (n, D, H, W) their foreground.
    truth, labels : by scan's path, (D, H, W); without those the cohort does not have.
    """

    raw: ModelInputs
    masks: Mask
    reference: str
    truth: Mapping[Path, F32]
    labels: Mapping[Path, U8]

    @classmethod
    def of(
        cls, test: ModelInputs, reference: str, truth: Mapping[Path, F32], labels: Mapping[Path, U8]
    ) -> Known:
        return cls(test, np.stack([foreground(v) for v in test.grids]), reference, truth, labels)

    @property
    def others(self) -> list[str]:
        """Sites besides the reference."""
        return [site for site in Cohort(self.raw.scans).sites if site != self.reference]

    def at_others(self, among: Mapping[Path, object] | None = None) -> list[int]:
        """Rows of scans of the other sites, of those only that are among these."""
        scans = enumerate(self.raw.scans)
        return [i for i, s in scans if s.site != self.reference and (among is None or s.path in among)]


def table_rows(
    method: str,
    columns: Mapping[str, F64],
    sites: Sequence[str],
    subjects: Sequence[str],
    seed: int,
    below: Mapping[str, F64] | None = None,
    total: str = OTHERS,
    more: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows of one value a scan and column: all sites together, where there are several, then each.

    columns : by metric, (n,).  below : denominators, by metric, for a ratio of means.  more : Row.columns.
    """
    names = sorted(set(sites))
    known = below or {}
    found = {m: estimates(by_site(v, sites, names, known.get(m)), subjects) for m, v in columns.items()}
    rows = []
    for k, place in enumerate([total, *names]):
        people = {p for p, s in zip(subjects, sites, strict=True) if k == 0 or s == place}
        metrics = {metric: values[k] for metric, values in found.items()}
        rows.append(Row(method, place, metrics, len(people), seed, HOW, more or {}))
    return rows if len(names) > 1 else rows[1:]


def paired_rows(method: str, made: F32, known: Known, seed: int) -> list[Row]:
    """Error against the truth, inside the truth's brain: mean |made - truth|, as a share of raw's, and SSIM.

    made : (n, D, H, W) the held-out scans after the method. Scans of the reference site are left out: their
    raw error is 0. Rows are empty without truth.
    """
    rows = known.at_others(known.truth)
    if not rows or method == NAME:
        return []
    error, before, like = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    for k, i in enumerate(rows):
        truth = known.truth[known.raw.scans[i].path]
        mask = foreground(truth)
        error[k] = mean_absolute_error(made[i], truth, mask)
        before[k] = mean_absolute_error(known.raw.grids[i], truth, mask)
        like[k] = ssim(made[i], truth, mask)
    columns = {"error": error, "ratio": error, "ssim": like}
    return table_rows(method, columns, *_who(known, rows), seed, {"ratio": before})


def anatomy_rows(method: str, made: F32, known: Known, seed: int) -> list[Row]:
    """Tissues of the held-out scans after a method, against their own raw scan, the truth, and label maps."""
    found: list[Row] = []
    if method != Raw.name:
        rows = known.at_others()
        each = [kept(made[i], known.raw.grids[i], known.masks[i]) for i in rows]
        found += _anatomy(method, each, known, rows, seed, OWN)
    rows = known.at_others(known.truth)
    if rows and method != NAME:
        wanted = [known.truth[known.raw.scans[i].path] for i in rows]
        each = [kept(made[i], t, foreground(t)) for i, t in zip(rows, wanted, strict=True)]
        found += _anatomy(method, each, known, rows, seed, NAME)
    rows = known.at_others(known.labels)
    if rows:
        each = [kept_of_labels(made[i], known.labels[known.raw.scans[i].path]) for i in rows]
        found += _anatomy(method, each, known, rows, seed, LABELS)
    return found


def _anatomy(
    method: str, each: Sequence[Kept], known: Known, rows: Sequence[int], seed: int, what: str
) -> list[Row]:
    change = np.stack([k.change for k in each])
    columns = {
        "csf": change[:, 0],
        "grey": change[:, 1],
        "white": change[:, 2],
        "volume": np.abs(change).mean(axis=1),
        "boundary": np.array([k.boundary for k in each]),
        "dice": np.array([k.white_dice for k in each]),
        "edges": np.array([k.edges for k in each]),
    }
    if (
        what == LABELS
    ):  # which have no edges, and of which CSF can be so little that its percents drown the rest
        del columns["edges"], columns["volume"]
    return table_rows(method, columns, *_who(known, rows), seed, more={"compared with": what})


def rescan_rows(method: str, made: F32, known: Known, seed: int) -> list[Row]:
    """How alike two scans of one held-out subject are, at one site or at two; empty without rescans.

    Tissue volumes (mean over tissues of |a - b| in % of their mean) and the fingerprint need no
    registration. The fingerprint is the distance of the two scans' block means, as a share of their mean
    distance to strangers at the other scan's site: below 1 while a person is more like himself than like
    others. Mean |difference| and SSIM hold the heads' poses against the method, equally for all methods.
    """
    scans = known.raw.scans
    pairs = [(i, j) for i, j in combinations(range(len(scans)), 2) if scans[i].subject == scans[j].subject]
    if not pairs or method == NAME:
        return []
    spread = distances(flat_blocks(made))
    columns: dict[str, list[float]] = {column.name: [] for column in RESCANS}
    for i, j in pairs:
        both = known.masks[i] & known.masks[j]
        a, b = (tissue_volumes(tissues(made[k], known.masks[k])) for k in (i, j))
        columns["volume"].append(float(100 * np.mean(np.abs(a - b) / np.maximum((a + b) / 2, 1))))
        columns["gap"].append(mean_absolute_error(made[i], made[j], both))
        columns["ssim"].append(ssim(made[i], made[j], both))
        columns["fingerprint"].append(_fingerprint(spread, known.raw, i, j))
    kinds = [scans[i].site if scans[i].site == scans[j].site else BETWEEN for i, j in pairs]
    values = {name: np.array(v) for name, v in columns.items()}
    return table_rows(method, values, kinds, [scans[i].subject for i, _ in pairs], seed, total="all rescans")


def _fingerprint(spread: F64, raw: ModelInputs, i: int, j: int) -> float:
    def strangers(scan: int, other: int) -> float:
        there = [
            k
            for k, s in enumerate(raw.scans)
            if s.site == raw.scans[other].site and s.subject != raw.scans[scan].subject
        ]
        return float(spread[scan, there].mean()) if there else float("nan")

    usual = (strangers(i, j) + strangers(j, i)) / 2
    return float(spread[i, j]) / usual if usual > 0 else float("nan")


def _who(known: Known, rows: Sequence[int]) -> tuple[list[str], list[str]]:
    scans = [known.raw.scans[i] for i in rows]
    return [s.site for s in scans], [s.subject for s in scans]
