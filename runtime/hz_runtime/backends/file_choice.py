"""Which file of a bundle an engine is to run for a precision, and in what it computes the file's float32.

Of a CPU, `fast` is taken from evidence alone: what was measured on this engine and these instructions, and
found near enough to float32 (`bundle.engine_evidence`). Nothing is timed: a busy minute would choose what a
result is made by. It opens nothing; `fallback` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hz_runtime.backends.instruction_set import instruction_set, multiplies
from hz_runtime.backends.registry import Engine
from hz_runtime.bundle.engine_evidence import EngineEvidence, engine_evidence

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle, ModelEntry

FAST = "fast"
# Precision of the file, and in what the rest of it is computed: quickest first, as measured on a CPU with
# AVX512_BF16 (2.8, 2.1 and 1.9 times float32).
_QUICK = (("int8", "bf16"), ("int8", "fp32"), ("fp32", "bf16"))


@dataclass(frozen=True)
class FileChoice:
    """entry : the file.  hint : in what the engine is to compute what it holds as float32, of `Engine.hints`.

    proven : the arithmetic that it must turn out to run in, as its evidence has it; "" for any.
    caveat : what is to be said where it runs; "" for nothing.
    """

    entry: ModelEntry
    hint: str = "fp32"
    proven: str = ""
    caveat: str = ""

    @property
    def precision(self) -> str:
        """As it is asked for, in words: "int8", "bf16", "int8 in bf16"."""
        held = self.entry.precision
        if self.hint == "fp32":
            return held
        return self.hint if held == "fp32" else f"{held} in {self.hint}"


def file_choices(
    bundle: Bundle, role: str, engine: Engine, precision: str | None = None, to: str | None = None
) -> tuple[FileChoice, ...]:
    """What to try on `engine`, in this order.

    precision : of `manifest.PRECISIONS`, "fast", or None for the engine's own. bf16 on an engine that takes
    that hint is the float32 file, computed in it, and only after that a file of bfloat16.
    Raises BundleError where the bundle holds no such file, UsageError where `to` is needed to choose.
    """
    if precision == FAST and engine.device == "cpu":
        return (*_fast(bundle, role, engine, to), FileChoice(_own(bundle, role, engine, to)))
    if precision in (None, FAST):
        return (FileChoice(_own(bundle, role, engine, to)),)
    if precision == "bf16" and "bf16" in engine.hints:
        hinted = FileChoice(bundle.model(role, precision="fp32", to=to), "bf16")
        held = [e for e in _same_site(bundle, role, to) if e.precision == "bf16"]
        return (_with_caveat(hinted, engine), *(FileChoice(entry) for entry in held))
    return (_with_caveat(FileChoice(bundle.model(role, precision=precision, to=to)), engine),)


def _own(bundle: Bundle, role: str, engine: Engine, to: str | None) -> ModelEntry:
    """The file in the precision that is fastest on an engine of itself; else any that there is."""
    same = _same_site(bundle, role, to)
    return next((entry for entry in same if entry.precision == engine.fastest), bundle.model(role, to=to))


def _same_site(bundle: Bundle, role: str, to: str | None) -> list[ModelEntry]:
    target = bundle.model(role, to=to).target
    return [entry for entry in bundle.models if entry.role == role and entry.target == target]


def _fast(bundle: Bundle, role: str, engine: Engine, to: str | None) -> Iterator[FileChoice]:
    entries = {entry.precision: entry for entry in _same_site(bundle, role, to)}
    for precision, hint in _QUICK:
        if precision not in entries or hint not in engine.hints:
            continue
        choice = FileChoice(entries[precision], hint)
        found = _evidence(choice, engine)
        if found is not None and not found.not_fast:
            yield FileChoice(choice.entry, hint, found.precision)


def _evidence(choice: FileChoice, engine: Engine) -> EngineEvidence | None:
    here = (engine.family, choice.hint, instruction_set())
    same = (e for e in engine_evidence(choice.entry) if (e.engine, e.hint, e.instructions) == here)
    return next(same, None)


def _with_caveat(choice: FileChoice, engine: Engine) -> FileChoice:
    """What is known against a precision that was asked for by name, on a CPU."""
    kind = choice.hint if choice.hint != "fp32" else choice.entry.precision
    if engine.device != "cpu" or kind not in ("int8", "bf16"):
        return choice
    instructions, evidence = instruction_set(), _evidence(choice, engine)
    if evidence is not None:
        said = f"held to float32 here it fell short: {'; '.join(evidence.not_fast)}"
        return FileChoice(choice.entry, choice.hint, caveat=said if evidence.not_fast else "")
    known = f"the bundle holds no evidence of {choice.precision} on {engine.family} with {instructions}"
    if not multiplies(kind, instructions):
        known += f", which does not multiply {kind} as such: it may stray by a percent and gain little"
    return FileChoice(choice.entry, choice.hint, caveat=known)
