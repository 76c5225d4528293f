"""How much harm a flag warns of: the order in which results are to be looked at.

A flag is a sentence, made where its reason is found. What that reason does to a result is decided here, by
the words that every flag of its kind holds; no scan is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any


class Harm(IntEnum):
    """Kinds of harm, the worst first.

    FAILED : there is no result.  NO_NUMBER : an age or a probability is missing.
    AGE : an age is there, and not to be used.
    SCAN : something is wrong with the scan: it was damaged or cut, its header contradicts itself, or it is of
        a kind, or prepared in a way, that the networks do not know.
    SHIFT : a measure lies where those of the training scans do not.
    CAVEAT : what other flags mean for the age's interval; never a reason of its own.
    """

    FAILED = 0
    NO_NUMBER = 1
    AGE = 2
    SCAN = 3
    SHIFT = 4
    CAVEAT = 5


# Words of a kind of flag -> its harm; the first that a flag holds decides.
_WORDS: tuple[tuple[str, Harm], ...] = (
    ("age interval was not made for such a scan", Harm.CAVEAT),
    ("no age: ", Harm.NO_NUMBER),
    ("network gave no number", Harm.NO_NUMBER),
    ("predicted age ", Harm.AGE),
    ("known age ", Harm.AGE),
    ("hold no number (NaN or infinite)", Harm.SCAN),
    ("lies outside the template's field of view", Harm.SCAN),
    ("its header ", Harm.SCAN),
    ("made with a contrast agent", Harm.SCAN),
    ("slices of ", Harm.SCAN),
    ("image quality: ", Harm.SCAN),
    ("not registered in this run", Harm.SCAN),
    ("that the networks were trained on: look at it", Harm.SHIFT),
    ("is unlike ", Harm.SHIFT),
)


def known_harm(flag: str) -> Harm | None:
    """The harm of a flag of this version; None for any other text."""
    return next((harm for words, harm in _WORDS if words in flag), None)


def harm_of(flag: str) -> Harm:
    """As `known_harm`; what another version flagged counts as a fault of the scan."""
    known = known_harm(flag)
    return Harm.SCAN if known is None else known


def by_harm(flags: Sequence[str]) -> list[str]:
    """The reasons among flags, the most harmful first, else as they came; the interval's caveat is none."""
    return sorted((flag for flag in flags if harm_of(flag) != Harm.CAVEAT), key=harm_of)


def harm_of_scan(scan: Mapping[str, Any]) -> Harm | None:
    """The worst harm of a scan, an object of run.json; None where there is nothing to look at."""
    states = (scan.get("status"), scan.get("recorded"))
    if "failed" in states:
        return Harm.FAILED
    flags = scan.get("flags")
    reasons = by_harm([str(flag) for flag in flags]) if isinstance(flags, (list, tuple)) else []
    if "flagged" in states:
        return harm_of(reasons[0]) if reasons else Harm.SHIFT
    return None
