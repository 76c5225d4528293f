"""In which arithmetic a training runs where it is left to the machine: bf16 where the device multiplies it.

Where it does not, bf16 is emulated and slower than float32. What is settled stands in the checkpoint's
schedule like any other precision.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from hz_train.fit import STATE, Schedule

AUTO = "auto"
CPU_FLAGS = re.compile(r"\b(avx512_bf16|amx_bf16|svebf16|bf16)\b")  # of x86 and of ARM


def settled(schedule: Schedule, device: str, out: Path) -> Schedule:
    """The schedule with a precision that is no `AUTO`.

    device : as for `Run.start`.  out : the run's folder; what it was begun with goes on, on any machine.
    """
    if schedule.precision != AUTO:
        return schedule
    return replace(schedule, precision=begun_with(out) or fastest(device))


def begun_with(out: Path) -> str | None:
    """The precision of the training states in a folder, None where there is none that can be read."""
    for path in sorted(out.rglob(f"*-{Path(STATE).with_suffix('.json')}")):
        try:
            found = json.loads(path.read_text())["settings"]["schedule"]["precision"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, str):
            return found
    return None


def fastest(device: str) -> str:
    """bf16 or float32, by what the device has in hardware."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.is_file() else ""
    return "bf16" if CPU_FLAGS.search(text) else "float32"
