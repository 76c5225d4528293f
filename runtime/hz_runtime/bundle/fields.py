"""JSON of a bundle and its fields, each checked for its kind; another is a BundleError that names it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from hz_runtime.errors import BundleError

REMEDY = "The bundle is damaged or was changed after export; copy it again or re-export it:  hz-export --help"
_SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")

_MISSING: Any = object()


def json_object(data: bytes, where: str, file: str = "bundle.json") -> dict[str, Any]:
    """The JSON object `data`, without a key twice, NaN or infinity. `file` is what messages call it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # two readers could each believe another one of them
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleError(f"{where}: {file} has the key {twice[:80]!r} twice.", REMEDY)
        return found

    def refuse(constant: str) -> float:
        raise BundleError(f"{where}: {file} holds {constant}, which is not JSON.", REMEDY)

    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(raw, allow_nan=False)  # 1e999 is read as infinity
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise BundleError(f"{where}: {file} is not readable JSON ({kind}).", REMEDY) from None
    if not isinstance(raw, dict):
        raise BundleError(f"{where}: {file} holds a {type(raw).__name__}, not an object.", REMEDY)
    return raw


def get(raw: Mapping[str, Any], key: str, kind: type[T], where: str, default: T = _MISSING) -> T:
    """The value of a key, a JSON `kind`; `default` where it is missing. `where` starts the message."""
    value = raw.get(key, default)
    if value is _MISSING:
        raise BundleError(f"{where}: bundle.json has no {key!r}.", REMEDY)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(
            f"{where}: {key!r} should be a JSON {_json_name(kind)}, found {_json_name(type(value))}.", REMEDY
        )
    return value


def _json_name(kind: type) -> str:
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(kind, "null")


def sha256(value: object, where: str) -> str:
    """64 digits of lower-case hex."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BundleError(f"{where} is not a sha256 in lower-case hex.", REMEDY)
    return value


def number(value: object, where: str) -> float:
    """A finite float; JSON's true and false are none."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if not good or not math.isfinite(value):  # type: ignore[arg-type]
        raise BundleError(f"{where} is not a finite number.", REMEDY)
    return float(value)  # type: ignore[arg-type]


def texts(value: list[Any], where: str) -> tuple[str, ...]:
    """An array of nothing but strings."""
    if not all(isinstance(item, str) for item in value):
        raise BundleError(f"{where} should hold strings only.", REMEDY)
    return tuple(value)
