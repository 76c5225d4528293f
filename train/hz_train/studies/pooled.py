"""Komandur 2023, Tables 2 and 3: an age network trained on two sites pooled, before and after harmonization.

The paper's names: the source X is the large cohort that every other site, the target Y, is paired with;
here X is the reference site. For each Y one CycleGAN is trained between the two, and one age network on

    the scans as they are (baseline),
    Y's scans brought to X ("to source"), X's as they are,
    X's scans brought to Y ("to target"), Y's as they are,

and the same with the baselines. Table 2 scores each network on held-out subjects of both sites, brought to
the same site as the training scans. Table 3 asks the networks that were trained on harmonized scans about
held-out subjects before and after harmonization: what happens where a scan is not harmonized first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs, describe
from hz_train.studies import charts
from hz_train.studies.held_out import COMBAT_REMARK, ages_of, check_ages, held_out_remark, how, predicted
from hz_train.studies.method import CycleGAN, Method, methods
from hz_train.studies.predictors import Predictors
from hz_train.studies.presets import StudySettings, split_cohort
from hz_train.studies.result import Column, Figure, Prediction, Row, StudyResult, Table
from hz_train.studies.tables import AGE_COLUMNS, age_metrics, raw_counterparts, scored, summarised

F32 = NDArray[np.float32]
Applied = Callable[[F32, Sequence[str]], F32]

BEFORE, AFTER = "as they are", "harmonized"
BEFORE_COLUMNS = (
    Column("before", "MAE before", "years", 2),
    Column("after", "MAE after", "years", 2),
    Column("mse_before", "MSE before", "years²", 1),
    Column("mse_after", "MSE after", "years²", 1),
    Column("change", "MAE after minus before", "years", 2, "lower"),
)


def check(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where the study cannot be done, before a scan is read."""
    if settings.harmonizer is not None:
        raise UsageError(
            "the pooled study trains one harmonizer for each pair of sites and both directions.",
            "Leave --harmonizer out; the transfer study judges a checkpoint.",
        )
    check_ages(cohort, settings)


