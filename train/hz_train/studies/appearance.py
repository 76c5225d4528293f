"""Bashyam 2020, Figure 1, and Komandur 2023, Figure 2: how sites look, before and after.

Intensity histograms by tissue, voxelwise mean and sd maps, and t-SNE maps of 8 x 8 x 8 volumes are what the
papers show. Each picture has a number beside it, because all of them can be read either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hz_train.cohort import Cohort, Scan
from hz_train.datasets import ModelInputs, describe
from hz_train.scores import Statistic
from hz_train.studies import figures
from hz_train.studies.anatomy import TISSUES, tissues
from hz_train.studies.baselines import foreground
from hz_train.studies.estimate import estimates
from hz_train.studies.held_out import held_out_remark
from hz_train.studies.native_appearance import written_remark, written_tables
from hz_train.studies.overlap import COMPONENTS, NEIGHBOURS, Energy, Neighbours, distances, embed, principal
from hz_train.studies.presets import StudySettings, split_cohort
from hz_train.studies.result import Column, Figure, Row, StudyResult, Table
from hz_train.studies.tables import summarised
from hz_train.studies.views import ALL, OTHERS, View, check_sites, compared, divisible, flat_blocks, views

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

BINS = 100
MAP_RESAMPLES = 200  # each one averages whole volumes
BRAIN = "whole brain"
PLACES = (*TISSUES, BRAIN)
OVERLAP = (
    # Neither is "better" where it is lower: around 0, lower is chance.
    Column("purity", "Neighbour purity", "", 3),
    Column("energy", "Energy coefficient", "", 3),
)
LIKENESS = (
    Column("w0", "CSF", "", 3, "lower"),
    Column("w1", "Grey", "", 3, "lower"),
    Column("w2", "White", "", 3, "lower"),
    Column("w3", "Brain", "", 3, "lower"),
    Column("mean", "Mean map", "", 3, "lower"),
    Column("sd", "Sd map", "", 3, "lower"),
)


@dataclass(frozen=True)
class Scored:
    """The held-out side of one seed.

    labels : (n, D, H, W) tissues of the raw scans, by which every method's intensities are sorted; one
    division for all, so that a method is not rewarded for moving voxels from one tissue to another.
    brain : (D, H, W) voxels that are foreground in at least half of the raw scans.
    """

    scans: tuple[Scan, ...]
    labels: U8
    brain: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def of(cls, test: ModelInputs) -> Scored:
        masks = np.stack([foreground(volume) for volume in test.grids])
        labels = np.stack([tissues(v, m) for v, m in zip(test.grids, masks, strict=True)])
        return cls(test.scans, labels, masks.mean(axis=0) >= 0.5, Cohort(test.scans).sites)

    @property
    def sites(self) -> list[str]:
        return [s.site for s in self.scans]

    @property
    def subjects(self) -> list[str]:
        return [s.subject for s in self.scans]

    def count(self, sites: Sequence[str]) -> int:
        """Subjects at these sites."""
        return len({s.subject for s in self.scans if s.site in sites})


def check(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where the study cannot be done, before a scan is read."""
    check_sites(divisible(cohort, settings), settings)


