"""How pages name a scan and say what became of it: title, link, status, and the reasons to look at it.

A scan is an object of run.json, of which anything may be missing or be something else. Everything given back
but `title` is HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from hz_runtime.report import markup
from hz_runtime.results.harm import by_harm

Scan = Mapping[str, Any]
STATUSES = ("ok", "flagged", "failed", "skipped")


def title(scan: Scan) -> str:
    """The input's label; of an absolute path the file name alone."""
    label = str(scan.get("input") or scan.get("name") or "unnamed scan")
    return PurePath(label).name if PurePath(label).is_absolute() else label


def anchor(number: int, scan: Scan) -> str:
    """A link to the panel of a scan, by its place on the page."""
    return f'<a class="name" href="#scan-{number}">{markup.text(title(scan))}</a>'


def status(scan: Scan) -> str:
    return markup.text(scan.get("status") or "unknown")


def pill(scan: Scan) -> str:
    """The status as a coloured mark; behind it, that of an earlier run, where it alarms."""
    own = status(scan)
    kind = f" {own}" if own in STATUSES else ""
    mark = f'<span class="pill{kind}">{own}</span>'
    earlier = scan.get("recorded")
    return (
        f'{mark} <span class="pill {earlier}">{earlier}</span>' if earlier in ("flagged", "failed") else mark
    )


def reasons(scan: Scan) -> list[str]:
    """Why to look at a scan, by its flags, the most harmful first."""
    return [markup.words(flag) for flag in by_harm(_flags(scan))]


def first_reason(scan: Scan) -> tuple[str, list[str]]:
    """(what to say of a scan in a line, what else there is to say)."""
    found = reasons(scan)
    # Results repeat the flags behind what else they give as a reason.
    reason, flags = str(scan.get("reason") or ""), "; ".join(_flags(scan))
    said = reason.removesuffix(flags).removesuffix("; ") if flags else reason
    return "; ".join([*([markup.text(said)] if said else []), *found[:1]]), found[1:]


def brief(scan: Scan) -> str:
    """The first reason, and how many more there are."""
    first, others = first_reason(scan)
    return f"{first} (and {len(others)} more)" if others else first


def folded(scan: Scan) -> str:
    """The first reason; the others behind "and N more"."""
    first, others = first_reason(scan)
    if not others:
        return first
    items = "".join(f"<li>{reason}</li>" for reason in others)
    return f"{first}<details><summary>and {len(others)} more</summary><ul>{items}</ul></details>"


def _flags(scan: Scan) -> list[str]:
    return [str(flag) for flag in markup.sequence(scan.get("flags"))]
