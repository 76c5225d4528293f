"""Sections, tables and cells of Markdown, and how numbers and names are written there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def section(title: str, body: str) -> str:
    """A second-level section; "" for an empty body."""
    return f"## {title}\n\n{body}" if body else ""


def without_sections(text: str, titles: Collection[str]) -> str:
    """A page without its second-level sections of these titles."""
    parts = ("\n" + text).split("\n## ")
    return "\n## ".join(part for part in parts if part.split("\n", 1)[0] not in titles).lstrip("\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; "" without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every leaf."""
    if isinstance(value, Mapping):
        return [
            row for key, item in value.items() for row in flat(item, f"{path}.{key}" if path else str(key))
        ]
    return [(path, as_text(value))]


def as_text(value: Any) -> str:
    """Four digits of a float; elements of a list with commas; "none" for nothing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value) or "none"
    return "none" if value is None else str(value)


def as_range(ages: Sequence[float] | None) -> str:
    """Least to most of ages in years."""
    return f"{ages[0]:g} to {ages[1]:g}" if ages else "unknown"


def as_words(key: str) -> str:
    """A key of JSON as words."""
    return key.replace("_", " ")


def joined(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "any site"
