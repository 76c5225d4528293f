"""onnxruntime, on the CPU or an NVIDIA GPU.

Where the GPU's memory runs out, a batch is run in halves, and in smaller ones from then on; other failures on
a GPU are `EngineFailure`, so that the next engine of the table is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.backends import cuda_driver
from hz_runtime.backends.arithmetic import ALL_FLOAT32, executed_graph, holds_only_float32
from hz_runtime.backends.base import EngineFailure, OutOfMemory, check_batch, check_outputs
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERROR = 3  # log severity: onnxruntime's warnings are about its own optimiser, not the user's scans
_CUDA_OPTIONS = {
    "device_id": "0",
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE picks by timing: another kernel, another rounding
    "use_tf32": "0",  # fp32 means fp32
}
_NO_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|smaller than requested bytes|STATUS_ALLOC_FAILED", re.IGNORECASE
)
_RECORD = "session.record_ep_graph_assignment_info"


def has_cuda() -> bool:
    """Whether this onnxruntime was built with CUDA; whether a GPU is there shows when a model is opened.

    It is not loaded where it brings no library for CUDA.
    """
    spec = find_spec("onnxruntime")
    if spec is not None and spec.origin and not any(Path(spec.origin).parent.glob("capi/*providers_cuda*")):
        return False
    return _CUDA in quiet_onnxruntime().get_available_providers()


@cache
def quiet_onnxruntime() -> Any:
    """The package, imported without its telemetry.

    The mere import of onnxruntime 1.31 (on Linux too) writes a device id and a database of usage events
    under ~/.cache/Microsoft, for upload by native code. A hospital's machine does not do that, so its switch
    is set first; the call after the import is for a program that had imported onnxruntime before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime: Any = import_module("onnxruntime")  # ships no types
    onnxruntime.set_default_logger_severity(_ERROR)
    onnxruntime.disable_telemetry_events()
    if _CUDA in onnxruntime.get_available_providers() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    return onnxruntime


def missing(package: str, device: str) -> tuple[str, str]:
    """Why onnxruntime cannot run on "cpu" or "cuda" here, and the remedy; see registry.py."""
    if find_spec(package) is None:
        return f"{package} is not installed", ""
    if device == "cpu":
        return "", ""
    try:
        found = has_cuda()
    except Exception as error:  # a broken installation raises whatever its libraries do
        return f"onnxruntime does not load ({' '.join(str(error).split())[:200]})", ""
    if not found:
        return "no CUDAExecutionProvider in this onnxruntime", ""
    state = cuda_driver.probe()  # without a driver, onnxruntime would print errors and blame the graph
    return state.problem, state.remedy


def open_model(model: bytes, device: str, threads: int, where: str) -> OrtBackend:
    """Open ONNX bytes on "cpu" or "cuda"; BackendError where not every node runs there."""
    wanted = _CUDA if device == "cuda" else _CPU
    if wanted == _CUDA and not has_cuda():
        raise BackendError("No CUDAExecutionProvider in this onnxruntime.", "pip install 'hz-mri[gpu]'")
    try:
        return OrtBackend(model, wanted, threads)
    except BackendError:
        raise
    except Exception as error:  # onnxruntime has a class for every status code and no common base
        what = f"onnxruntime cannot open {where} on {wanted}: "
        if wanted == _CUDA and (lacking := _lacking()):
            raise BackendError(f"{what}{lacking}.", "pip install 'hz-mri[gpu]'") from None
        raise BackendError(what + _brief(error), _remedy(wanted)) from None


