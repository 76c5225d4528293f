"""What a benchmark ran on, to print beside its numbers. Holds no name of a machine, user or folder."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "nibabel", "isal", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")


def describe_machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, load, GPU if torch sees one, and package versions."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        # A machine that is busy with something else spoils every ratio here: the reader should know.
        "load_1min_at_start": round(os.getloadavg()[0], 2),
        "gpu": gpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }


def cpu_model() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def gpu_model() -> str | None:
    """The first GPU that torch sees; None where there is none, or torch is not loaded yet."""
    import sys

    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def installed(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
