"""Held-out scans and what predictors say of them: the part that the three prediction studies share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs
from hz_train.studies.method import Method
from hz_train.studies.predictors import Fitted
from hz_train.studies.presets import StudySettings, check_cohort, refuse_leak
from hz_train.studies.result import Prediction

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

COMBAT_REMARK = (
    "ComBat works on numbers, not on images: its rows are ridge regression on the means of 8 x 8 x 8 boxes, "
    "and stand beside the same without it. It is given no covariates, so that differences between "
    "sites that come with age or diagnosis are removed as well."
)


def predicted(
    method: Method,
    fitted: Fitted,
    test: ModelInputs,
    truth: F64 | F32,
    seed: int,
    columns: dict[str, str],
    name: str = "",
    volumes: F32 | None = None,
) -> list[Prediction]:
    """Predictions of held-out scans, brought to the reference site by `method` first.

    volumes : the scans when they have been brought there already.  name : in place of the method's.
    Raises Leak where the method or the predictor was fitted on one of them.
    """
    refuse_leak(method.name, method.seen, test)
    refuse_leak(fitted.name, fitted.seen, test)
    if volumes is None:
        volumes = method.apply(test.grids, [s.site for s in test.scans])
    answers = fitted.predict(volumes)
    more = {**columns, "predictor": fitted.name}
    return [
        Prediction(name or method.name, s.site, s.subject, float(t), float(a), seed, more)
        for s, t, a in zip(test.scans, truth, answers, strict=True)
    ]


def ages_of(inputs: ModelInputs) -> F64:
    """(n,) years as the table gives them; every age known."""
    return np.array([scan.age for scan in inputs.scans], np.float64)


def check_ages(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where an age study cannot be done: no ages, one site, no reference, too few."""
    known = cohort.with_age()
    if not known.scans:
        raise UsageError(
            "no scan of the cohort has an age; this study predicts ages.",
            "Fill the age column, or run the appearance or audit study, which need none.",
        )
    check_cohort(known, settings)


def how(settings: StudySettings) -> str:
    """How a row's numbers came about."""
    return (
        f"subjects held out of predictor, harmonizer and baselines ({settings.held_out:.0%} of each site); "
        "95 % bootstrap intervals over subjects"
    )


def held_out_remark(settings: StudySettings) -> str:
    """Who scores, in a sentence."""
    text = (
        f"Whoever is scored was seen by nothing that was fitted: {settings.held_out:.0%} of each site's "
        "subjects are held out of every method and predictor, whole subjects, the same for all. A harmonizer "
        "to the reference site and ComBat leave that site's own scans as they are (z-score and Nyul do not), "
        "while hz-run sends every scan through the harmonizer."
    )
    if settings.harmonizer is not None:
        text += (
            f" {settings.harmonizer.name} was trained before this study; a scan that its checkpoint names as "
            "a training scan is refused, but a checkpoint that names none cannot be checked."
        )
    if len(settings.seeds) > 1:
        text += f" {len(settings.seeds)} seeds, each with its own split, weights and order."
    return text
