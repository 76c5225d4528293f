"""What Orthanc answered, read: changes, a series, what became of a file. Another form is refused as a whole.

Whatever stands behind the address is believed in nothing: names that go into further requests, into the
journal and into paths are Orthanc's own hashes, or the answer is none of Orthanc's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hz_runtime.hospital.orthanc import OrthancRefuses

_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_MOST = 2**63  # what SQLite counts to
_EVENTS = ("NewSeries", "StableSeries")


@dataclass(frozen=True)
class Changes:
    """A page of changes.

    last : the number of its last one; None where the answer names none.  series : that are new or stable,
    each once, in order.  empty : whether no change is on it.  done : whether there are no later ones.
    """

    last: int | None
    series: tuple[str, ...]
    empty: bool
    done: bool

    @classmethod
    def read(cls, answer: Any) -> Changes:
        """Raises OrthancRefuses."""
        if not isinstance(answer, dict) or not isinstance(answer.get("Changes"), list):
            raise _none()
        changes, last, done = answer["Changes"], answer.get("Last"), answer.get("Done", True)
        if last is not None and not (type(last) is int and 0 <= last < _MOST):
            raise _none()
        if not all(isinstance(change, dict) for change in changes):
            raise _none()
        series = [_name(change.get("ID")) for change in changes if change.get("ChangeType") in _EVENTS]
        return cls(last, tuple(dict.fromkeys(series)), not changes, done is not False)


@dataclass(frozen=True)
class Arrived:
    """A series.  instances : its images.  modality : "" where it names none."""

    stable: bool
    instances: tuple[str, ...]
    modality: str

    @classmethod
    def read(cls, answer: Any) -> Arrived:
        """Raises OrthancRefuses."""
        if not isinstance(answer, dict) or not isinstance(answer.get("Instances"), list):
            raise _none()
        tags = answer.get("MainDicomTags")
        modality = tags.get("Modality") if isinstance(tags, dict) else None
        return cls(
            answer.get("IsStable", True) is not False,
            tuple(_name(one) for one in answer["Instances"]),
            modality if isinstance(modality, str) else "",
        )


def stored_in(answer: Any) -> str:
    """The series that a file went to; "" where the answer names none. Raises OrthancRefuses where it was not
    stored."""
    if not isinstance(answer, dict) or answer.get("Status") not in ("Success", "AlreadyStored"):
        raise OrthancRefuses("Orthanc did not store a file.", 0)
    series = answer.get("ParentSeries")
    return "" if series is None else _name(series)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _none()
    return value


def _none() -> OrthancRefuses:
    return OrthancRefuses("what answers is no Orthanc.", 0)
