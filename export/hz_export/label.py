"""What a network's precision is called, from what its convolutions compute in. Imports nothing.

Used on ONNX graphs (`graph_report`) and on what TensorRT made of them (`engine_report`), so that both are
judged alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Share of the convolutions' arithmetic from which a network is called by a type. Bfloat16 leaves transposed
# convolutions in float32 (a fifth of the generator's arithmetic), an int8 plan any that cost too much.
LEAST = {"int8": 0.5, "bf16": 0.75, "fp16": 0.9}


def share(flops: Mapping[str, int], word: str) -> float:
    """Of the convolutions' arithmetic, how much is done in `word`: 0 to 1, 0 where there is none."""
    total = sum(flops.values())
    return round(flops.get(word, 0) / total, 6) if total else 0.0


def label(flops: Mapping[str, int], used: Collection[str]) -> str:
    """ "int8", "bf16", "fp16", "fp32", or "mixed" for none of them.

    flops : of the convolutions, per type.  used : types that any operation computes in.
    """
    if set(used) <= {"fp32"}:
        return "fp32"
    return next((word for word, least in LEAST.items() if share(flops, word) >= least), "mixed")