def _lacking() -> str:
    """What onnxruntime's own CUDA library misses on this machine, in the loader's words; "" where it loads.

    onnxruntime goes on without a library that does not load, and says no more than that nodes would be left
    to the CPU.
    """
    library = Path(quiet_onnxruntime().__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return _brief(error)
    return ""


def _options(onnxruntime: Any, provider: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = _ERROR
    options.add_session_config_entry(_RECORD, "1")
    # A thread that spins while it waits takes the core on which the next scan is being read.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == _CUDA:  # otherwise unsupported nodes, or all of them, run on the CPU without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _with_graph(opened: Callable[[], Any], options: Any) -> tuple[Any, bytes]:
    """The session that `opened` gives with these options, and the ONNX graph that it runs.

    onnxruntime gives its optimized graph to a path alone; this one is of memory, so that no file is left
    behind and none is needed where nothing can be written.
    """
    place = os.memfd_create("onnxruntime-graph")
    try:
        options.optimized_model_filepath = f"/proc/self/fd/{place}"
        session = opened()
        return session, os.pread(place, os.fstat(place).st_size, 0)
    finally:
        os.close(place)


class OrtBackend:
    """A network in onnxruntime; see `Backend`. `InferenceSession.run` is itself thread-safe."""

    name = "onnxruntime"

    def __init__(self, model: bytes, provider: str, threads: int) -> None:
        onnxruntime = quiet_onnxruntime()
        choice: Any = (provider, _CUDA_OPTIONS) if provider == _CUDA else provider
        options = _options(onnxruntime, provider, threads)

        def opened() -> Any:
            return onnxruntime.InferenceSession(model, sess_options=options, providers=[choice])

        if holds_only_float32(model):
            session, executed = opened(), ALL_FLOAT32
        else:
            session, graph = _with_graph(opened, options)
            executed = executed_graph(graph)
        self.precision, self.operators = executed.precision, executed.operators
        session.disable_fallback()  # else a failing run silently rebuilds the session on the CPU
        self._session = session
        self.version = str(onnxruntime.__version__)
        self.provider = _proven(session, provider)
        self.device = _cuda_name() if provider == _CUDA else f"CPU, {threads} threads"
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._limit: int | None = None  # volumes a call, once memory has run out
        self._notes: list[str] = []
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be done while running: smaller batches for want of memory."""
        return tuple(self._notes)

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        session = self._session  # one look: another thread may close meanwhile
        if session is None:
            raise BackendError("This backend was closed.", "Open it again.")
        fed = check_batch(batch, self.inputs[0])
        names = [spec.name for spec in self.outputs]
        arrays = self._halving(session, names, fed)
        return check_outputs(dict(zip(names, arrays, strict=True)), f"onnxruntime {self.provider}")

    def _halving(self, session: Any, names: list[str], fed: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Every output of a batch, in as many pieces as the memory that there is takes."""
        import numpy as np

        source = self.inputs[0].name
        while True:
            size = min(len(fed), self._limit or len(fed))
            pieces = [fed[k : k + size] for k in range(0, len(fed), size)]
            try:
                parts = [session.run(names, {source: piece}) for piece in pieces]
                return [np.concatenate(found) for found in zip(*parts, strict=True)]
            except Exception as error:  # see open_model
                said = _brief(error)
                if not _NO_MEMORY.search(said):
                    raise EngineFailure(
                        f"onnxruntime cannot run the network: {said}", _remedy(self.provider)
                    ) from None
                if size == 1:
                    remedy = _remedy(self.provider)
                    raise OutOfMemory(f"onnxruntime is out of memory: {said}", remedy) from None
                self._halve(size)

    def _halve(self, size: int) -> None:
        """Room for half as many from here on, where no other thread has found that out already."""
        with self._lock:
            if self._limit is None or self._limit >= size:
                self._limit = size // 2
                self._notes.append(
                    f"onnxruntime: out of memory at batches of {size}; at most {self._limit} from here on"
                )

    def close(self) -> None:
        self._session = None


def _proven(session: Any, provider: str) -> str:
    """The provider that every node was assigned to, read back from the session; BackendError where it is not.

    `get_providers()` lists what was registered, not what runs: nodes that a provider does not support go to
    the CPU. The assignment record says where each one went.
    """
    ran = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    if not ran <= {provider}:
        found = ", ".join(sorted(ran))
        raise BackendError(f"onnxruntime put nodes on {found}, asked for {provider}.", _remedy(provider))
    if session.get_providers()[0] != provider:  # a graph folded to constants has no nodes to ask
        raise BackendError(f"onnxruntime fell back to {session.get_providers()[0]}.", _remedy(provider))
    return provider


def _spec(node: Any) -> TensorSpec:
    kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    shape = tuple(n if isinstance(n, int) else str(n or "?") for n in node.shape)
    return TensorSpec(node.name, shape, kinds.get(node.type, node.type))


def _cuda_name() -> str:
    """The GPU's own name where the driver library tells it."""
    name = ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0 and driver.cuDeviceGetName(name, 256, 0) == 0:
            return name.value.decode(errors="replace")
    except OSError:
        pass
    return "CUDA device 0"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _remedy(provider: str) -> str:
    if provider == _CUDA:
        return "Check the GPU and its driver (nvidia-smi), or use --backend onnxruntime-cpu."
    return "Re-export the bundle, or use another backend (--backend openvino)."
