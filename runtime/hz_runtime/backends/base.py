"""What every engine offers (`Backend`), and which one runs a model (`choose`).

A backend is one network, opened from bytes on one device. It takes float32 batches and gives float32
arrays; `run` may be called from several threads, is deterministic from run to run, and refuses input or
output that is not finite, so that a fault never becomes an image.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from hz_runtime.backends.selfcontained import check_self_contained
from hz_runtime.errors import BackendError, UsageError
from hz_runtime.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hz_runtime.bundle import Bundle, ModelEntry

# The rungs, fastest first: (public name, engine, device, precision that is fastest there).
LADDER = (
    ("onnxruntime-cuda", "onnxruntime", "cuda", "fp16"),
    ("openvino", "openvino", "cpu", "fp32"),
    ("onnxruntime-cpu", "onnxruntime", "cpu", "fp32"),
)
LABELS = {
    "onnxruntime-cuda": "onnxruntime CUDA",
    "openvino": "OpenVINO CPU",
    "onnxruntime-cpu": "onnxruntime CPU",
}
BACKENDS = ("auto", "openvino", "onnxruntime", *(n for n, *_ in LADDER if n.startswith("onnxruntime-")))
REMEDY = "Install an engine:  pip install 'hz-mri[cpu]'"


class Backend(Protocol):
    """One network, opened by one engine on one device.

    name : "onnxruntime" or "openvino".  version : of the engine.
    provider : what really runs it, read back from the engine, e.g. "CPUExecutionProvider".
    device : the hardware, in words.  precision : the type the arithmetic is done in, read back or pinned.
    inputs, outputs : the tensors, with their free axes.  sha256 : of the model's bytes.
    """

    name: str
    version: str
    provider: str
    device: str
    precision: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Every output, by name, of a batch (N, 1, D, H, W) float32; N >= 1 is free.

        Thread-safe. Raises BackendError for another shape or dtype, for input or output that is not finite,
        after `close`, and where the engine fails.
        """
        ...

    def close(self) -> None:
        """Give the engine's memory back; twice is fine."""
        ...


def describe(backend: Backend) -> dict[str, str]:
    """What run.json says about a backend."""
    keys = ("name", "version", "provider", "device", "precision")
    return {key: str(getattr(backend, key)) for key in keys}


