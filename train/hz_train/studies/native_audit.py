"""What becomes of anatomy in written scans: lesions, atrophy of a known size, and the volumes of tissues.

Asked of a harmonizer that was trained before, of every scan of the cohort, since nothing is fitted here. One
segmentation serves raw and written scans: N4, Otsu's three classes, mixed voxels in parts, inside one
outline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hz_train.cohort import Cohort, Scan
from hz_train.scores import Statistic
from hz_train.studies import atrophy, lesions
from hz_train.studies.anatomy import (
    CSF,
    GREY,
    TISSUES,
    WHITE,
    partial_volumes,
    percent_change,
    tissue_means,
)
from hz_train.studies.baselines import Raw
from hz_train.studies.estimate import estimates
from hz_train.studies.native_scans import NativeScan, over_scans, without_field
from hz_train.studies.presets import StudySettings
from hz_train.studies.result import Column, Metric, Row, Table
from hz_train.studies.trained_harmonizer import TrainedHarmonizer
from hz_train.studies.views import ALL

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

PLANTED_IN = 20  # people of each site: six more volumes of each are harmonized
RESAMPLES = 1000
WORST = "_worst"
BRAIN = "brain"
LEVELS_ALONE = "levels alone"
HOW = "volumes as written; 95 % bootstrap intervals over subjects"
LESIONS = (
    Column("volume", "Volume kept", "", 3),
    Column("volume_off", "Off, mean", "%", 1, "lower"),
    Column("volume_off_worst", "worst", "%", 1, "lower"),
    Column("contrast", "Contrast kept", "", 3),
    Column("contrast_off", "Off, mean", "%", 1, "lower"),
    Column("contrast_off_worst", "worst", "%", 1, "lower"),
)
ATROPHY = (
    Column("recovered", "Change found", "%", 2),
    Column("off", "Off by, mean", "points", 2, "lower"),
    Column("off_worst", "worst", "points", 2, "lower"),
)
SHORT = dict(zip((*TISSUES, BRAIN), ("csf", "grey", "white", "brain"), strict=True))
VOLUMES = tuple(
    Column(f"{name}{part}", f"{title[0].upper()}{title[1:]}{words}", "%", 1, "lower" if part else "")
    for title, name in SHORT.items()
    for part, words in (("", ""), ("_off", ", |change|"), ("_off_worst", ", worst"))
)


@dataclass(frozen=True)
class Findings:
    """What was found in one scan.

    volumes : by method, (4,) % change of CSF, grey and white matter, and of the latter two together, raw to
        written.
    kept : (kind and size) -> (volume, contrast) as shares of what they are in the raw scan.
    recovered : by method, % change of the brain's volume where atrophy was planted; empty where it was not.
    """

    volumes: Mapping[str, F64]
    kept: Mapping[str, tuple[float, float]]
    recovered: Mapping[str, float]


def native_tables(cohort: Cohort, settings: StudySettings) -> tuple[Table, ...]:
    """Lesions, atrophy and tissue volumes of the scans that --harmonizer writes.

    Raises UsageError where the harmonizer maps to another site.
    """
    assert settings.harmonizer is not None, "only a harmonizer that was trained before can be judged so"
    harmonizer = TrainedHarmonizer(settings.harmonizer, settings.device)
    harmonizer.map_to(settings.reference)
    chosen = {scan.path for scan in cohort.first(PLANTED_IN).scans}
    found = over_scans(
        lambda scan: findings(scan, harmonizer, scan.path in chosen), cohort.scans, "planted and written"
    )
    scans, seed, name = cohort.scans, settings.seeds[0], harmonizer.name
    return tuple(
        Table(f"native_{table}", title, caption, columns, tuple(rows))
        for table, title, caption, columns, rows in (
            (
                "lesions",
                "Do lesions survive?",
                LESIONS_CAPTION,
                LESIONS,
                lesion_rows(name, found, scans, seed),
            ),
            ("atrophy", "Is atrophy recovered?", ATROPHY_CAPTION, ATROPHY, atrophy_rows(found, scans, seed)),
            (
                "volumes",
                "Tissues as written",
                VOLUMES_CAPTION,
                VOLUMES,
                volume_rows(found, scans, seed),
            ),
        )
        if rows
    )


def findings(scan: Scan, harmonizer: TrainedHarmonizer, plant: bool) -> Findings:
    """Everything of one scan.  plant : lesions and atrophy, too.  Raises as `NativeScan.read` and hz-run."""
    native = NativeScan.read(scan, scan.labels is not None)
    sound = native.sound
    written = harmonizer.written(sound)
    flat = without_field(replace(sound, data=np.asfortranarray(written)))
    before = segmented(native.flat, native.brain)
    change = {
        harmonizer.name: percent_change(segmented(flat, native.brain), before),
        LEVELS_ALONE: percent_change(segmented(at_levels_of(flat, native), native.brain), before),
    }
    if not plant:
        return Findings(change, {}, {})
    return Findings(change, kept_lesions(native, written, harmonizer), recovered_atrophy(native, harmonizer))


def kept_lesions(
    native: NativeScan, written: F32, harmonizer: TrainedHarmonizer
) -> dict[str, tuple[float, float]]:
    """Each planted lesion's volume and contrast in the written scan, as shares of those in the raw one."""
    sound = native.sound
    white = native.labels == WHITE
    balls = lesions.place(white, sound.spacing)
    for ball in balls:
        white[ball.box] &= ball.coverage == 0
    found = {}
    for kind in lesions.LEVELS:
        planted = lesions.planted(sound.data, balls, white, kind)
        after = harmonizer.written(replace(sound, data=planted))
        for ball in balls:
            raw = lesions.measure(planted, sound.data, ball, white)
            made = lesions.measure(after, written, ball, white)
            if raw.cm3 > 0 and raw.contrast:
                found[f"{kind}, {ball.radius:g} mm"] = made.cm3 / raw.cm3, made.contrast / raw.contrast
    return found


