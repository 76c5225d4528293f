"""What every engine offers (`Backend`), and the checks that all of them make. Which there are: registry.py.

A backend is one network, opened from bytes on one device. It takes float32 batches and gives float32
arrays; `run` may be called from several threads, is deterministic from run to run, and refuses input or
output that is not finite, so that a fault never becomes an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError, GridMismatch, NonFiniteInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


REMEDY = "Install an engine:  pip install 'hz-mri[cpu]'"


class EngineFailure(BackendError):
    """An engine that had opened failed to run: no fault of what it was given. Another may do better."""


class OutOfMemory(EngineFailure):
    """The GPU has no room, not even for the smallest batch."""


class Backend(Protocol):
    """One network, opened by one engine on one device.

    name : "tensorrt", "tensorrt-rtx", "onnxruntime", "openvino" or "remote".  version : of the engine.
    provider : what really runs it, read back from the engine, e.g. "CPUExecutionProvider".
    device : the hardware, in words.  precision : the types that its convolutions and matrix
    products are computed in, read back or pinned: "fp32", "fp16", "bf16", "int8", or several, the narrowest
    first ("int8+fp32").
    inputs, outputs : the tensors, with their free axes.  sha256 : of the ONNX model's bytes.
    A backend may also have `operators`, the share of its operators that is computed in each type, read back
    likewise; `hint`, in what it was asked to compute what the file holds as float32 ("bf16"; where there is
    none, "fp32"); `engine_sha256`, of a built engine's bytes; and `notes`, see `notes`.
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

        Thread-safe. Raises GridMismatch for another shape or dtype, NonFiniteInput for input that is not
        finite; BackendError for output that is not, after `close`, and where the engine fails
        (EngineFailure, where another engine might not).
        """
        ...

    def close(self) -> None:
        """Give the engine's memory back; twice is fine."""
        ...


def describe(backend: Backend) -> dict[str, Any]:
    """What run.json says about a backend."""
    keys = ("name", "version", "provider", "device", "precision")
    described: dict[str, Any] = {key: str(getattr(backend, key)) for key in keys}
    if operators := getattr(backend, "operators", None):
        described["operators"] = dict(operators)
    if (hint := hint_of(backend)) != "fp32":
        described["hint"] = hint
    if engine := getattr(backend, "engine_sha256", ""):
        described["engine_sha256"] = str(engine)
    return described


def hint_of(backend: Backend) -> str:
    """In what a backend was asked to compute what its file holds as float32: "fp32" or "bf16"."""
    return str(getattr(backend, "hint", "fp32"))


def notes(backend: Backend) -> tuple[str, ...]:
    """What a backend had to do to go on, one line each: smaller batches, or another engine."""
    return tuple(getattr(backend, "notes", ()))


def on_gpu(backend: Backend) -> bool:
    """Whether the network runs on a GPU, where batches pay."""
    return "CUDA" in backend.provider.upper()


def check_batch(batch: Any, spec: TensorSpec) -> NDArray[np.float32]:
    """The batch as a C-contiguous array.

    Raises GridMismatch for another type, dtype or shape, NonFiniteInput for values that are not finite.
    """
    import numpy as np

    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        found = batch.dtype if isinstance(batch, np.ndarray) else type(batch).__name__
        raise GridMismatch(
            f"Input {spec.name!r} is {found}, the network takes float32 arrays.",
            "Use array.astype('float32').",
        )
    fits = batch.ndim == len(spec.shape) and all(
        length == asked if isinstance(asked, int) else length >= 1
        for length, asked in zip(batch.shape, spec.shape, strict=True)
    )
    if not fits:
        raise GridMismatch(
            f"Input has shape {batch.shape}, the network takes {spec}.",
            "Prepare the scan with the bundle's recipe first.",
        )
    if found := _non_finite(batch):
        raise NonFiniteInput(
            f"Input {spec.name!r} holds {found}.",
            "Replace them before the network sees them (read_volume does).",
        )
    return np.ascontiguousarray(batch)


def check_outputs(outputs: dict[str, NDArray[np.float32]], ran: str) -> dict[str, NDArray[np.float32]]:
    """The outputs, or BackendError where one is not finite: an overflow must not become an image.

    That an output is finite does not prove that nothing overflowed: engines may turn NaN into 0 in a Relu or
    Clip further inside (ov.py says what was measured there). Parity on real volumes shows that.
    """
    for name, array in outputs.items():
        if found := _non_finite(array):
            raise BackendError(
                f"Output {name!r} of {ran} holds {found}.",
                "Use the fp32 model (another backend), and report this.",
            )
    return outputs


def _non_finite(array: NDArray[np.float32]) -> str:
    """How many values are not finite, and where the first is, in words; "" where all are."""
    import numpy as np

    finite = np.isfinite(array)
    if finite.all():
        return ""
    item = int(np.nonzero(~finite)[0].min())
    count = int(finite.size - np.count_nonzero(finite))
    return f"{count} non-finite values (batch item {item})"
