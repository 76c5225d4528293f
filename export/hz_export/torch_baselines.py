"""The same network in PyTorch, in the ways that people run it: what hz's engines are compared with.

Each way has a copy of the network of its own. On a GPU convolutions may choose their kernels by timing
(`cudnn.benchmark`), so that eager PyTorch shows its best; float32 means float32, and TF32, which PyTorch
uses by default, is a way of its own with its own name. On a CPU only float32 is run: half precision there
is emulated, and comparing with it would flatter hz.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hz_export.bench import F32, Candidate, OpenCandidate
from hz_runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Way:
    """One way of running a network in torch.

    stored : dtype of weights and volumes, "float32" or "float16".  autocast : float16 where torch thinks it
    safe.  channels_last : memory layout (N, D, H, W, C).  compiled : by torch.compile, default mode, one
    graph a batch size.  tf32 : let convolutions round to TF32.
    """

    name: str
    stored: str = "float32"
    autocast: bool = False
    channels_last: bool = False
    compiled: bool = False
    tf32: bool = False

    @property
    def precision(self) -> str:
        if self.stored == "float16" or self.autocast:
            return "fp16"
        return "tf32" if self.tf32 else "fp32"


ON_CPU = (
    Way("torch eager fp32"),
    Way("torch eager fp32 channels_last_3d", channels_last=True),
    Way("torch.compile fp32", compiled=True),
)
ON_CUDA = (
    Way("torch eager fp32"),
    Way("torch eager tf32", tf32=True),
    Way("torch autocast fp16", autocast=True),
    Way("torch eager fp16", stored="float16"),
    Way("torch eager fp16 channels_last_3d", stored="float16", channels_last=True),
    Way("torch.compile fp16", stored="float16", compiled=True),
    Way("torch.compile fp16 channels_last_3d", stored="float16", channels_last=True, compiled=True),
)
EAGER_HALF = ("torch autocast fp16", "torch eager fp16", "torch eager fp16 channels_last_3d")


def torch_candidates(network: nn.Module, device: str, threads: int | None = None) -> list[Candidate]:
    """Every way of `network` (float32, on the CPU; it is copied) on "cpu" or "cuda"."""
    ways = ON_CUDA if device == "cuda" else ON_CPU
    return [Candidate(way.name, _opener(network, way, device, threads)) for way in ways]


def gpu_only(device: str) -> list[str]:
    """Names of the ways that this device leaves out."""
    return [] if device == "cuda" else [way.name for way in ON_CUDA if way.precision != "fp32"]


def _opener(network: nn.Module, way: Way, device: str, threads: int | None) -> Callable[[], OpenCandidate]:
    return lambda: TorchBaseline(network, way, device, threads).candidate()


class TorchBaseline:
    """One way, opened: weights moved, converted, and wrapped by torch.compile where asked."""

    def __init__(self, network: nn.Module, way: Way, device: str, threads: int | None = None) -> None:
        import torch

        self.torch, self.way, self.device, self.threads = torch, way, device, threads or usable_cpus()
        self.dtype = getattr(torch, way.stored)
        self.layout = torch.channels_last_3d if way.channels_last else torch.contiguous_format
        module = copy.deepcopy(network).eval().to(device=device, dtype=self.dtype)
        module = module.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch's stubs lack it
        self.call: Any = torch.compile(module, dynamic=False) if way.compiled else module

    def candidate(self) -> OpenCandidate:
        resident = self.resident if self.device == "cuda" else None
        return OpenCandidate(
            self.way.name, self.device, self.way.precision, self.describe(), self.answer, resident, self.close
        )

    def describe(self) -> Mapping[str, str]:
        """As `backends.describe` does for an engine."""
        torch = self.torch
        gpu = self.device == "cuda"
        return {
            "name": "torch",
            "version": str(torch.__version__),
            "provider": "compile" if self.way.compiled else "eager",
            "device": torch.cuda.get_device_name() if gpu else f"CPU, {self.threads} threads",
            "precision": self.way.precision,
            **({"cudnn": str(torch.backends.cudnn.version())} if gpu else {}),  # it makes or breaks a conv3d
        }

    def answer(self, batch: F32) -> F32:
        """From host memory to host memory, float32 at both ends, as a caller would write it."""
        made = self._run(self._put(batch))
        found: F32 = made.float().contiguous().cpu().numpy()
        return found

    def resident(self, batch: F32) -> Callable[[], object]:
        """The network alone on a batch that lies on the GPU, waiting until it is done."""
        laid = self._put(batch)

        def call() -> object:
            made = self._run(laid)
            self.torch.cuda.synchronize()
            return made

        call()  # compile, and choose kernels, where a failure still has a name
        return call

    def close(self) -> None:
        self.call = None
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def _put(self, batch: F32) -> Tensor:
        tensor = self.torch.from_numpy(np.ascontiguousarray(batch))
        moved: Tensor = tensor.to(self.device, self.dtype).contiguous(memory_format=self.layout)
        return moved

    def _run(self, laid: Tensor) -> Tensor:
        torch = self.torch
        with torch.inference_mode():
            if self.device == "cpu":
                return self._on_threads(laid)
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=self.way.tf32)
            with flags, torch.autocast("cuda", torch.float16, enabled=self.way.autocast):
                made: Tensor = self.call(laid)
                return made

    def _on_threads(self, laid: Tensor) -> Tensor:
        torch = self.torch
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            made: Tensor = self.call(laid)
            return made
        finally:
            torch.set_num_threads(before)
