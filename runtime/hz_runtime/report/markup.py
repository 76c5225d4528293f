"""Values as text for an HTML page: escaped, rounded, and never an error for what is missing."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote


def clean(value: object) -> str:
    """Text without control and direction-changing characters, which could disguise a file name."""
    plain = "" if value is None else str(value)
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf") else c for c in plain)


def text(value: object) -> str:
    """Escaped for HTML text and for quoted attributes; None is empty."""
    return html.escape(clean(value))


def words(flag: object) -> str:
    """A flag for people: a bare code such as `age-out-of-range` becomes words. Escaped."""
    plain = str(flag)
    return text(plain if " " in plain else plain.replace("_", " ").replace("-", " "))


def link(name: str) -> str:
    """A relative address; whatever the name holds, it cannot become another scheme or host."""
    return "./" + quote(name.lstrip("/"), safe="/", errors="replace")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def fixed(value: object, digits: int) -> str:
    """A number with that many decimals, or nothing."""
    known = number(value)
    return "" if known is None else f"{known:.{digits}f}"


def years(value: object) -> str:
    known = fixed(value, 1)
    return f"{known} years" if known else ""


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
