"""Whether a scan was made with a contrast agent: by what it is called, or by what its header or sidecar says.

The networks know scans without one; an agent brightens vessels, the membranes of the brain, and tumours. No
voxel is looked at here.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hz_runtime.io.volume import stem

SIDECAR_KEYS = ("ContrastBolusIngredient", "ContrastBolusAgent")
"""Of a JSON sidecar: the key of BIDS, and that of DICOM, which `hz-dicom convert` writes."""

_FLAG = "made with a contrast agent"
_MAX_SIDECAR_BYTES = 1 << 20
# A brain of hz-prepare, whose record holds what was known of the head.
_PREPARED = re.compile(r"(?:_space-[A-Za-z0-9]+_res-2)?_desc-brain_T1w$")
_NO_AGENT = frozenset(("", "no", "none", "n/a", "na", "nil", "without", "ohne", "false", "0"))
# The short ones may be anybody's initials where a name starts with them. A lone "post" may be after anything.
_NAMED = re.compile(
    r"(?<=[-_ .,+(/])(?:gd|gad|km|ce)(?![a-z0-9])|gado[a-z]{3}|contrast[-_ ]?enhanced"
    r"|(?<![a-z])post[-_ ]?(?:gd|gad|km|contrast|c)(?![a-z])|(?<![a-z])w(?:ith|/)?[-_ ]?contrast"
    r"|(?<![a-z])t1w?(?:ce|gd|km|c)(?![a-z0-9])|\+[-_ ]?(?:c|gd|gad|km)(?![a-z])|(?<![a-z])c\+",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?<![a-z])(?:pre|prior|before|no|non|not|without|w/?o|vor|ohne)[-_ ]*"
    r"(?:gd|gad|gado[a-z]*|km|ce|contrast|c)?(?![a-z])",
    re.IGNORECASE,
)
_BIDS_ENTITY = re.compile(r"(?:^|_)ce-([A-Za-z0-9]+)(?=_|$)")
_BIDS_NAME = re.compile(r"(?:^|_)sub-[A-Za-z0-9]+_")


def names_agent(name: str) -> bool:
    """Whether the name of a series or a scan says that it was made with an agent, as "t1_mprage post gd",
    "T1 nach KM", "SAG T1 +C" do, and "T1 pre gd" or "ohne KM" do not.

    In a BIDS name the entity `ce` alone speaks: a subject or session may be called anything.
    """
    if _BIDS_NAME.search(name):
        return any(is_agent(agent) for agent in _BIDS_ENTITY.findall(name))
    return bool(_NAMED.search(name)) and not _NEGATED.search(name)


def is_agent(value: Any) -> bool:
    """Whether a header's or sidecar's field of the agent holds one: scanners also write "None" there."""
    return str("" if value is None else value).strip().casefold() not in _NO_AGENT


def contrast_flags(path: Path) -> tuple[str, ...]:
    """The flag of a scan that was made with an agent, by its file's name or the JSON sidecar beside it.

    Of a brain that hz-prepare made, the record of its preparation counts as well. Nothing where none of them
    says so. Raises nothing: a sidecar that cannot be read says nothing.
    """
    name = stem(path)
    if names_agent(name):
        found = "its file name says so"
    elif _sidecar_names_agent(path, name):
        found = "its header or sidecar says so"
    else:
        return ()
    return (
        f"{_FLAG} ({found}): the networks were trained on scans without one; use the scan "
        "from before the injection where there is one",
    )


def _sidecar_names_agent(path: Path, name: str) -> bool:
    beside = _sidecar(path.with_name(f"{name}.json"))
    if any(is_agent(beside.get(key)) for key in SIDECAR_KEYS):
        return True
    prepared = _PREPARED.sub("_desc-preparation", name)
    record = _sidecar(path.with_name(f"{prepared}.json")).get("hz") if prepared != name else None
    flags = record.get("flags") if isinstance(record, dict) else None
    return isinstance(flags, list) and any(str(flag).startswith(_FLAG) for flag in flags)


def _sidecar(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _MAX_SIDECAR_BYTES:
            content = json.loads(path.read_bytes())
            return content if isinstance(content, dict) else {}
    return {}
