"""What every engine offers (`Backend`), and the rungs of the ladder of them (ladder.py picks one).

A backend is one network, opened from bytes on one device. It takes float32 batches and gives float32
arrays; `run` may be called from several threads, is deterministic from run to run, and refuses input or
output that is not finite, so that a fault never becomes an image.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from hz_runtime.backends.external_data import check_self_contained
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.cpus import usable_cpus
from hz_runtime.errors import BackendError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# The rungs, fastest first: (public name, engine, device, precision that is fastest there).
LADDER = (
    ("tensorrt", "tensorrt", "cuda", "fp16"),
    ("tensorrt-rtx", "tensorrt_rtx", "cuda", "fp16"),
    ("onnxruntime-cuda", "onnxruntime", "cuda", "fp16"),
    ("openvino", "openvino", "cpu", "fp32"),
    ("onnxruntime-cpu", "onnxruntime", "cpu", "fp32"),
)
LABELS = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
    "onnxruntime-cuda": "onnxruntime CUDA",
    "openvino": "OpenVINO CPU",
    "onnxruntime-cpu": "onnxruntime CPU",
}
BACKENDS = (
    "auto",
    "tensorrt",
    "tensorrt-rtx",
    "openvino",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-cpu",
)
REMEDY = "Install an engine:  pip install 'hz-mri[cpu]'"


class EngineFailure(BackendError):
    """An engine that had opened failed to run: no fault of what it was given. The next rung may do better."""


class OutOfMemory(EngineFailure):
    """The GPU has no room, not even for the smallest batch."""


class Backend(Protocol):
    """One network, opened by one engine on one device.

    name : "tensorrt", "tensorrt-rtx", "onnxruntime" or "openvino".  version : of the engine.
    provider : what really runs it, read back from the engine, e.g. "CPUExecutionProvider".
    device : the hardware, in words.  precision : the type the arithmetic is done in, read back or pinned.
    inputs, outputs : the tensors, with their free axes.  sha256 : of the ONNX model's bytes.
    A backend may also have `engine_sha256`, of a built engine's bytes, and `notes`, see `notes`.
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
        """Every output, by name, of volumes (N, 1, D, H, W) or slices (N, 1, D, H) float32; N >= 1 is free.

        Thread-safe. Raises BackendError for another shape or dtype, for input or output that is not finite,
        after `close`, and where the engine fails (EngineFailure, where another engine might not).
        """
        ...

    def close(self) -> None:
        """Give the engine's memory back; twice is fine."""
        ...


def describe(backend: Backend) -> dict[str, str]:
    """What run.json says about a backend."""
    keys = ("name", "version", "provider", "device", "precision")
    told = {key: str(getattr(backend, key)) for key in keys}
    if engine := getattr(backend, "engine_sha256", ""):
        told["engine_sha256"] = str(engine)
    return told


def arithmetic(model: bytes, floats: str) -> str:
    """`Backend.precision` of an engine that computes in `floats` what is not quantized.

    A quantized ONNX file names its operators in plain bytes, so that no ONNX package is needed to see them.
    """
    return f"int8, else {floats}" if b"DequantizeLinear" in model else floats


def notes(backend: Backend) -> tuple[str, ...]:
    """What a backend had to do to go on, one line each: smaller batches, or another rung of the ladder."""
    return tuple(getattr(backend, "notes", ()))


def on_gpu(backend: Backend) -> bool:
    """Whether the network runs on a GPU, where batches pay."""
    return "CUDA" in backend.provider.upper()


def installed() -> tuple[tuple[str, str], ...]:
    """(engine, version) of every engine here that takes ONNX bytes (`open_backend`); imports none of them."""
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
    count = threads or usable_cpus()
    if name == "onnxruntime":
        from hz_runtime.backends import ort

        return ort.open_model(model, device, count, where)
    from hz_runtime.backends import ov

    return ov.open_model(model, device, count, where)


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
    """The outputs, or BackendError where one is not finite: an overflow must not become an image.

    That an output is finite does not prove that nothing overflowed: engines may turn NaN into 0 in a Relu or
    Clip further inside (ov.py says what was measured there). Parity on real volumes shows that.
    """
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
