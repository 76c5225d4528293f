"""Whether an engine's answers are near enough to float32 for `hz-run --precision fast` to take it.

Judged once, where it is measured; the verdict is kept in the row of evidence, and `bundle.engine_evidence`
reads it where scans are run. Quickness is no number here: what is computed in int8 or bfloat16 by
instructions that multiply them is quicker than float32, as `benchmarks/` shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hz_export.differences import TOLERANCES, Check, checks, most_keep_to
from hz_runtime.backends.arithmetic import WORDS
from hz_runtime.backends.instruction_set import instruction_set, multiplies

# Of the brain's mean: the median volume, and the worst.
MEDIAN, WORST, PROBABILITY = 0.005, 0.01, 0.02
# For 95 % of the scans. The errors of a harmonizer and of the age network behind it add up, to a quarter of a
# year: the harmonizer, which is nearly all of the work, gets the larger part.
YEARS95 = {"harmonizer": 0.2, "age": 0.05}


def tolerance_kind(row: Mapping[str, Any], kind: str) -> str:
    """The key of TOLERANCES for one row of evidence about a file of `kind`.

    A file of float32 that was computed in bfloat16 rounds as a file of bfloat16 does.
    """
    hint = str(row["backend"].get("hint", "fp32"))
    return hint if hint != "fp32" and kind.startswith("fp32") and hint in TOLERANCES else kind


def judged(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The row of an engine on a CPU with what `fast` goes by; rows of GPUs as they are.

    kind : of the file, a key of TOLERANCES. Adds the processor's "instructions" to "backend", and "not_fast":
    why it is not taken, one line each.
    """
    backend = row["backend"]
    if "CUDA" in backend["provider"].upper():
        return row
    backend = {**backend, "instructions": instruction_set()}
    return {**row, "backend": backend, "not_fast": _reasons(row, backend, kind)}


def _reasons(row: Mapping[str, Any], backend: Mapping[str, Any], kind: str) -> list[str]:
    words = str(backend["precision"]).split("+")
    narrow = [word for word in WORDS if word in words and word != "fp32"]
    if not narrow:
        return ["it computes in fp32"]
    reasons = [
        f"{backend['instructions']} does not multiply {word} as such"
        for word in narrow
        if not multiplies(word, backend["instructions"])
    ]
    held = [*_fast_checks(row), *checks(row, TOLERANCES[tolerance_kind(row, kind)])]
    return list(dict.fromkeys([*reasons, *(str(check) for check in held if check.past)]))


def _fast_checks(row: Mapping[str, Any]) -> list[Check]:
    found = []
    if "brain" in row:
        shares = [
            one["brain"]["mean"] / max(one["brain"]["reference_mean"], 1e-12) for one in row["per_volume"]
        ]
        found += [
            Check("median", "mean difference over the brain's mean, median volume", _median(shares), MEDIAN),
            Check("worst", "mean difference over the brain's mean, worst volume", max(shares), WORST),
        ]
    if "years" in row:
        years = most_keep_to([one["years"] for one in row["per_volume"]], 95)
        most = YEARS95["harmonizer" if "brain" in row else "age"]
        found.append(Check("years95", "years that 95 % of scans keep to", years, most))
    if "probability" in row:
        most = row["probability"]["max"]
        found.append(Check("probability", "largest difference in probability", most, PROBABILITY))
    return found


def _median(values: list[float]) -> float:
    return float(np.median(values))
