"""What a model card says of a bundle's ages: their bias, their interval, and whose calibration these are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from hz_export.markdown import as_range, joined, section, table, without_sections
from hz_export.published_section import calibrated
from hz_export.reporting_items import with_age_answers


def after_calibration(card: str, manifest: Mapping[str, Any]) -> str:
    """A card whose bundle was calibrated at a site: its sections on ages and what the guidelines ask of them
    are those of `manifest`, and say whose calibration it is."""
    sections = {
        "Age calibration": _calibration_site(manifest["age_interval"]),
        "Age-bias correction": age_bias(manifest["age_bias"]),
        "Age interval": age_interval(manifest["age_interval"]),
    }
    added = "\n\n".join(section(title, body) for title, body in sections.items())
    text = with_age_answers(calibrated(without_sections(card, sections)), manifest).rstrip("\n")
    parts = re.split(r"^(?=## (?:Files and their parity|Reporting guidelines))", text, maxsplit=1, flags=re.M)
    return "\n\n".join([parts[0].rstrip("\n"), added, *parts[1:]]) + "\n"


def _calibration_site(interval: Mapping[str, Any]) -> str:
    """Where, on whom, and what that leaves open."""
    site, left_out = interval["site"], interval.get("left_out") or {}
    n, scans = interval["n"], interval["n_scans"]
    way = "raw heads that hz prepared" if site["raw_heads"] else "brains, taken as they are"
    said = [f"{count} scans {why}" for why, count in left_out.items()]
    return (
        f"Not by who made the network, but at a site that uses it: on {n} people ({scans} scans, {way}) of "
        f"{joined(site['sites'])}, {as_range(site['age_range'])} years old, by hz-calibrate age on bundle "
        f"{site['bundle'][:19]}.... It stands in for any calibration that was here before, and is of use at "
        "that site alone, for people of these ages. hz cannot know whether any of them were among those that "
        "the network was trained on; if so, the interval is too narrow."
        + (f" Left out: {'; '.join(said)}." if said else "")
    )


def age_bias(bias: Mapping[str, Any] | None) -> str:
    """The body of the section on the correction.  bias : "age_bias" of a manifest."""
    if not bias:
        return "None is stored: predictions stay pulled towards the mean age of the training subjects."
    return (
        f"Held-out predictions follow {bias['slope']:.4g} * age + {bias['intercept']:.4g} years "
        f"(n = {bias['n']}; {bias.get('how') or 'how: not stated'}). Corrected ages are "
        "(predicted - intercept) / slope; both are always given. The correction multiplies the scatter of "
        f"single predictions by {1 / bias['slope']:.2g}." + _pull(bias.get("regression_to_mean"))
    )


def _pull(pull: Mapping[str, Any] | None) -> str:
    """What the correction did to subjects that it was not fitted on."""
    if not pull:
        return ""
    return (
        " Judged on each subject with the others' coefficients, the slope of predicted on true age goes from "
        f"{pull['slope_before']:.2f} to {pull['slope_after']:.2f} (1: no pull to the mean age), and the mean "
        f"absolute error from {pull['mae_before']:.2f} to {pull['mae_after']:.2f} years."
    )


def age_interval(interval: Mapping[str, Any] | None) -> str:
    """How far the true age may be from the answer, on whom that was found out, and what it is worth.

    interval : "age_interval" of a manifest.
    """
    if not interval or "none" in interval:
        why = interval["none"] if interval else "None was calibrated."
        return f"There is none, so that nothing says how far off a single age may be. {why}"
    rows = []
    for kind in ("raw", "corrected"):
        if width := interval.get(kind):
            coverage = width["coverage"]
            measured = f"{coverage['value']:.1%} ({coverage['ci95'][0]:.1%} to {coverage['ci95'][1]:.1%})"
            by_age = [
                f"{t['coverage']:.0%} of {t['n']} aged {as_range(t['age_range'])}" for t in width["by_age"]
            ]
            rows.append((kind, f"+- {width['half_width']:.1f}", measured, *by_age))
    shown = interval.get("corrected") or interval["raw"]
    alone = interval["half_width_of_mean_age"]
    verdict = (
        "so that of a single person the network says no more than that"
        if shown["half_width"] >= alone
        else f"so that the scan makes it {1 - shown['half_width'] / alone:.0%} narrower"
    )
    n, level = interval["n"], interval["level"]
    head = (
        f"A true age lies within these limits around the predicted one with a nominal probability of "
        f"{level:.0%}. Made of the errors on {n} held-out subjects ({interval['n_scans']} scans "
        f"{interval['scans']}; {interval['how']}): {interval['method']}, every subject weighing the same. "
        f"Coverage is that of {shown['coverage']['how']}.\n\n"
    )
    tail = (
        f"\n\nThe mean age of the same subjects, told without a scan, would need +- {alone:.1f} years, "
        f"{verdict}. With {n} subjects, what an interval really covers scatters by {_scatter(n, level):.1%} "
        "(one SD) from one such calibration to the next. The probability is one over all people: within an "
        "age group it may be higher or lower, as the table shows. It holds for people and scans like those "
        "it was made on. Nothing guarantees it at other sites, harmonized or not, or for flagged scans."
    )
    head_row = ("age", "years", "covers", "youngest third", "middle third", "oldest third")
    return head + table(head_row, rows) + tail


def _scatter(n: int, level: float) -> float:
    """SD of the coverage of a split-conformal interval over calibrations of n subjects: that of the
    distribution Beta(k, n + 1 - k) with k = ceil((n + 1) * level) (Vovk 2012)."""
    k = math.ceil((n + 1) * level - 1e-9)
    return math.sqrt(k * (n + 1 - k) / ((n + 1) ** 2 * (n + 2)))
