"""JSON as hz writes it, and what reading another one may raise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# What parsing raises, and taking apart what was parsed, where it is no file of hz: text of another kind, keys
# that are missing, a value of another type, 1e400 for a whole number, lists in lists without end.
OTHER_FORM = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON bytes; refuses NaN, which JSON cannot say."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )
