"""A bundle whose ages are calibrated on the people of a user's own site: their bias, and their interval.

The networks stay as they are; what the bundle said of its ages before is replaced, in the manifest and on the
card. Needs no torch. Whether the network has seen these people in its training nobody can tell here: who
calibrates must know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hz_calibration import age_bias, age_interval
from hz_calibration.site_predictions import SitePredictions
from hz_export.age_card import after_calibration
from hz_runtime.bundle.age_calibration import CalibrationSite, site_metadata
from hz_runtime.bundle.store import Bundle, write_bundle
from hz_runtime.errors import UsageError

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import SigningKey

CARD = "MODEL_CARD.md"


def calibrated_at_site(
    bundle: Bundle, predictions: SitePredictions, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The manifest's "age_bias" and "age_interval" from people of known age.

    say : told one line each.
    Raises UsageError where they are too few for an interval of 90 %, or no finite one comes of their errors.
    """
    scans, sites = predictions.scans, predictions.sites
    people = {scan.person for scan in scans}
    least = age_interval.least_subjects(age_interval.LEVEL)
    if len(people) < least:
        raise UsageError(
            f"{len(people)} people are too few: with fewer than {least} an interval of "
            f"{age_interval.LEVEL:.0%} would hang on the largest error alone, or not exist."
            f"{_left_out(predictions)}",
            f"Give scans of {least} people or more, better 50, of known age and in good health.",
        )
    ages, raw = [scan.age for scan in scans], [scan.raw for scan in scans]
    persons = [scan.person for scan in scans]
    how = f"people of {', '.join(sites)}, whom the network is taken never to have seen"
    kept = {"age": ages, "raw": raw, "subjects": persons, "how": how}
    bias, pull = age_bias.from_held_out(kept)
    if bias is None:
        say("age bias: no correction: the predictions hardly depend on age here, or all are of one age")
    else:
        say(f"age bias: {pull or 'the pull to the mean age cannot be judged'}")
    found = age_interval.calibrate(
        ages, raw, persons, how, folds=[(people, ())], correct=bias is not None
    )  # one network that saw none of them
    if not isinstance(found, str) and bias is not None and found.corrected is None:
        found = "The age bias depends too much on single people for an interval of corrected ages."
    if isinstance(found, str):
        raise UsageError(f"no interval: {found}", "Give more people, over more ages.")
    site = CalibrationSite(
        sites, (float(np.min(ages)), float(np.max(ages))), predictions.raw_heads, bundle.id
    )
    shown = found.corrected or found.raw
    say(
        f"age interval: {'raw' if bias is None else 'corrected'} age +- {shown.half_width:.1f} years at "
        f"{found.level:.0%}, {found.n} people ({site}); covers {shown.coverage.value:.1%} "
        f"({shown.coverage.ci95[0]:.1%} to {shown.coverage.ci95[1]:.1%}) of people left out"
    )
    seen = "raw heads, prepared by hz" if predictions.raw_heads else "brains"
    interval = {
        **asdict(found),
        "scans": f"of {', '.join(sites)}, {seen}, on {predictions.ran}",
        "site": site_metadata(site),
        "left_out": dict(predictions.left_out),
    }
    corrected = None if bias is None else {**asdict(bias), "regression_to_mean": pull and asdict(pull)}
    return {"age_bias": corrected, "age_interval": interval}


def write_calibrated(
    bundle: Bundle, calibration: dict[str, Any], out: Path, key: SigningKey | None = None
) -> Bundle:
    """The bundle with this calibration, at `out`, which may be its own path; its id is another then.

    calibration : of `calibrated_at_site`.  key : signs it; None leaves it unsigned, also where it was signed.
    Raises BundleError where the bundle is damaged.
    """
    files = {name: bundle.read_listed(name) for name in bundle.files}
    manifest = {**bundle.raw, **calibration}
    if CARD in files:
        files[CARD] = after_calibration(files[CARD].decode(), manifest).encode()
    return write_bundle(out, manifest, files, overwrite=out.absolute() == bundle.path, key=key)


def _left_out(predictions: SitePredictions) -> str:
    said = [f"{count} scans {why}" for why, count in predictions.left_out.items()]
    return f" Left out: {'; '.join(said)}." if said else ""
