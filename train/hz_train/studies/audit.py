"""What neither paper asked: can the site still be told, is the scan right, is the anatomy still there.

A harmonizer can look right and be wrong: it may fool the classifier it is judged by, and it may move tissue.
Both are asked here of scans that nothing was fitted on, beside simple methods, and beside the truth where a
cohort has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs, describe
from hz_train.studies import figures
from hz_train.studies.anatomy import WHITE, tissues
from hz_train.studies.charts import COLOURS, intervals
from hz_train.studies.comparison import (
    ANATOMY,
    OWN,
    PAIRED,
    RESCANS,
    Known,
    anatomy_rows,
    paired_rows,
    rescan_rows,
)
from hz_train.studies.held_out import held_out_remark
from hz_train.studies.native_audit import native_tables
from hz_train.studies.predictability import ACCURACY, CLASSIFIERS, PLANS, REAL, RECALL, AuditPlan, SiteAudit
from hz_train.studies.presets import StudySettings, split_cohort
from hz_train.studies.result import Column, Figure, Row, StudyResult, Table
from hz_train.studies.tables import summarised
from hz_train.studies.truth import NAME, label_maps, truths
from hz_train.studies.views import View, check_sites, compared, divisible, views

F32 = NDArray[np.float32]


def check(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where the study cannot be done, before a scan is read."""
    check_sites(divisible(cohort, settings), settings)