def recovered_atrophy(native: NativeScan, harmonizer: TrainedHarmonizer) -> dict[str, float]:
    """% change of grey and white matter together, in raw and in written scans.

    The tissues' means are those of the first scan for both, as in segmentations of one person's series: found
    anew, thresholds move with the shares of the tissues, and half of a small change is lost in any scan.
    """
    sound = native.sound
    fluid = sound.data[native.labels == CSF]
    # The middle of fluid's darker half: most voxels of the brighter one hold tissue as well.
    level = float(np.percentile(fluid, 25)) if fluid.size else 0.0
    first, second, outline = atrophy.atrophied(sound.data, sound.affine, native.brain, level)
    scans = [np.asfortranarray(data) for data in (first, second)]
    written = [harmonizer.written(replace(sound, data=data)) for data in scans]
    found = {}
    for method, pair in ((Raw.name, scans), (harmonizer.name, written)):
        means = tissue_means(pair[0], outline)
        before, after = (float(partial_volumes(made, outline, means)[1:].sum()) for made in pair)
        found[method] = 100 * (after - before) / before
    return found


def at_levels_of(flat: F32, native: NativeScan) -> F32:
    """The raw scan through straight pieces that bring its tissues' medians to those of the written scan.

    What a segmentation makes of that differs from the raw scan by contrast alone. Brighter than white matter
    it goes on as between grey and white.
    """
    before, after = (
        np.array([0.0, *(np.median(scan[native.labels == tissue]) for tissue in (CSF, GREY, WHITE))])
        for scan in (native.flat, flat)
    )
    beyond = max(float(native.flat.max()), float(before[-1]) + 1)
    slope = (after[-1] - after[-2]) / (before[-1] - before[-2])
    knots = np.append(before, beyond), np.append(after, after[-1] + slope * (beyond - before[-1]))
    curved: F32 = np.interp(native.flat, *knots).astype(np.float32)
    return curved


def segmented(flat: F32, brain: Mask) -> F64:
    """(4,) voxels of CSF, grey and white matter and of the latter two, of a volume without its field."""
    volumes = partial_volumes(flat, brain)
    return np.append(volumes, volumes[1] + volumes[2])


