"""What a benchmark ran on: `hz_export.machine`, found beside this folder whether hz is installed or not."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / room) for room in ("runtime", "export")]

from hz_export.machine import Matmul, cpu_model, describe_machine, gpu, installed, matmul  # noqa: E402

__all__ = ["Matmul", "cpu_model", "describe_machine", "gpu", "installed", "matmul"]
