"""What a bundle says about its age network beyond the network: the age-bias correction and the prediction
interval, both from the predictions that the checkpoint keeps of subjects it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hz_calibration import age_bias, age_interval


def calibrated(meta: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The manifest's "age_bias" and "age_interval".

    meta : JSON of the age checkpoint; empty for a bundle without one.  say : told one line each.
    Raises UsageError where the predictions are of subjects that their network was trained on.
    """
    held_out = meta.get("held_out_predictions")
    if not meta:
        return {"age_bias": None}
    if not held_out:
        why = "The checkpoint keeps no held-out predictions."
        if "published" in meta:
            why = "Its authors publish no predictions to make one of; hz-calibrate age makes one at a site."
        return {"age_bias": None, "age_interval": _none(why, say)}
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