def appearance(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
    """Run the study on held-out scans. Raises UsageError as `check`, and without its packages."""
    everybody = Cohort(inputs.scans)
    check(everybody, settings)
    inputs = inputs.of(divisible(everybody, settings))
    overlap: list[Row] = []
    likeness: list[Row] = []
    pictures: list[Figure] = []
    for seed in settings.seeds:
        training, test = split_cohort(inputs, settings.held_out, seed)
        scored = Scored.of(test)
        drawn = _Drawn(scored, settings, seed)
        for view in views(compared(settings, seed), training, test, settings.reference):
            overlap += overlap_rows(view, scored, settings.reference, seed)
            if not view.features:
                likeness += likeness_rows(view, scored, settings.reference, seed)
            if seed == settings.seeds[0]:
                drawn.add(view)
        if seed == settings.seeds[0]:
            pictures = drawn.figures()
    return _result(
        (
            *(() if settings.harmonizer is None else written_tables(everybody, settings)),
            Table("overlap", "Overlap of sites", OVERLAP_CAPTION, OVERLAP, tuple(summarised(overlap))),
            Table(
                "likeness",
                f"Distance from {settings.reference}",
                LIKENESS_CAPTION,
                LIKENESS,
                tuple(summarised(likeness)),
            ),
        ),
        everybody,
        settings,
        (held_out_remark(settings), *([] if settings.harmonizer is None else [written_remark(settings)])),
        tuple(pictures),
    )


def written(cohort: Cohort, settings: StudySettings) -> StudyResult:
    """Only what the study says of the volumes that a --harmonizer writes. Raises as `written_tables`."""
    return _result(written_tables(cohort, settings), cohort, settings, (written_remark(settings),))


def _result(
    tables: tuple[Table, ...],
    cohort: Cohort,
    settings: StudySettings,
    remarks: tuple[str, ...],
    pictures: tuple[Figure, ...] = (),
) -> StudyResult:
    return StudyResult(
        study="appearance",
        title="Appearance: histograms, mean and sd maps, and overlap of sites",
        question=f"Do scans of other sites look like those of {settings.reference} once they are harmonized?",
        tables=tables,
        figures=pictures,
        settings=settings.described(),
        cohort=describe(cohort),
        remarks=(*remarks, PEOPLE_REMARK, SMALL_REMARK),
    )


def overlap_rows(view: View, scored: Scored, reference: str, seed: int) -> list[Row]:
    """Neighbour purity and energy coefficient of block means, overall and by site."""
    features = flat_blocks(view.test)
    people = scored.sites, scored.subjects, scored.names
    purity = Neighbours.of(distances(features), *people)
    energy = Energy.of(distances(principal(features)), *people, reference)
    size = len(scored.names) + 1
    found = estimates(lambda w: np.concatenate([purity(w), energy(w)]), scored.subjects)
    rows = []
    for k, place in enumerate([ALL, *scored.names]):
        sites = scored.names if place == ALL else [place]
        metrics = {"purity": found[k], "energy": found[size + k]}
        rows.append(Row(view.name, place, metrics, scored.count(sites), seed, _how(purity.k)))
    return rows


def likeness_rows(view: View, scored: Scored, reference: str, seed: int) -> list[Row]:
    """Distances of every other site's histograms and maps from the reference site's."""
    others = [name for name in scored.names if name != reference]
    span = _span(view.test, scored.brain)
    columns = [
        estimates(
            histogram_gaps(cumulated(view.test, labels, span), span, scored, reference), scored.subjects
        )
        for labels in _places(scored.labels)
    ]
    maps = estimates(map_gaps(view.test[:, scored.brain], scored, reference), scored.subjects, MAP_RESAMPLES)
    columns += [maps[: len(others) + 1], maps[len(others) + 1 :]]
    rows = []
    for k, place in enumerate([OTHERS, *others]):
        metrics = {column.name: found[k] for column, found in zip(LIKENESS, columns, strict=True)}
        sites = others if place == OTHERS else [place]
        rows.append(Row(view.name, place, metrics, scored.count(sites), seed, _how()))
    return rows if len(others) > 1 else rows[1:]


def _places(labels: U8) -> list[NDArray[np.bool_]]:
    return [*(labels == k for k in (1, 2, 3)), labels > 0]


def _span(volumes: F32, brain: NDArray[np.bool_]) -> tuple[float, float]:
    """[0, 1], or further where a method answers outside it."""
    inside = volumes[:, brain]
    return min(0.0, float(inside.min())), max(1.0, float(inside.max()))


def cumulated(volumes: F32, masks: NDArray[np.bool_], span: tuple[float, float], bins: int = BINS) -> F64:
    """(n, bins) cumulative histograms of the voxels in each mask, each up to 1; nan where a mask is empty."""
    counts = np.stack([np.histogram(v[m], bins, span)[0] for v, m in zip(volumes, masks, strict=True)])
    with np.errstate(invalid="ignore"):
        return np.asarray(np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True))


def histogram_gaps(shares: F64, span: tuple[float, float], scored: Scored, reference: str) -> Statistic:
    """Earth mover's distance of each other site's histogram from the reference's, their mean first.

    In one dimension it is the area between two cumulative histograms (Vallender 1974), here those of the
    sites: the mean over their scans of `cumulated`, so that large heads do not count more. In units of
    intensity.
    """
    members = _members(scored)
    at = scored.names.index(reference)
    width = (span[1] - span[0]) / shares.shape[1]
    known = np.isfinite(shares[:, 0])
    filled = np.nan_to_num(shares)

    def statistic(weights: F64) -> F64:
        drawn = members * (weights * known)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = drawn @ filled / drawn.sum(axis=1, keepdims=True)
        return _mean_first(np.delete(np.abs(mean - mean[at]).sum(axis=1) * width, at))

    return statistic


