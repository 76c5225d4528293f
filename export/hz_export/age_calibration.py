"""What a bundle says about its age network beyond the network: the age-bias correction and the prediction
interval, both from the predictions that the checkpoint keeps of subjects it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hz_calibration import age_bias, age_interval

LEAST_SPREAD = 0.1  # of the ages' own; an answer that follows age with a correlation of 0.1 varies so little
FEWEST = 8  # held-out scans; how far the answers to fewer vary says little


def constant_age(file: str, meta: Mapping[str, Any]) -> str:
    """That an age network answers nearly the same for everybody, in words; "" where it does not, or where the
    checkpoint keeps too few held-out predictions to say, or those of people of one single age.

    file : the checkpoint's name.  meta : its JSON.
    Answers and ages are compared within each fold: networks of several folds that all answer the mean age of
    their own training people differ from each other.
    """
    held_out = meta.get("held_out_predictions") or {"age": [], "raw": []}
    years = np.array([held_out["raw"], held_out["age"]], np.float64)  # (2, n)
    if years.shape[1] < FEWEST or not np.isfinite(years).all():
        return ""
    fold_of = {who: k for k, fold in enumerate(held_out.get("folds", [])) for who in fold["subjects"]}
    folds = np.array([fold_of.get(who, -1) for who in held_out.get("subjects", [])] or [-1] * years.shape[1])
    for k in np.unique(folds):
        years[:, folds == k] -= years[:, folds == k].mean(axis=1, keepdims=True)
    answers, ages = np.sqrt(np.square(years).mean(axis=1))
    if answers >= LEAST_SPREAD * ages:
        return ""
    return (
        f"{file} answers nearly the same age for everybody: over {years.shape[1]} held-out scans its answers "
        f"vary by {answers:.2f} years (one SD), the people's ages by {ages:.2f}"
    )


def calibrated(meta: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The manifest's "age_bias" and "age_interval".

    meta : JSON of the age checkpoint; empty for a bundle without one.  say : told one line each.
    Raises UsageError where the predictions are of subjects that their network was trained on.
    """
    held_out = meta.get("held_out_predictions")
    if not meta:
        return {"age_bias": None}
    if not held_out:
        return {"age_bias": None, "age_interval": _none("The checkpoint keeps no held-out predictions.", say)}
    bias = _bias(held_out, say)
    return {"age_bias": bias, "age_interval": _interval(meta, held_out, bias is not None, say)}


def _bias(held_out: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    """The correction, and the pull to the mean age before and after it; None where it would do harm."""
    bias, pull = age_bias.from_held_out(held_out)
    if bias is None:
        say("age bias: no correction: too few held-out subjects, or predictions that hardly depend on age")
        return None
    say(f"age bias: {pull or 'the pull to the mean age cannot be judged'}")
    return {**asdict(bias), "regression_to_mean": None if pull is None else asdict(pull)}


def _interval(
    meta: Mapping[str, Any], held_out: Mapping[str, Any], corrected: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The interval, or {"none": why not}. With a correction it is of use only if it covers corrected ages."""
    scored = (meta.get("metrics") or {}).get("mae_years") or {}
    found = age_interval.from_held_out(held_out, scored.get("n"), correct=corrected)
    if isinstance(found, str):
        return _none(found, say)
    if corrected and found.corrected is None:
        return _none(
            "The age bias depends too much on single subjects for an interval of corrected ages.", say
        )
    shown = found.corrected or found.raw
    say(
        f"age interval: {'corrected' if corrected else 'raw'} age +- {shown.half_width:.1f} years at "
        f"{found.level:.0%}, {found.n} held-out subjects; covers {shown.coverage.value:.1%} "
        f"({shown.coverage.ci95[0]:.1%} to {shown.coverage.ci95[1]:.1%}) of subjects left out"
    )
    sites = ", ".join(meta.get("sources") or []) or "sites not stated"
    seen = "harmonized" if meta.get("harmonizer") else "as they are"
    return {**asdict(found), "scans": f"of {sites}, {seen}"}


def _none(why: str, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"age interval: none: {why}")
    return {"none": why}
