"""Bashyam 2020, Table 2: a diagnosis learned at one or two sites, made at the others.

Every site that has both groups takes part. For each single site and each pair of them a classifier is
trained there and scored at the sites that are left, on scans as they are and as each method makes them.
Harmonizers map every site to the reference site, which need not have patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs, describe
from hz_train.slice_predictor_training import found_labels
from hz_train.studies import charts
from hz_train.studies.held_out import COMBAT_REMARK, held_out_remark, how, predicted
from hz_train.studies.method import Method, methods
from hz_train.studies.predictors import Predictors
from hz_train.studies.presets import StudySettings, check_cohort, split_cohort
from hz_train.studies.result import Prediction, StudyResult, Table
from hz_train.studies.tables import AUC_COLUMNS, auc_metrics, raw_counterparts, scored, summarised

F32 = NDArray[np.float32]

LEAST_OF_A_LABEL = 3  # subjects of each label at a site: one scores, two train
LEFT = "all sites left"


def check(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where the study cannot be done, before a scan is read."""
    labels = two_labels(cohort, settings.labels)
    check_cohort(cohort, settings)
    sites_with_both(cohort, labels)


def diagnosis(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
    """Run the study.

    Raises UsageError where `group` does not hold just two labels, or fewer than two sites have both.
    """
    cohort = Cohort(inputs.scans)
    check(cohort, settings)
    labels = two_labels(cohort, settings.labels)
    sites = sites_with_both(cohort, labels)
    predictions: list[Prediction] = []
    for seed in settings.seeds:
        training, test = split_cohort(inputs, settings.held_out, seed)
        predictors = Predictors(settings, seed, "diagnosis")
        for method in methods(settings, seed):
            method.fit(training, settings.reference)
            predictions += _splits(method, predictors, training, test, sites, labels, seed)
    return _result(inputs, settings, labels, sites, predictions)


def _splits(
    method: Method,
    predictors: Predictors,
    training: ModelInputs,
    test: ModelInputs,
    sites: Sequence[str],
    labels: tuple[str, str],
    seed: int,
) -> list[Prediction]:
    """Predictions of every split of the sites into training sites and the rest, for one method."""
    inside, outside = (_labelled(p, sites, labels) for p in (training, test))
    made = method.apply(inside.grids, [s.site for s in inside.scans])
    volumes = method.apply(outside.grids, [s.site for s in outside.scans])
    found: list[Prediction] = []
    for chosen in splits(sites):
        rows = [i for i, s in enumerate(inside.scans) if s.site in chosen]
        used = inside.of(Cohort(inside.scans).at(chosen))
        fitted = predictors.fit(made[rows], used, _targets(used, labels), method.features)
        rest = [site for site in sites if site not in chosen]
        left = outside.of(Cohort(outside.scans).at(rest))
        kept = [i for i, s in enumerate(outside.scans) if s.site in rest]
        columns = {"trained on": " + ".join(chosen)}
        found += predicted(method, fitted, left, _targets(left, labels), seed, columns, volumes=volumes[kept])
    return found


def splits(sites: Sequence[str]) -> list[tuple[str, ...]]:
    """Training sites of every split: each one, then each pair that leaves a site to score."""
    pairs = combinations(sites, 2) if len(sites) > 2 else ()
    return [*((site,) for site in sites), *pairs]


def two_labels(cohort: Cohort, wanted: tuple[str, str] | None) -> tuple[str, str]:
    """(negative, positive). Raises UsageError unless the cohort has just two groups, or both wanted ones."""
    if wanted is None:
        return found_labels(cohort)
    found = sorted({s.group for s in cohort.scans})
    absent = [label for label in wanted if label not in found]
    if absent or wanted[0] == wanted[1]:
        raise UsageError(
            f"no scan is of group {absent[0]!r}; the cohort has {', '.join(found)}."
            if absent
            else f"{wanted[0]!r} is named twice.",
            "Give --labels NEGATIVE,POSITIVE as the group column spells them.",
        )
    return wanted


def sites_with_both(cohort: Cohort, labels: tuple[str, str]) -> list[str]:
    """Sites that can train and be scored. Raises UsageError where there are fewer than two."""
    sites, counts = [], []
    for site in cohort.sites:
        each = [
            len({s.subject for s in cohort.scans if s.site == site and s.group == label}) for label in labels
        ]
        counts.append(f"{site} {each[0]} and {each[1]}")
        if min(each) >= LEAST_OF_A_LABEL:
            sites.append(site)
    if len(sites) < 2:
        raise UsageError(
            f"fewer than two sites have {LEAST_OF_A_LABEL} subjects of both {labels[0]} and {labels[1]} "
            f"({'; '.join(counts)}).",
            "A diagnosis that is learned at one site needs another site to be made at.",
        )
    return sites


def _labelled(inputs: ModelInputs, sites: Sequence[str], labels: tuple[str, str]) -> ModelInputs:
    return inputs.of(Cohort(tuple(s for s in inputs.scans if s.site in sites and s.group in labels)))


def _targets(inputs: ModelInputs, labels: tuple[str, str]) -> F32:
    return np.array([labels.index(s.group) for s in inputs.scans], np.float32)


def _result(
    inputs: ModelInputs,
    settings: StudySettings,
    labels: tuple[str, str],
    sites: Sequence[str],
    predictions: list[Prediction],
) -> StudyResult:
    tested: dict[str, Sequence[str]] = {LEFT: sites, **{site: (site,) for site in sites}}
    if len(sites) == 2:
        del tested[LEFT]
    scores = scored(predictions, tested, auc_metrics, raw_counterparts(predictions), how(settings))
    # Two sites trained on leave one of three: the row of all that are left would say the same again.
    doubled = {
        row.columns["trained on"]
        for row in scores
        if len({r.site for r in scores if r.columns == row.columns}) == 2
    }
    rows = summarised([r for r in scores if r.site != LEFT or r.columns["trained on"] not in doubled])
    dots = charts.intervals(
        [r for r in rows if r.site == LEFT or len(sites) == 2 or r.columns["trained on"] in doubled],
        AUC_COLUMNS[0],
        "auc",
        "AUC by training sites and method",
        "Area under the ROC curve at all sites that were not trained on, with its 95 % interval over "
        "subjects. 0.5 is chance.",
        panel="trained on",
    )
    return StudyResult(
        study="diagnosis",
        title=f"Diagnosis: {labels[1]} or {labels[0]}, learned at some sites and made at others",
        question=(
            "Does a classifier that was trained at one or two sites work better at the others once all scans "
            f"are harmonized to {settings.reference}?"
        ),
        tables=(
            Table(
                "auc",
                "Area under the ROC curve on held-out subjects of other sites",
                f"As Table 2 of Bashyam et al. 2020; {labels[1]} is the positive label. Best value of each "
                "split in bold.",
                AUC_COLUMNS,
                tuple(rows),
            ),
        ),
        figures=(dots,) if dots else (),
        settings={**settings.described(), "labels": list(labels)},
        cohort=describe(inputs),
        remarks=(held_out_remark(settings), COMBAT_REMARK),
        predictions=tuple(predictions),
    )
