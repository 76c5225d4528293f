"""What a buyer asks of written scans: do sites differ less, does the scanner show, is the target left alone.

Rows stand for all scans, and for those of sites that no weight of the harmonizer has seen. The normalisations
learn from the reference site's training scans alone, so that every scan of another site is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_file
from hz_train.cohort import Cohort, Scan
from hz_train.studies.combat import fit_combat
from hz_train.studies.comparison import table_rows
from hz_train.studies.discriminant import target_auc, told_sites
from hz_train.studies.estimate import balanced, estimates
from hz_train.studies.native_scans import FEATURES, LEVEL, Measures, learned, measured
from hz_train.studies.normalization import normalizations
from hz_train.studies.presets import StudySettings
from hz_train.studies.result import Column, Metric, Row, Table
from hz_train.studies.trained_harmonizer import TrainedHarmonizer
from hz_train.studies.variation import intraclass_correlation, site_distance, variation
from hz_train.studies.views import ALL

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

UNSEEN = "sites unseen in training"
COMBAT = "ComBat, tissue features"
MEAN = "N4, mean"  # whose features ComBat takes
LEAST_FOR_COMBAT = 4  # people of a site: one is left out, and a spread needs more than two
LEVELS = 400  # of a cumulative histogram
RESAMPLES = 1000
SHORT = dict(zip(FEATURES, ("GM/WM", "CSF/WM", "CNR", "WM level"), strict=True))
WRITTEN = (
    Column("distance", "Distance between sites", "", 3, "lower"),
    *(Column(f"{name}_cv", f"{title} varies", "%", 1, "lower") for name, title in SHORT.items()),
    Column("accuracy", "Site told", "", 2),
    Column("auc", "Target told, AUC", "", 2),
    Column("own_ratio", "Own GM/WM changed", "%", 1, "lower"),
    Column("own_ratio_worst", "at worst", "%", 1, "lower"),
    Column("own_level", "Own level changed", "%", 1, "lower"),
    Column("own_level_worst", "at worst", "%", 1, "lower"),
)
PARTS = tuple(
    Column(f"{name}_{part}", f"{title} {words}", "%", 1, "lower")
    for name, title in SHORT.items()
    for part, words in (("between", "between sites"), ("within", "within"))
)
MEANS = tuple(Column(name, title, "", 3) for name, title in SHORT.items())
AGREEMENT = tuple(Column(name, title, "", 2, "higher") for name, title in SHORT.items())
HOW = "volumes as written; 95 % bootstrap intervals over subjects"


@dataclass(frozen=True, eq=False)
class MethodScans:
    """The scored scans after one method.

    features : (n, 4), the level in units of the target's: mean over its scored scans of the brain's median.
    shares : (n, levels) cumulative histograms, None of a method on features.  step : between their levels.
    rows : which of the scored scans these are.
    """

    name: str
    features: F64
    rows: tuple[int, ...]
    shares: F64 | None = None
    step: float = 0.0

    @classmethod
    def of(cls, name: str, found: Sequence[Measures], of_target: Mask) -> MethodScans:
        unit = float(np.mean([m.median for m, there in zip(found, of_target, strict=True) if there]))
        features = np.stack([m.features for m in found])
        features[:, LEVEL] /= unit
        quantiles = np.stack([m.quantiles for m in found]) / unit
        # Raw scans may lie orders of magnitude apart: their histograms share their levels, too.
        levels = np.linspace(min(0.0, float(quantiles.min())), float(quantiles.max()), LEVELS)
        shares = np.stack([np.searchsorted(q, levels, side="right") / q.size for q in quantiles])
        return cls(name, features, tuple(range(len(found))), shares, float(levels[1] - levels[0]))


def written_tables(cohort: Cohort, settings: StudySettings) -> tuple[Table, ...]:
    """The tables of what --harmonizer writes, beside raw scans and normalisations; by the first seed.

    Raises UsageError where too few scans of the reference site are there to be divided, or where the
    harmonizer maps to another site.
    """
    assert settings.harmonizer is not None, "only a harmonizer that was trained before can be judged so"
    harmonizer = TrainedHarmonizer(settings.harmonizer, settings.device)
    harmonizer.map_to(settings.reference)
    training, scored = divided(cohort, settings)
    found = measured(scored, harmonizer, learned(normalizations(), training))
    of_target = np.array([s.site == settings.reference for s in scored])
    each = [MethodScans.of(name, measures, of_target) for name, measures in found.items()]
    seed, reference = settings.seeds[0], settings.reference
    after_mean = next(m for m in each if m.name == MEAN)
    if (combat := combat_features(after_mean, scored, reference)) is not None:
        each.insert(-1, combat)
    before = own_ratios(found[MEAN])
    groups = _groups(scored, harmonizer, reference)
    rows: dict[str, list[Row]] = {"written": [], "parts": [], "means": [], "rescans": []}
    for method in each:
        those = [scored[i] for i in method.rows]
        own = own_changes(method, before, those, reference)
        for place, sites in groups.items():
            varies = _variations(method, those, sites)
            shown = _separation(method, those, sites, reference) | own
            shown |= {f"{name}_cv": parts[0] for name, parts in varies.items()}
            n = len({s.subject for s in those if s.site in sites})
            rows["written"].append(Row(method.name, place, shown, n, seed, HOW))
            apart = {f"{name}_between": parts[1] for name, parts in varies.items()}
            apart |= {f"{name}_within": parts[2] for name, parts in varies.items()}
            rows["parts"].append(Row(method.name, place, apart, n, seed, HOW))
        columns = {name: method.features[:, k] for k, name in enumerate(FEATURES)}
        people = [s.subject for s in those]
        rows["means"] += table_rows(method.name, columns, [s.site for s in those], people, seed, total=ALL)
        rows["rescans"] += rescan_rows(method, those, seed)
    titles = {
        "written": ("As written", WRITTEN_CAPTION, WRITTEN),
        "parts": ("Variation between sites and within", PARTS_CAPTION, PARTS),
        "means": ("Tissues as written", MEANS_CAPTION, MEANS),
        "rescans": ("Do rescans agree as written?", RESCANS_CAPTION, AGREEMENT),
    }
    return tuple(
        Table(f"native_{name}", title, caption, columns, tuple(rows[name]))
        for name, (title, caption, columns) in titles.items()
        if rows[name]
    )


def divided(cohort: Cohort, settings: StudySettings) -> tuple[tuple[Scan, ...], tuple[Scan, ...]]:
    """(training scans of the reference site, scored ones: the rest of that site, and all of the others)."""
    own = cohort.at([settings.reference])
    training, held_out = own.split(settings.held_out, settings.seeds[0])
    if not training.scans or len(held_out.subjects) < 2:
        raise UsageError(
            f"{len(own.subjects)} subjects of {settings.reference} cannot be divided into some that "
            "normalisations learn from and two to be scored.",
            "Raise --held-out, or add scans of that site.",
        )
    others = tuple(s for s in cohort.scans if s.site != settings.reference)
    return training.scans, (*held_out.scans, *others)


def combat_features(method: MethodScans, scored: Sequence[Scan], reference: str) -> MethodScans | None:
    """ComBat on the features of a method, each person's by a fit on everybody else.

    Sites with fewer than 4 people are left out: ComBat needs scans of a site before it can say anything of
    it. None where the reference site, or every other one, is such.
    """
    sites = [s.site for s in scored]
    people = {site: {s.subject for s in scored if s.site == site} for site in set(sites)}
    finite = _complete(method)
    rows = [i for i, s in enumerate(sites) if len(people[s]) >= LEAST_FOR_COMBAT and finite[i]]
    features, names = method.features[rows], [sites[i] for i in rows]
    made = features.copy()
    subjects = np.array([scored[i].subject for i in rows])
    if reference not in names or len(set(names)) < 2:
        return None
    for person in np.unique(subjects):
        out = subjects == person
        rest = [name for name, left in zip(names, out, strict=True) if not left]
        model = fit_combat(features[~out], rest, reference)
        made[out] = model.apply(features[out], [n for n, left in zip(names, out, strict=True) if left])
    return MethodScans(COMBAT, made, tuple(rows))


def _complete(method: MethodScans) -> Mask:
    """(n,) scans with all features."""
    return np.asarray(np.isfinite(method.features).all(axis=1))


def own_ratios(flat: Sequence[Measures]) -> F64:
    """(n, 2) of scans after N4: grey over white matter, and white matter's mean over the brain's median."""
    return np.array([[m.features[0], m.features[LEVEL] / m.median] for m in flat])


def own_changes(method: MethodScans, before: F64, scans: Sequence[Scan], reference: str) -> dict[str, Metric]:
    """How far a method moves the reference site's own scans, in %: in the mean and at worst.

    before : (n, 2) `own_ratios` of all scored scans: a receive field is no contrast of the site's. A method
    that leaves scans as they are up to the unit that it gives them all, the brain's median, changes nothing.
    """
    mine = [k for k, scan in enumerate(scans) if scan.site == reference]
    after = method.features[mine][:, [0, LEVEL]]
    change = 100 * np.abs(after / before[[method.rows[k] for k in mine]] - 1)
    subjects = [scans[k].subject for k in mine]

    def statistic(weights: F64) -> F64:
        drawn = weights > 0
        return np.concatenate([weights @ change / weights.sum(), change[drawn].max(axis=0)])

    names = ("own_ratio", "own_level", "own_ratio_worst", "own_level_worst")
    return dict(zip(names, estimates(statistic, subjects, RESAMPLES), strict=True)) if mine else {}


def _groups(
    scored: Sequence[Scan], harmonizer: TrainedHarmonizer, reference: str
) -> dict[str, frozenset[str]]:
    """Which sites a row is about: all, and those that the harmonizer has not seen, where there are such."""
    everywhere = frozenset(s.site for s in scored)
    known = set(harmonizer.known_sites) | {reference}
    if harmonizer.seen:
        known |= {s.site for s in scored if sha256_file(s.path) in harmonizer.seen}
    unseen = everywhere - known
    return {ALL: everywhere} | ({UNSEEN: unseen} if unseen else {})


def _separation(
    method: MethodScans, scans: Sequence[Scan], sites: frozenset[str], reference: str
) -> dict[str, Metric]:
    """How far these sites and the reference site lie apart, and whether they can be told."""
    metrics: dict[str, Metric] = {}
    both = [k for k, s in enumerate(scans) if s.site in sites | {reference}]
    names, people = [scans[k].site for k in both], [scans[k].subject for k in both]
    if method.shares is not None:
        spread = site_distance(method.shares[both], method.step, names)
        metrics["distance"] = estimates(spread, people, RESAMPLES)[0]
    finite = _complete(method)
    both = [k for k in both if finite[k]]
    if not both:
        return metrics
    names, people = [scans[k].site for k in both], [scans[k].subject for k in both]
    rows, right = told_sites(method.features[both], names, people)
    if rows:
        named = [names[k] for k in rows]
        statistic = balanced(right, named, sorted(set(named)))
        metrics["accuracy"] = estimates(statistic, [people[k] for k in rows], RESAMPLES)[0]
    of_target = np.array([name == reference for name in names], np.bool_)
    area = target_auc(method.features[both], of_target, people, RESAMPLES)
    return metrics if area is None else metrics | {"auc": Metric(*area)}


def _variations(method: MethodScans, scans: Sequence[Scan], sites: frozenset[str]) -> dict[str, list[Metric]]:
    """By feature, over the scans of these sites: how all of them vary, the sites, and scans within sites."""
    here = [k for k, s in enumerate(scans) if s.site in sites]
    names, people = [scans[k].site for k in here], [scans[k].subject for k in here]
    features = method.features[here]
    return {
        name: estimates(variation(features[:, k], names), people, RESAMPLES)
        for k, name in enumerate(FEATURES)
    }


def rescan_rows(method: MethodScans, scans: Sequence[Scan], seed: int) -> list[Row]:
    """ICC(2,1) of each feature over the first two scans of everybody who was scanned twice."""
    pairs: dict[str, tuple[int, int]] = {}
    for i, j in combinations(range(len(scans)), 2):
        if scans[i].subject == scans[j].subject:
            pairs.setdefault(scans[i].subject, (i, j))
    if len(pairs) < 2:
        return []
    index = np.array(list(pairs.values()))

    def statistic(weights: F64) -> F64:
        return np.array([intraclass_correlation(f[index], weights) for f in method.features.T])

    found = estimates(statistic, list(pairs), RESAMPLES)
    return [Row(method.name, "all rescans", dict(zip(FEATURES, found, strict=True)), len(pairs), seed, HOW)]


def written_remark(settings: StudySettings) -> str:
    """Who scores in the tables of written scans, and how they came about, in sentences."""
    assert settings.harmonizer is not None
    return (
        f"Tables of written scans: {settings.harmonizer.name} runs as hz-run runs it, on every scan, those "
        f"of {settings.reference} among them, at the scans' own resolution. Normalisations learn from "
        f"{1 - settings.held_out:.0%} of {settings.reference}'s subjects; the others and all scans of the "
        "other sites are scored. Which sites the harmonizer was trained on it says itself. Tissues are those "
        "of label maps where every scan has one, else Otsu's three classes of the scan after N4, the same "
        "for every method."
    )


WRITTEN_CAPTION = (
    "Native volumes as hz-run writes them, guided filter and scale included, beside raw scans and "
    "normalisations of the same scans after N4. Levels are in units of the target's: every method's volumes "
    "are divided by one number, the mean over the target's scored scans of the brain's median after that "
    "method. Distance: earth mover's, between the brain histograms of two sites, the mean over all pairs, "
    "the target among them. Varies: standard deviation in % of the mean over all scans of the row, of mean "
    "grey over mean white matter, CSF over white matter, (white - grey) / pooled sd, and white matter's "
    "mean. Site told: balanced accuracy of linear discriminants on these four, one person left out, of "
    "sites with at least 3 people; sites that nothing tells apart stay below chance. Target told: AUC of "
    "the target against the rest, pairs left out, chance .5. Own: how far the target's own scans are moved "
    "from what they are after N4, mean and worst |change|; the level is white matter over what the brain's "
    "median should be. ComBat works on the four numbers, not on images: each person by a fit on everybody "
    "else, sites with at least 4 people; that each person is moved by the others makes its sites be told "
    "below chance, too."
)
PARTS_CAPTION = (
    "Components of variance of a one-way random model (analysis of variance, a negative one is 0), as "
    "coefficients of variation. Between sites includes what their people differ in; within, age above all."
)
MEANS_CAPTION = (
    "Means over the scans of each site, the level in units of the target's median. A harmonizer that lands "
    "on its target leaves the target's line where it is after N4 and brings the others there, as far as "
    "their people are alike."
)
RESCANS_CAPTION = (
    "Intraclass correlation, ICC(2,1) of Shrout & Fleiss 1979: absolute agreement of two scans of the same "
    "people. It falls where people differ less, too."
)