def installed() -> tuple[tuple[str, str], ...]:
    """(engine, version) of every engine this environment holds; imports none of them."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for engine, packages in (
        ("openvino", ("openvino",)),
        ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    ):
        if find_spec(engine) is None:
            continue
        label = "unknown"
        for package in packages:
            try:
                label = version(package)
                break
            except PackageNotFoundError:
                continue
        found.append((engine, label))
    return tuple(found)


def usable_threads() -> int:
    """CPUs this process may use (its affinity, not the machine's count): the default for `threads`."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def open_backend(
    name: str, model: bytes, *, device: str = "auto", threads: int | None = None, where: str = "model"
) -> Backend:
    """Open ONNX bytes with engine `name` ("onnxruntime" or "openvino").

    device : "auto" (CUDA where onnxruntime has it, else the CPU), "cpu" or "cuda". threads : CPU threads of
    one run, None for all this process may use. where : the model's name for messages.
    Raises BackendError where the engine is absent or cannot run the model there, BundleError where the model
    points at other files.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads make no sense.", "Use 1 or more.")
    if name not in ("onnxruntime", "openvino"):
        raise UsageError(f"No backend is called {name!r}.", "Known: onnxruntime, openvino.")
    if find_spec(name) is None:
        raise BackendError(f"{name} is not installed.", f"pip install {name}")
    check_self_contained(model, where)
    count = threads or usable_threads()
    if name == "onnxruntime":
        from hz_runtime.backends import ort

        return ort.open_model(model, device, count, where)
    from hz_runtime.backends import openvino

    return openvino.open_model(model, device, count, where)


def choose(
    bundle: Bundle,
    role: str,
    backend: str = "auto",
    require: str | None = None,
    *,
    to: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> tuple[Backend, tuple[str, ...]]:
    """Open the bundle's model of `role` on the first rung of the ladder that works.

    backend : one of BACKENDS; its rungs are tried first, the others after it. require : the same names, and
    no other rung is tried. precision : None for the fastest on the rung (fp16 on CUDA, fp32 on a CPU).
    Returns the backend and one line for every rung tried, the last one being the rung taken.
    Raises BackendError (exit 5) where no rung works, BundleError where the model is not the bundle's.
    """
    steps: list[str] = []
    for rung, engine, device, fastest in _rungs(backend, require):
        missing = _missing(engine, device)
        if missing:
            steps.append(f"{LABELS[rung]}: not available ({missing})")
            continue
        entry = _entry(bundle, role, precision, fastest, to)
        data = bundle.read(entry)
        try:
            opened = open_backend(engine, data, device=device, threads=threads, where=entry.file)
        except BackendError as error:
            steps.append(f"{LABELS[rung]}: could not open {entry.file} ({error.message})")
            continue
        asked = "" if entry.precision == (precision or fastest) else f", {fastest} is not in the bundle"
        steps.append(f"{LABELS[rung]}: runs {entry.file} ({entry.precision}{asked}) on {opened.device}")
        return opened, tuple(steps)
    if require:
        raise BackendError(f"Required backend {require}: {'; '.join(steps)}.", _install_line(require))
    raise BackendError(f"No backend can run {role}: {'; '.join(steps)}.", REMEDY)


def _rungs(backend: str, require: str | None) -> list[tuple[str, str, str, str]]:
    for asked in (backend, require or "auto"):
        if asked not in BACKENDS:
            raise UsageError(f"No backend is called {asked!r}.", f"Known: {', '.join(BACKENDS)}.")
    wanted = backend if require in (None, "auto") else require
    first = [rung for rung in LADDER if wanted in (rung[0], rung[1])]
    if require not in (None, "auto"):
        return first
    return first + [rung for rung in LADDER if rung not in first]


def _missing(engine: str, device: str) -> str:
    """Why a rung cannot even be tried, or ""."""
    if find_spec(engine) is None:
        return f"{engine} is not installed"
    if device == "cuda":
        from hz_runtime.backends import ort

        return "" if ort.has_cuda() else "no CUDAExecutionProvider in this onnxruntime"
    return ""


def _entry(bundle: Bundle, role: str, precision: str | None, fastest: str, to: str | None) -> ModelEntry:
    """The model in the precision asked for; else in the fastest one, else in any that there is."""
    if precision:
        return bundle.model(role, precision=precision, to=to)
    any_precision = bundle.model(role, to=to)
    same = [e for e in bundle.models if e.role == role and e.target == any_precision.target]
    return next((entry for entry in same if entry.precision == fastest), any_precision)


def _install_line(require: str) -> str:
    if require == "onnxruntime-cuda":
        return "On a machine with an NVIDIA GPU:  pip install 'hz-mri[gpu]'  (or leave --require out)"
    extra = "openvino" if require == "openvino" else "cpu"
    return f"pip install 'hz-mri[{extra}]'  (or leave --require out)"


def check_batch(batch: Any, spec: TensorSpec) -> NDArray[np.float32]:
    """The batch as a C-contiguous array, or BackendError with the fault: type, dtype, shape, finiteness."""
    import numpy as np

    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        found = batch.dtype if isinstance(batch, np.ndarray) else type(batch).__name__
        raise BackendError(
            f"Input {spec.name!r} is {found}, the network takes float32 arrays.",
            "Use array.astype('float32').",
        )
    fits = batch.ndim == len(spec.shape) and all(
        length == asked if isinstance(asked, int) else length >= 1
        for length, asked in zip(batch.shape, spec.shape, strict=True)
    )
    if not fits:
        raise BackendError(
            f"Input has shape {batch.shape}, the network takes {spec}.",
            "Prepare the scan with the bundle's recipe first.",
        )
    _check_finite(
        batch, f"Input {spec.name!r}", "Replace them before the network sees them (read_volume does)."
    )
    return np.ascontiguousarray(batch)


def check_outputs(outputs: dict[str, NDArray[np.float32]], ran: str) -> dict[str, NDArray[np.float32]]:
    """The outputs, or BackendError where one is not finite: an overflow must not become an image."""
    for name, array in outputs.items():
        _check_finite(
            array, f"Output {name!r} of {ran}", "Use the fp32 model (another backend), and report this."
        )
    return outputs


def _check_finite(array: NDArray[np.float32], what: str, remedy: str) -> None:
    import numpy as np

    finite = np.isfinite(array)
    if not finite.all():
        items = sorted({int(index) for index in np.nonzero(~finite)[0]})
        count = int(finite.size - np.count_nonzero(finite))
        raise BackendError(f"{what} holds {count} non-finite values (batch item {items[0]}).", remedy)
