"""JSON as hz writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON bytes; refuses NaN, which JSON cannot say."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )
