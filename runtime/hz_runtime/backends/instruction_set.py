"""Which of this processor's instructions decide how a network is computed on it, as one word.

The words are oneDNN's steps, on which OpenVINO's kernels depend: whether int8 and bfloat16 are multiplied as
such, and so how long an answer takes and how far it strays. Evidence of one step says nothing of another.
What an engine did with them is not known here; that is read back from its graph (arithmetic.py).
"""

from __future__ import annotations

import os
from pathlib import Path

# Most capable first: our word, what oneDNN calls it, and the flags of Linux that it takes.
_SETS = (
    ("amx", "AVX512_CORE_AMX", {"amx_tile", "amx_int8", "amx_bf16"}),
    ("avx512_bf16", "AVX512_CORE_BF16", {"avx512_bf16", "avx512_vnni"}),
    ("avx512_vnni", "AVX512_CORE_VNNI", {"avx512_vnni", "avx512bw", "avx512vl", "avx512dq"}),
    ("avx512", "AVX512_CORE", {"avx512bw", "avx512vl", "avx512dq"}),
    ("avx2_vnni", "AVX2_VNNI", {"avx_vnni"}),
    ("avx2", "AVX2", {"avx2"}),
)
UNKNOWN = "unknown"
# Where a type is multiplied as such. Elsewhere int8 gains little in oneDNN and strays (it cuts sums of pairs
# to 16 bits), and bfloat16 is not computed in at all.
_MULTIPLIED = {
    "int8": ("amx", "avx512_bf16", "avx512_vnni", "avx2_vnni"),
    "bf16": ("amx", "avx512_bf16"),
}
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN's own variables: what it is held to


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """ "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2"; "unknown" for any other processor.

    Where oneDNN is held to less by its own variable, that. cpuinfo : of Linux, for tests.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return UNKNOWN
    flags = set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
    limit = next((os.environ[name].upper() for name in _LIMITS if os.environ.get(name)), "")
    names = [name for _, name, _ in _SETS]
    allowed = _SETS[names.index(limit) :] if limit in names else () if limit in ("SSE41", "AVX") else _SETS
    return next((word for word, _, needed in allowed if needed <= flags), UNKNOWN)


def multiplies(kind: str, instructions: str) -> bool:
    """Whether a processor of these instructions multiplies "int8", "bf16" or "fp32" as such."""
    return kind == "fp32" or instructions in _MULTIPLIED.get(kind, ())
