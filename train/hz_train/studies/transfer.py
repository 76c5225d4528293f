"""Bashyam 2020, Table 1 and Figure 2: an age predictor of one site, asked about the others.

The predictor is trained on the reference site's scans alone. Scans of the other sites are shown to it as
they are, and brought to the reference site by each method. The reference site's own held-out scans stand
beside them: what the predictor can do where nothing has to be transferred.
"""

from __future__ import annotations

import numpy as np

from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs, describe
from hz_train.studies import charts
from hz_train.studies.held_out import COMBAT_REMARK, ages_of, check_ages, held_out_remark, how, predicted
from hz_train.studies.method import Method, methods
from hz_train.studies.predictors import Predictors
from hz_train.studies.presets import StudySettings, split_cohort
from hz_train.studies.result import Prediction, StudyResult, Table
from hz_train.studies.tables import AGE_COLUMNS, age_metrics, raw_counterparts, scored, summarised
from hz_train.studies.views import OTHERS

MEAN_AGE = "mean age of the training scans"


def check(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where the study cannot be done, before a scan is read."""
    check_ages(cohort, settings)


def transfer(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
    """Run the study. Raises UsageError for a cohort that does not allow it: one site, no ages, too few."""
    check(Cohort(inputs.scans), settings)
    inputs = inputs.of(Cohort(inputs.scans).with_age())
    predictions: list[Prediction] = []
    for seed in settings.seeds:
        training, test = split_cohort(inputs, settings.held_out, seed)
        predictors = Predictors(settings, seed)
        for method in methods(settings, seed):
            method.fit(training, settings.reference)
            predictions += _asked(method, predictors, training, test, settings, seed)
        predictions += _mean_age(training, test, settings.reference, seed)
    return _result(inputs, settings, predictions)


def _asked(
    method: Method,
    predictors: Predictors,
    training: ModelInputs,
    test: ModelInputs,
    settings: StudySettings,
    seed: int,
) -> list[Prediction]:
    """Predictions of every held-out scan by a predictor of the method's own reference-site scans."""
    home = training.of(Cohort(training.scans).at([settings.reference]))
    made = method.apply(home.grids, [s.site for s in home.scans])
    fitted = predictors.fit(made, home, home.ages, method.features)
    return predicted(method, fitted, test, ages_of(test), seed, {})


def _mean_age(training: ModelInputs, test: ModelInputs, reference: str, seed: int) -> list[Prediction]:
    home = [s.age for s in training.scans if s.site == reference and s.age is not None]
    mean = float(np.mean(home))
    return [
        Prediction(MEAN_AGE, s.site, s.subject, float(t), mean, seed, {"predictor": "none"})
        for s, t in zip(test.scans, ages_of(test), strict=True)
    ]


def _result(inputs: ModelInputs, settings: StudySettings, predictions: list[Prediction]) -> StudyResult:
    sites = Cohort(inputs.scans).sites
    others = [site for site in sites if site != settings.reference]
    tested = {OTHERS: others, **{site: [site] for site in others}, settings.reference: [settings.reference]}
    if len(others) == 1:
        del tested[OTHERS]
    rows = summarised(scored(predictions, tested, age_metrics, raw_counterparts(predictions), how(settings)))
    first = settings.seeds[0]
    shown = {
        name: [p for p in predictions if p.method == name and p.seed == first]
        for name in dict.fromkeys(p.method for p in predictions)
        if name != MEAN_AGE
    }
    mae = AGE_COLUMNS[0]
    dots = charts.intervals(
        rows,
        mae,
        "mae",
        "Error by site and method",
        "Mean absolute error with its 95 % interval over subjects.",
    )
    caption = (
        f"Held-out scans, seed {first}; the predictor knows {settings.reference} only. On the dashed line, "
        "prediction and age agree."
    )
    return StudyResult(
        study="transfer",
        title=f"Transfer: an age predictor of {settings.reference}, asked about other sites",
        question=(
            f"Does a predictor that was trained on {settings.reference} alone work better on other sites' "
            "scans once these are harmonized?"
        ),
        tables=(
            Table(
                "age",
                "Brain age on held-out subjects",
                "As Table 1 of Bashyam et al. 2020. Best value of each site in bold.",
                AGE_COLUMNS,
                tuple(rows),
            ),
        ),
        figures=(charts.scatter(shown, sites, caption), *([dots] if dots else [])),
        settings=settings.described(),
        cohort=describe(inputs),
        remarks=(held_out_remark(settings), COMBAT_REMARK),
        predictions=tuple(predictions),
    )
