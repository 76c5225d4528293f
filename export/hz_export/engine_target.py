"""What an engine is built with and for: the options, the TensorRT that is installed, and the GPUs.

tensorrt      builds on, and for, the GPU of this machine (or, hardware compatible, for Ampere and newer)
tensorrt_rtx  builds anywhere, without a GPU too, for the compute capabilities it knows
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hz_export.engine_messages import LABELS
from hz_runtime.backends.built_engines import BuildRequest
from hz_runtime.backends.trt import MODULES
from hz_runtime.bundle.engine_cache import Profile
from hz_runtime.errors import BackendError, UsageError

OLDEST_PORTABLE = (8, 0)  # TensorRT for RTX: Turing (7.5) only when asked for, its engines are slower
AMPERE_PLUS = ("8.0+",)
LEAN = MODULES["tensorrt"][1:]  # they run engines and build none
INSTALL = {
    "tensorrt": "On a machine with an NVIDIA GPU:  pip install 'hz-mri[tensorrt]'",
    "tensorrt_rtx": "pip install 'hz-mri[rtx]'",
}


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    flavour : "tensorrt" or "tensorrt_rtx".  profile : batch sizes it accepts.
    capability : compute capabilities, e.g. ("8.9",); none for this machine's GPU (tensorrt) or for all from
    8.0 on that it knows (tensorrt_rtx).  name : the ONNX file's, for messages.
    version_compatible : other TensorRT versions, and the lean runtime, may run it (tensorrt; always off for
    tensorrt_rtx, which ships no lean runtime). It costs some kernels, and brings host code into the engine.
    hardware_compatible : runs on Ampere and newer instead of on this GPU only (tensorrt).
    refit : weights can be replaced later.  strip : the engine holds no weights; they are refitted from the
    ONNX file where it runs. Both need a GPU.
    timing_cache : a file that remembers kernel timings between builds (tensorrt; rtx has none).
    """

    flavour: str = "tensorrt_rtx"
    profile: Profile = field(default_factory=Profile)
    capability: tuple[str, ...] = ()
    name: str = "model.onnx"
    version_compatible: bool = True
    hardware_compatible: bool = False
    refit: bool = False
    strip: bool = False
    timing_cache: Path | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The options that change the engine, as its record states them."""
        chosen = {
            "hardware_compatible": self.hardware_compatible,
            "refit": self.refit,
            "stripped": self.strip,
            "version_compatible": self.version_compatible and self.flavour == "tensorrt",
        }
        return tuple(sorted(name for name, on in chosen.items() if on))


def for_this_gpu(wanted: BuildRequest) -> EngineOptions:
    """How an engine is built that is to run on the machine that builds it.

    Building takes `tensorrt` itself, which then also runs the engine: it is version compatible only where a
    lean runtime is installed beside it, so that runs from a leaner environment of this machine find it in
    their cache and can open it.
    """
    return EngineOptions(
        flavour=wanted.flavour,
        capability=(wanted.capability,),
        name=wanted.file,
        version_compatible=_lean_is_here(),
    )


def _lean_is_here() -> bool:
    return any(find_spec(name) is not None for name in LEAN)


@dataclass(frozen=True)
class Target:
    """A builder that is there, and what it will build for.

    trt : the module.  builder : its name and version, in words.  driver : whether this machine has one.
    """

    trt: Any
    builder: str
    version: str
    capability: tuple[str, ...]
    driver: bool


def find_builder(options: EngineOptions) -> Target:
    """Import the builder and settle what it builds for. Raises BackendError where it cannot, UsageError for
    options that it does not have."""
    flavour = options.flavour
    if flavour not in LABELS:
        raise UsageError(f"No TensorRT is called {flavour!r}.", f"Known: {', '.join(LABELS)}.")
    label = LABELS[flavour]
    if find_spec(flavour) is None:
        if flavour == "tensorrt" and _lean_is_here():
            raise BackendError(
                "Only TensorRT's lean runtime is installed: it runs engines that are version compatible and "
                "builds none.",
                "Build here (pip install 'hz-mri[tensorrt]'), or ship one in the bundle: on a machine with "
                "TensorRT and such a GPU  hz-export --fp16 --engine tensorrt ...",
            )
        raise BackendError(f"{label} ({flavour}) is not installed.", INSTALL[flavour])
    gpu = gpu_capability()
    if gpu is None and flavour == "tensorrt":
        raise BackendError(
            "TensorRT builds on the GPU that an engine is for; this machine has no NVIDIA driver.",
            "Build there, or for workstations without a GPU here:  --engine rtx",
        )
    trt = importlib.import_module(flavour)
    builder = f"{label} {trt.__version__}"
    if flavour == "tensorrt":
        capability: tuple[str, ...] = AMPERE_PLUS if options.hardware_compatible else (str(gpu),)
        if options.capability and options.capability != capability:
            raise UsageError(
                f"{builder} builds for this GPU ({gpu}), not for {', '.join(options.capability)}.",
                "Leave the compute capability out, or build for Ampere and newer (--hardware-compatible).",
            )
    else:
        capability = _rtx_capability(trt, builder, options)
    return Target(trt, builder, str(trt.__version__), capability, gpu is not None)


def gpu_capability() -> str | None:
    """Compute capability of the first GPU, e.g. "9.0", asked of the driver itself; None without a driver or a
    GPU. No TensorRT is touched."""
    from hz_runtime.backends.cuda_driver import probe

    state = probe()
    return state.capability if state.usable else None


def _rtx_capability(trt: Any, builder: str, options: EngineOptions) -> tuple[str, ...]:
    known = rtx_capabilities(trt)
    if options.hardware_compatible:
        raise UsageError(
            f"{builder} has no such option; its engines run on {', '.join(known)}.",
            "Leave --hardware-compatible out.",
        )
    unknown = [number for number in options.capability if number not in known]
    if unknown:
        raise BackendError(
            f"{builder} does not build for compute capability {', '.join(unknown)} "
            f"(it knows {', '.join(known)}).",
            "Data-centre GPUs take TensorRT itself:  --engine tensorrt",
        )
    portable = tuple(number for number in known if _number(number) >= OLDEST_PORTABLE)
    return options.capability or portable


def rtx_capabilities(trt: Any) -> dict[str, Any]:
    """Compute capabilities that this TensorRT for RTX builds for: "8.9" -> the enum member, oldest first."""
    found = {}
    for name, member in trt.ComputeCapability.__members__.items():
        if match := re.fullmatch(r"SM(\d+)(\d)", name):
            found[f"{match[1]}.{match[2]}"] = member
    return dict(sorted(found.items(), key=lambda item: _number(item[0])))


def _number(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def runs_here(capability: tuple[str, ...]) -> bool:
    """Whether this machine's GPU is one that an engine is for."""
    here = gpu_capability()
    return here is not None and (
        here in capability or (capability == AMPERE_PLUS and _number(here) >= (8, 0))
    )
