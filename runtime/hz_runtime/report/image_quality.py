"""The measures of a scan's image quality as a list, with lights where there is a verdict.

A measure is an object of a scan's "quality" in run.json: {measure, verdict, value or null, limit or null,
unit, reason where there is no value or no verdict}. Everything given back is HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hz_runtime.model_space.image_quality import LOOK, NOT_MEASURED
from hz_runtime.report import gates, markup

_NO_LIGHT = '<svg class="light" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"></svg>'


def listing(scan: Mapping[str, Any]) -> str:
    """A list of what was measured and what is usual, those beyond their limit first; "" without any."""
    found = [markup.mapping(one) for one in markup.sequence(scan.get("quality"))]
    rows = sorted((one for one in found if one.get("measure")), key=lambda one: one.get("verdict") != LOOK)
    return f'<ul class="gates">{"".join(map(_row, rows))}</ul>\n' if rows else ""


def _row(one: Mapping[str, Any]) -> str:
    value, limit = (markup.number(one.get(key)) for key in ("value", "limit"))
    verdict, reason = one.get("verdict"), markup.text(one.get("reason") or "")
    if value is None:
        return gates.line(_NO_LIGHT, one["measure"], f"not measured: {reason}", "")
    said = f"{value:.3g} {markup.text(one.get('unit'))}"
    if verdict == NOT_MEASURED or limit is None:
        return gates.line(_NO_LIGHT, one["measure"], said, reason)
    return gates.line(
        gates.light(verdict != LOOK), one["measure"], said, f"(at most {limit:g} in sound heads)"
    )
