"""What a bundle knows of its files on the engines of CPUs: how each was held to float32, and whether it may
be taken for speed. Measuring and judging are hz_export's (`fast_evidence`); this reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hz_runtime.bundle.manifest import ModelEntry


@dataclass(frozen=True)
class EngineEvidence:
    """One file, measured on one engine of a CPU.

    engine : the engine's family.  hint : in what it was asked to compute what the file holds as float32.
    instructions : the processor's, `backends.instruction_set`.  precision : what it computed in, read back.
    not_fast : why `--precision fast` does not take it, one line each; empty where it does.
    """

    engine: str
    hint: str
    instructions: str
    precision: str
    not_fast: tuple[str, ...]


def engine_evidence(entry: ModelEntry) -> tuple[EngineEvidence, ...]:
    """What the manifest says of a file; nothing where an older hz exported it, which kept less."""
    rows = entry.parity.get("measured")
    found = (_evidence(row) for row in rows) if isinstance(rows, list) else ()
    return tuple(one for one in found if one is not None)


def _evidence(row: Any) -> EngineEvidence | None:
    """A row of "measured"; None where it is not complete, so that nothing is taken for proven."""
    backend = row.get("backend") if isinstance(row, Mapping) else None
    not_fast = row.get("not_fast") if isinstance(row, Mapping) else None
    if not isinstance(backend, Mapping) or not isinstance(not_fast, list):
        return None
    words = [backend.get("name"), backend.get("hint", "fp32"), backend.get("instructions")]
    words += [backend.get("precision"), *not_fast]
    if not all(isinstance(word, str) for word in words):
        return None
    engine, hint, instructions, precision, *reasons = words
    return EngineEvidence(engine, hint, instructions, precision, tuple(reasons))
