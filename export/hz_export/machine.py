"""What a benchmark ran on, and how fast that machine multiplies matrices.

Printed beside every number. Holds no name of a machine, user or folder. Imports nothing heavy by itself:
torch is asked only where it is loaded already or the peak is to be measured.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hz_runtime.backends.instruction_set import instruction_set
from hz_runtime.cpus import usable_cpus

PACKAGES = (
    "numpy",
    "scipy",
    "nibabel",
    "isal",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "triton",
    "tensorrt",
    "tensorrt-lean",
    "tensorrt-rtx",
    "cuda-bindings",
    "cuda-core",
)
CPU_SIDE, GPU_SIDE = 2048, 8192  # of the square matrices that are multiplied


def describe_machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, load, GPU and driver, and package versions."""
    return {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "cores": usable_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        # A machine that is busy with something else spoils every ratio here: the reader should know.
        "load_1min_at_start": round(os.getloadavg()[0], 2),
        "gpu": gpu(),
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


def gpu() -> dict[str, Any] | None:
    """The first GPU as the driver names it: name, compute capability, memory, driver; None without one.

    Asks libcuda directly, so that it needs neither torch nor a context on the GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        device, number = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
    except (OSError, AttributeError):
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, 256, device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    size = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    driver.cuDriverGetVersion(ctypes.byref(number))
    return {
        "name": name.value.decode(errors="replace"),
        "capability": ".".join(map(str, capability)),
        "memory_gib": round(size.value / 2**30, 1),
        "driver": kernel_driver(),
        "cuda_of_driver": f"{number.value // 1000}.{number.value % 1000 // 10}",
    }


def kernel_driver() -> str | None:
    """Version of NVIDIA's kernel module, e.g. "570.86.15"; None where there is none to read."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return found.group() if found else None


def installed(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Matmul:
    """A matrix multiplication whose time stands for the machine's peak.

    call : runs it and waits.  flops : floating-point operations of one call, 2 n^3.  how : in words.
    """

    call: Callable[[], object]
    flops: float
    how: str


def matmul(device: str = "cpu", precision: str = "fp32", threads: int | None = None, side: int = 0) -> Matmul:
    """The multiplication that measures this machine's peak.

    device : "cpu" (torch, or numpy where there is no torch) or "cuda" (torch).  precision : "fp32" (no TF32),
    "fp16", "bf16" or "tf32"; other than "fp32" only on "cuda".  threads : of the CPU, None for all.
    side : of the square matrices; 0 for one large enough.
    Raises ImportError without torch on "cuda", ValueError for another precision.
    """
    if precision not in ("fp32", "tf32", "fp16", "bf16") or (device == "cpu" and precision != "fp32"):
        raise ValueError(f"no peak of {precision} is measured on {device}")
    if device == "cpu":
        return _on_cpu(side or CPU_SIDE, threads)
    return _on_cuda(side or GPU_SIDE, precision)


def _on_cpu(n: int, threads: int | None) -> Matmul:
    try:
        import torch
    except ImportError:
        return _numpy(n)
    a, b, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    wanted = threads or usable_cpus()

    def call() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(wanted)
        try:
            return torch.mm(a, b, out=out)
        finally:
            torch.set_num_threads(before)

    return Matmul(call, 2.0 * n**3, f"torch float32, {n} x {n}, {wanted} threads")


def _numpy(n: int) -> Matmul:
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.random((n, n), dtype=np.float32) for _ in range(2))
    out = np.empty((n, n), np.float32)
    return Matmul(lambda: np.matmul(a, b, out=out), 2.0 * n**3, f"numpy float32, {n} x {n}")


def _on_cuda(n: int, precision: str) -> Matmul:
    import torch

    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    a, b = (torch.rand(n, n, device="cuda").to(kind) for _ in range(2))
    out = torch.empty(n, n, device="cuda", dtype=kind)

    def call() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            torch.mm(a, b, out=out)
            torch.cuda.synchronize()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        return out

    return Matmul(call, 2.0 * n**3, f"torch {precision}, {n} x {n}, GPU")