def audit(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
    """Run the study on held-out scans. Raises UsageError as `check`, and without matplotlib."""
    everybody = Cohort(inputs.scans)
    check(everybody, settings)
    inputs = inputs.of(divisible(everybody, settings))
    plan = PLANS.get(str(settings.changes.get("preset")), AuditPlan())
    truth = truths(inputs, settings.recipe, settings.preset.n4)
    labels = label_maps(inputs, settings.recipe)
    found: dict[str, list[Row]] = {name: [] for name in ("site", "recall", "paired", "anatomy", "rescans")}
    pictures: list[Figure] = []
    for seed in settings.seeds:
        training, test = split_cohort(inputs, settings.held_out, seed)
        known = Known.of(test, settings.reference, truth, labels)
        site_audit = SiteAudit(training, test, plan, seed, settings.device)
        shown: dict[str, F32] = {}
        made = views(compared(settings, seed), training, test, settings.reference)
        for view in _truth_last(made, training, test, truth):
            accuracy, recall = site_audit.rows(view)
            found["site"] += accuracy
            found["recall"] += recall
            if not view.features:
                found["paired"] += paired_rows(view.name, view.test, known, seed)
                found["anatomy"] += anatomy_rows(view.name, view.test, known, seed)
                found["rescans"] += rescan_rows(view.name, view.test, known, seed)
                shown[view.name] = view.test[_examples(test, known.others)]
        if seed == settings.seeds[0]:
            pictures = [_drawn_examples(shown, known, settings.recipe.mirrored)]
    rows = {name: tuple(summarised(each)) for name, each in found.items()}
    native = () if settings.harmonizer is None else native_tables(everybody, settings)
    return StudyResult(
        study="audit",
        title=TITLE,
        question=_question(settings),
        tables=(*native, *_tables(rows)),
        figures=(*_charts(rows, 1 / len(Cohort(inputs.scans).sites)), *pictures),
        settings={**settings.described(), "classifiers": asdict(plan)},
        cohort=describe(everybody),
        remarks=(held_out_remark(settings), *REMARKS, *_missing(found, bool(truth), bool(labels))),
    )


def written(cohort: Cohort, settings: StudySettings) -> StudyResult:
    """Only what the study says of the volumes that a --harmonizer writes. Raises as `native_tables`."""
    return StudyResult(
        study="audit",
        title=TITLE,
        question=_question(settings),
        tables=native_tables(cohort, settings),
        settings=settings.described(),
        cohort=describe(cohort),
        remarks=(WRITTEN_REMARK,),
    )


def _question(settings: StudySettings) -> str:
    return (
        f"Once scans are harmonized to {settings.reference}: can the site still be told, are they "
        "closer to the truth, and do they show the same brain?"
    )


def _truth_last(
    found: Iterable[View], training: ModelInputs, test: ModelInputs, truth: Mapping[Path, F32]
) -> Iterator[View]:
    """The methods' views, then the truth's where every scan has one: what a perfect harmonizer would show."""
    yield from found
    if all(s.path in truth for part in (training, test) for s in part.scans):
        sides = [np.stack([truth[s.path] for s in part.scans]) for part in (training, test)]
        yield View(NAME, False, *sides)


def _examples(test: ModelInputs, sites: Sequence[str]) -> list[int]:
    """The first held-out scan of each site."""
    return [next(i for i, s in enumerate(test.scans) if s.site == site) for site in sites]


def _drawn_examples(shown: Mapping[str, F32], known: Known, mirrored: Sequence[int]) -> Figure:
    rows = _examples(known.raw, known.others)
    white = np.stack([tissues(known.raw.grids[i], known.masks[i]) == WHITE for i in rows])
    brain = np.asarray(known.masks[rows].any(axis=0))
    return figures.examples(shown, known.others, white, brain, mirrored)


def _tables(rows: Mapping[str, tuple[Row, ...]]) -> list[Table]:
    titles: dict[str, tuple[str, str, tuple[Column, ...]]] = {
        "site": ("Can the site still be told?", SITE_CAPTION, ACCURACY),
        "recall": ("Which sites are recognised?", RECALL_CAPTION, RECALL),
        "paired": ("Distance from the truth", PAIRED_CAPTION, PAIRED),
        "anatomy": ("Is the anatomy still there?", ANATOMY_CAPTION, ANATOMY),
        "rescans": ("Do rescans agree?", RESCANS_CAPTION, RESCANS),
    }
    return [
        Table(name, title, caption, columns, rows[name])
        for name, (title, caption, columns) in titles.items()
        if rows[name]
    ]


def _charts(rows: Mapping[str, tuple[Row, ...]], chance: float) -> list[Figure]:
    colours = dict(zip(CLASSIFIERS, COLOURS, strict=False))
    real = [r for r in rows["site"] if r.columns["sites"] == REAL]
    found: list[Figure | None] = [figures.accuracies(real, CLASSIFIERS, chance, colours)]
    if rows["paired"]:
        caption = "Mean absolute error against the truth, as a share of the raw scans' error; 1 is no gain."
        found.append(intervals(rows["paired"], PAIRED[1], "error_ratio", "Error that is left", caption))
    own = [r for r in rows["anatomy"] if r.columns["compared with"] == OWN]
    plain = [Row(r.method, r.site, r.metrics, r.n, r.seed) for r in own]
    caption = "Mean absolute change of CSF, grey and white matter volume from the raw scan to the method's."
    found.append(intervals(plain, ANATOMY[3], "volumes", "Tissue volumes changed", caption))
    return [figure for figure in found if figure is not None]


def _missing(found: Mapping[str, Sequence[Any]], truth: bool, labels: bool) -> list[str]:
    """What this cohort cannot answer, in sentences."""
    lines = []
    if not truth:
        lines.append("This cohort has no truth (no `truth` column): no scan's error can be given.")
    if not labels:
        lines.append("This cohort has no label maps: tissue volumes are compared with the scans' own.")
    if not found["rescans"]:
        lines.append("No held-out subject was scanned twice: repeatability is not measured.")
    return lines


TITLE = "Audit: what is left of the site, and of the anatomy"
WRITTEN_REMARK = (
    "Every scan of the cohort goes through the harmonizer as hz-run writes it, at its own resolution, those "
    "of the reference site, too. Nothing is fitted to these scans by the study itself."
)
REMARKS = (
    "Classifiers at chance are no proof that the site is gone: they may have had too little to learn from. "
    "Compare with the same classifier on raw scans and with scrambled sites, where nothing is to be found.",
    "Sites differ in who was scanned, too. Where the truth is known, its row shows how well sites are told "
    "by their people alone.",
    "Tissues are divided by Otsu thresholds of each volume by itself. A raw scan's own division is moved by "
    "its contrast and receive field, so that a harmonizer that repairs these changes volumes as well; the "
    "truth and label maps, where there are any, tell repair from damage.",
)
SITE_CAPTION = (
    "Balanced accuracy of naming the site. Frozen classifiers learned on raw scans and are asked about the "
    "method's; re-seeded ones learned on the method's scans with the same short schedule; converged ones "
    "until their loss was small or stopped falling (settled, in % of the folds). With scrambled sites, "
    "dealt anew among subjects, the converged ones show what they find where there is nothing."
)
RECALL_CAPTION = "The share of a site's held-out scans that the classifiers of the table above recognise."
PAIRED_CAPTION = (
    "Mean |scan - truth| inside the brain in units of [0, 1]; the same as a ratio of the raw scans' error "
    "(a ratio of means); structural similarity in 3D (Wang et al. 2004, Gaussian window, sigma 1.5 voxels)."
)
ANATOMY_CAPTION = (
    "Signed change of each tissue's volume, mean absolute change over the three, mean distance between the "
    "surfaces of white matter, its overlap, and the correlation of gradient magnitudes deeper than 2 "
    "voxels. No registration: a method answers on the grid it was given. Against a label map the division "
    "into tissues has an error of its own, small sulci and thin rims above all: the truth's row shows it, "
    "and what lies beyond it is the method's."
)
RESCANS_CAPTION = (
    "Two scans of one held-out subject. Tissue volumes and the fingerprint (distance of the two scans' 8 x "
    "8 x 8 block means, as a share of the distance to other people at the other scan's site) need no "
    "registration; mean |difference| and SSIM count differences of pose as well, the same for every method."
)