def pooled(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
    """Run the study. Raises UsageError for a cohort that does not allow it: one site, no ages, too few."""
    settings = replace(settings, form="pairs")
    check(Cohort(inputs.scans), settings)
    inputs = inputs.of(Cohort(inputs.scans).with_age())
    others = [site for site in Cohort(inputs.scans).sites if site != settings.reference]
    pooled_ones: list[Prediction] = []
    crossed: list[Prediction] = []
    for seed in settings.seeds:
        training, test = split_cohort(inputs, settings.held_out, seed)
        for target in others:
            pair = [settings.reference, target]
            inside, outside = (p.of(Cohort(p.scans).at(pair)) for p in (training, test))
            predictors = Predictors(settings, seed)
            for method in methods(settings, seed):
                method.fit(inside, settings.reference)
                one, two = _pair(method, predictors, inside, outside, target, seed)
                pooled_ones += one
                crossed += two
    return _result(inputs, settings, others, pooled_ones, crossed)


def _pair(
    method: Method,
    predictors: Predictors,
    training: ModelInputs,
    test: ModelInputs,
    target: str,
    seed: int,
) -> tuple[list[Prediction], list[Prediction]]:
    """(Table 2's predictions, Table 3's) of one method and pair of sites."""
    ways: dict[str, Applied] = {method.name: method.apply}
    if isinstance(method, CycleGAN):
        ways = {
            f"{method.name}, to source": method.apply,
            f"{method.name}, to target": lambda volumes, sites: _to_target(method, volumes, sites, target),
        }
    found: list[Prediction] = []
    crossed: list[Prediction] = []
    for name, apply in ways.items():
        made = apply(training.grids, [s.site for s in training.scans])
        fitted = predictors.fit(made, training, training.ages, method.features)
        volumes = apply(test.grids, [s.site for s in test.scans])
        columns = {"target": target}
        after = predicted(method, fitted, test, ages_of(test), seed, columns, name, volumes)
        found += after
        if isinstance(method, CycleGAN):
            before = predicted(method, fitted, test, ages_of(test), seed, columns, name, test.grids)
            # Only the side that the harmonizer changes: the other one's scans are the same before and after.
            moved = target if name.endswith("source") else method.reference
            for state, answers in ((BEFORE, before), (AFTER, after)):
                crossed += [
                    replace(p, columns={**p.columns, "scans": state}) for p in answers if p.site == moved
                ]
    return found, crossed


def _to_target(method: CycleGAN, volumes: F32, sites: Sequence[str], target: str) -> F32:
    """Scans of the reference site as `target` would show them; others as they are."""
    made = volumes.copy()
    rows = np.flatnonzero([site == method.reference for site in sites])
    if rows.size:
        made[rows] = method.reverse(volumes[rows], target)
    return made


def _both(reference: str, target: str) -> str:
    return f"{reference} + {target}"


def before_and_after(crossed: Sequence[Prediction], settings: StudySettings) -> list[Row]:
    """Table 3's rows from predictions whose `scans` column says "as they are" or "harmonized"."""
    groups: dict[tuple[object, ...], dict[str, list[Prediction]]] = {}
    for p in crossed:
        key = (p.method, p.site, p.seed, p.columns["target"])
        groups.setdefault(key, {}).setdefault(p.columns["scans"], []).append(p)
    rows = []
    for states in groups.values():
        before, after = states[BEFORE], states[AFTER]
        first = after[0]
        truth, subjects = [p.truth for p in after], [p.subject for p in after]
        raw = [p.predicted for p in before]
        was = age_metrics(truth, raw, subjects)
        now = age_metrics(truth, [p.predicted for p in after], subjects, raw)
        metrics = {
            "before": was["mae"],
            "after": now["mae"],
            "mse_before": was["mse"],
            "mse_after": now["mse"],
            "change": now["change"],
        }
        columns = {"target": first.columns["target"]}
        n = len(set(subjects))
        rows.append(Row(first.method, first.site, metrics, n, first.seed, how(settings), columns))
    return rows


def _result(
    inputs: ModelInputs,
    settings: StudySettings,
    others: list[str],
    predictions: list[Prediction],
    crossed: list[Prediction],
) -> StudyResult:
    rows: list[Row] = []
    for target in others:
        tested = {_both(settings.reference, target): (settings.reference, target), target: (target,)}
        those = [p for p in predictions if p.columns["target"] == target]
        rows += scored(those, tested, age_metrics, raw_counterparts(those), how(settings))
    rows = summarised(rows)
    figures: list[Figure] = []
    dots = charts.intervals(
        [r for r in rows if r.site not in others],
        AGE_COLUMNS[0],
        "mae",
        "Error by pair of sites and method",
        "Mean absolute error on held-out subjects of both sites with its 95 % interval over subjects.",
        panel="target",
    )
    if dots:
        figures.append(dots)
    return StudyResult(
        study="pooled",
        title=f"Pooled training: {settings.reference} and one other site together",
        question=(
            "Does an age network that is trained on two sites together get better when one of them is "
            "harmonized to the other first?"
        ),
        tables=(
            Table(
                "table2",
                "Brain age on held-out subjects, training sites pooled",
                f"As Table 2 of Komandur et al. 2023, with {settings.reference} as source. raw is the "
                "paper's baseline. Best value of each place in bold.",
                AGE_COLUMNS,
                tuple(rows),
            ),
            Table(
                "table3",
                "Held-out subjects before and after harmonization",
                "As Table 3 of Komandur et al. 2023: networks trained on harmonized scans, asked about the "
                "held-out subjects of the side that is harmonized, as they are and harmonized.",
                BEFORE_COLUMNS,
                tuple(summarised(before_and_after(crossed, settings))),
            ),
        ),
        figures=tuple(figures),
        settings=settings.described(),
        cohort=describe(inputs),
        remarks=(held_out_remark(settings), COMBAT_REMARK),
        predictions=(*predictions, *(p for p in crossed if p.columns["scans"] == BEFORE)),
    )