def lesion_rows(method: str, found: Sequence[Findings], scans: Sequence[Scan], seed: int) -> list[Row]:
    """By kind and size, over the people it was planted in."""
    rows = []
    for lesion in dict.fromkeys(name for f in found for name in f.kept):
        those = [(f.kept[lesion], s) for f, s in zip(found, scans, strict=True) if lesion in f.kept]
        kept = np.array([k for k, _ in those])
        off = 100 * (kept - 1)
        values = {"volume": kept[:, 0], "volume_off": off[:, 0]}
        values |= {"contrast": kept[:, 1], "contrast_off": off[:, 1]}
        people = [s for _, s in those]
        rows += summary_rows(method, values, people, seed, {"lesion": lesion}, by_site=False)
    return rows


def atrophy_rows(found: Sequence[Findings], scans: Sequence[Scan], seed: int) -> list[Row]:
    """By method, over the people it was planted in, and by site."""
    those = [(f.recovered, s) for f, s in zip(found, scans, strict=True) if f.recovered]
    rows = []
    for method in those[0][0] if those else ():
        change = np.array([recovered[method] for recovered, _ in those])
        values = {"recovered": change, "off": change - atrophy.PLANTED}
        rows += summary_rows(method, values, [s for _, s in those], seed)
    return rows


def volume_rows(found: Sequence[Findings], scans: Sequence[Scan], seed: int) -> list[Row]:
    """By method, over all scans, and by site."""
    rows = []
    for method in found[0].volumes:
        change = np.stack([f.volumes[method] for f in found])
        values: dict[str, F64] = {}
        for k, name in enumerate(SHORT.values()):
            values |= {name: change[:, k], f"{name}_off": change[:, k]}
        rows += summary_rows(method, values, scans, seed)
    return rows


def summary_rows(
    method: str,
    values: Mapping[str, F64],
    scans: Sequence[Scan],
    seed: int,
    more: Mapping[str, str] | None = None,
    by_site: bool = True,
) -> list[Row]:
    """Means of values, one a scan; of names that end in "_off" the mean and the worst of what they are off
    by."""
    sites = sorted({s.site for s in scans})
    rows = []
    for place in [ALL, *(sites if by_site and len(sites) > 1 else [])]:
        here = np.array([place in (ALL, s.site) for s in scans])
        people = [s.subject for s, there in zip(scans, here, strict=True) if there]
        metrics: dict[str, Metric] = {}
        for name, value in values.items():
            off = name.endswith("off")
            kept = np.abs(value[here]) if off else value[here]
            mean, worst = estimates(_mean_and_worst(kept), people, RESAMPLES)
            metrics |= {name: mean} | ({f"{name}{WORST}": worst} if off else {})
        rows.append(Row(method, place, metrics, len(set(people)), seed, HOW, more or {}))
    return rows


def _mean_and_worst(values: F64) -> Statistic:
    known = np.isfinite(values)

    def statistic(weights: F64) -> F64:
        drawn = known & (weights > 0)
        if not drawn.any():
            return np.full(2, np.nan)
        mean = float(weights[drawn] @ values[drawn]) / float(weights[drawn].sum())
        return np.array([mean, values[drawn].max()])

    return statistic


LESIONS_CAPTION = (
    f"Balls planted in white matter before the scan is harmonized, dark ({lesions.LEVELS['dark']:g} of the "
    f"white matter around) and bright ({lesions.LEVELS['bright']:g}), by radius, in up to {PLANTED_IN} "
    f"people of each site. Volume: where the written scan with the lesion differs from that without by at "
    f"least half of what it does in the lesion's core, over the same in the raw scan. Contrast: core "
    f"against the white matter 2 to 8 mm away, over the same in the raw scan. 1 : all is kept."
)
ATROPHY_CAPTION = (
    f"The same brain twice, the second time with {-atrophy.PLANTED:g} % less of every tissue and fluid "
    f"around it, raw and written, in up to {PLANTED_IN} people of each site: the change of grey and white "
    f"matter together, both scans divided by the first one's tissues. {atrophy.PLANTED:g} % was planted."
)
VOLUMES_CAPTION = (
    "Change of each tissue's volume from the raw scan to the written one, by the one segmentation (N4, "
    "Otsu's three classes, mixed voxels in parts) inside one outline: mean, mean |change|, and worst "
    "person. Brain is grey and white matter together. Where fluid is little, its percents are large. "
    f"'{LEVELS_ALONE}' is the raw scan at the written scan's levels, with straight lines between: what "
    "contrast alone does to this segmentation."
)