def map_gaps(inside: F32, scored: Scored, reference: str) -> Statistic:
    """Mean |difference| of the sites' voxelwise mean maps, then of their sd maps, from the reference's.

    inside : (n, voxels) of the brain. A site's maps are over its scans; sites of few scans have noisy maps
    and so lie apart even where nothing tells them apart.
    """
    members = _members(scored)
    at = scored.names.index(reference)
    values = inside.astype(np.float32)
    squares = np.square(values)

    def statistic(weights: F64) -> F64:
        drawn = (members * weights).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = drawn / drawn.sum(axis=1, keepdims=True)
        mean = share @ values
        sd = np.sqrt(np.maximum(share @ squares - np.square(mean), 0))
        gaps = [np.delete(np.abs(m - m[at]).mean(axis=1, dtype=np.float64), at) for m in (mean, sd)]
        return np.concatenate([_mean_first(gap) for gap in gaps])

    return statistic


def _members(scored: Scored) -> F64:
    return np.stack([[s == name for s in scored.sites] for name in scored.names]).astype(np.float64)


def _mean_first(values: F64) -> F64:
    known = values[np.isfinite(values)]
    return np.concatenate([[known.mean() if known.size else np.nan], values])


class _Drawn:
    """What the pictures need of each method, kept while the volumes are not."""

    def __init__(self, scored: Scored, settings: StudySettings, seed: int) -> None:
        self.scored, self.reference, self.seed = scored, settings.reference, seed
        self.mirrored = settings.recipe.mirrored
        self.histograms: dict[str, list[F64]] = {}
        self.maps: dict[str, tuple[F32, F32]] = {}
        self.points: dict[str, F64] = {}

    def add(self, view: View) -> None:
        self.points[view.name] = embed(flat_blocks(view.test), self.seed)
        if view.features:
            return
        self.histograms[view.name] = [
            np.diff(cumulated(view.test, masks, (0.0, 1.0)), axis=1, prepend=0.0)
            for masks in _places(self.scored.labels)
        ]
        sites = np.asarray(self.scored.sites)
        each = [view.test[sites == name] for name in self.scored.names]
        self.maps[view.name] = (
            np.stack([v.mean(axis=0) for v in each]),
            np.stack([v.std(axis=0) for v in each]),
        )

    def figures(self) -> list[Figure]:
        names, sites = self.scored.names, self.scored.sites
        maps = {name: m for name, m in self.maps.items() if name in _mapped(self.maps)}
        return [
            figures.histograms(self.histograms, PLACES, sites, names, self.reference),
            figures.maps(maps, names, self.scored.brain, self.reference, self.mirrored),
            figures.embeddings(self.points, sites, names, self.reference, self.seed),
        ]


def _mapped(found: Mapping[str, object]) -> list[str]:
    """Raw and the harmonizers: maps of the other baselines would fill the page."""
    return [name for name in found if name == "raw" or "CycleGAN" in name]


def _how(k: int | None = None) -> str:
    text = "held-out scans; 95 % bootstrap intervals over subjects"
    return text if k is None else f"{text}; {k} nearest neighbours of other subjects"


OVERLAP_CAPTION = (
    "On means of 8 x 8 x 8 blocks. Neighbour purity: how many of a scan's nearest neighbours (up to "
    f"{NEIGHBOURS}) are of its own site, from 0, as many as chance gives, to 1, all. Energy coefficient: "
    f"distance of a site's distribution from the reference site's in the first {COMPONENTS} principal "
    "components, from 0, equal, to 1 (for the reference site itself, and overall: the mean over the "
    "others). Both scatter around 0 for sites that nothing tells apart."
)
LIKENESS_CAPTION = (
    "CSF to brain: earth mover's distance between the mean histograms of a site and of the reference site, "
    "in units of intensity, by tissue (divided once, on the raw scan, by Otsu thresholds). Maps: mean "
    "absolute difference inside the brain of the sites' voxelwise means and standard deviations."
)
PEOPLE_REMARK = (
    "Sites differ in who was scanned, too: where ages, sexes or diagnoses are unequal, alike scanners would "
    "not give equal sites, and a method that makes them equal has removed some of the people as well."
)
SMALL_REMARK = (
    "Distances between small groups are never 0: compare a method with raw and with the simple methods, not "
    "with 0. Bootstrap intervals of distances lie a little high for the same reason."
)
