"""TensorRT engines on an NVIDIA GPU, without torch: `tensorrt`, its lean runtimes, and TensorRT for RTX.

An engine is machine code. Its bytes are hashed against its record before any TensorRT module sees them, and
whether it fits this GPU and an installed TensorRT is settled from the record and the driver alone: creating a
TensorRT runtime where there is no driver would end the interpreter with a crash.

An engine without weights (hz-export --strip-weights) is given those of its ONNX file each time it is opened.
That takes a TensorRT with an ONNX parser, which the lean runtimes have not.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hz_runtime.backends import cuda_driver
from hz_runtime.backends.arithmetic import shares
from hz_runtime.backends.base import EngineFailure, OutOfMemory, check_batch, check_outputs
from hz_runtime.backends.cuda_driver import DriverState
from hz_runtime.backends.trt_buffers import Loaded, Workspace, failure, pieces
from hz_runtime.bundle.engine_cache import EngineRecord
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError
from hz_runtime.io.atomic import sha256_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Flavour of an engine -> the modules that may run it, best first.
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
    "tensorrt_rtx": ("tensorrt_rtx",),
}
# A version-compatible engine runs on the same major version, not older, and on these later ones
# (TensorRT 11.4 support matrix, "Engine Portability").
_LATER_MAJOR = {8: 10, 10: 11}
_MESSAGE = 300  # characters of a TensorRT message that are kept


def missing(flavour: str, _device: str = "cuda") -> tuple[str, str]:
    """Why no engine of this flavour can run here, half a sentence, and the remedy ("" : install its extra);
    ("", "") where one can. See registry.py.

    Asks the driver library and what is installed; imports no TensorRT.
    """
    if not cuda_driver.has_driver():
        state = cuda_driver.probe()
        return state.problem, state.remedy
    modules = [name for name in MODULES[flavour] if find_spec(name) is not None]
    if not modules:
        return f"{' or '.join(MODULES[flavour])} is not installed", ""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed", "pip install cuda-bindings"
    state = cuda_driver.probe()
    if not state.usable:
        return state.problem, state.remedy
    wanted = max(_built_for(name) for name in modules)
    if state.cuda[0] < wanted:
        found = ".".join(map(str, state.cuda))
        return f"the NVIDIA driver runs CUDA {found}, {modules[0]} needs {wanted}", "Update NVIDIA's driver."
    return "", ""


def _built_for(module: str) -> int:
    """Major version of the CUDA that an installed TensorRT is for, as its package says; 0 if it does not."""
    try:
        needs = " ".join(metadata.requires(module) or ())
    except metadata.PackageNotFoundError:
        return 0
    found = re.search(r"[_-]cu(\d+)", needs)
    return int(found[1]) if found else 0


def fits_gpu(record: EngineRecord, state: DriverState) -> bool:
    """Whether the engine was built for this GPU. "8.0+" stands for that capability and every later one."""
    return any(
        version_order(state.capability) >= version_order(built[:-1])
        if built.endswith("+")
        else built == state.capability
        for built in record.capability
    )


def runs_on(record: EngineRecord, module: str, version: str) -> bool:
    """Whether this version of a TensorRT module may run the engine."""
    portable = "version_compatible" in record.flags
    if module not in MODULES[record.flavour] or (module != record.flavour and not portable):
        return False
    if module == "tensorrt_dispatch" and not _holds_code(record):
        return False  # it runs nothing itself, only the lean runtime that an engine brings along
    if version == record.version or not portable:
        return version == record.version
    here, built = version_order(version), version_order(record.version)
    return here[0] == _LATER_MAJOR.get(built[0]) or (here[0] == built[0] and here >= built)


def _holds_code(record: EngineRecord) -> bool:
    """Whether a lean runtime, host code, is packed into the engine: so by default where it is portable."""
    return "version_compatible" in record.flags and "exclude_lean_runtime" not in record.flags


def version_order(text: str) -> tuple[int, ...]:
    """The numbers in a version, or in a compute capability, as they compare."""
    return tuple(int(part) for part in re.findall(r"\d+", text)) or (0,)


def module_for(record: EngineRecord, state: DriverState, where: str) -> Any:
    """Import the TensorRT that runs this engine on this GPU. Call it only where `missing` finds nothing.

    Raises BackendError, saying what the engine was built for and how to build another.
    """
    if not fits_gpu(record, state):
        raise BackendError(
            f"{where} was built for compute capability {', '.join(record.capability)}, "
            f"{state.device} has {state.capability}",
            rebuild(record.flavour),
        )
    stripped = "stripped" in record.flags
    found = []
    for name in MODULES[record.flavour]:
        if find_spec(name) is None:
            continue
        try:
            trt = import_module(name)
        except Exception as error:  # a broken install raises whatever its libraries do
            found.append(f"{name} (does not load: {_brief(str(error))})")
            continue
        if not runs_on(record, name, str(trt.__version__)):
            found.append(f"{name} {trt.__version__}")
        elif stripped and not hasattr(trt, "OnnxParserRefitter"):
            found.append(f"{name} {trt.__version__}, which cannot put weights in")
        else:
            return trt
    kind = ", version compatible" if "version_compatible" in record.flags else ""
    kind += ", without weights" if stripped else ""
    remedy = rebuild(record.flavour)
    if any("weights" in text for text in found):
        whole = record.flavour.replace("_", "-")
        remedy = f"pip install {whole}  or build it with its weights: hz-export without --strip-weights"
    raise BackendError(
        f"{where} was built by {record.flavour} {record.version}{kind}; here is {', '.join(found) or 'none'}",
        remedy,
    )


def fits(record: EngineRecord) -> bool:
    """Whether it runs on this GPU and an installed TensorRT. Ask only where `missing` finds nothing."""
    try:
        module_for(record, cuda_driver.probe(), "")
    except BackendError:
        return False
    return True


def rebuild(flavour: str) -> str:
    """The command that builds an engine that fits here."""
    kind = "rtx" if flavour == "tensorrt_rtx" else "tensorrt"
    return f"Build it for this GPU:  hz-run without --no-build, or hz-export --fp16 --engine {kind} ..."


def open_engine(
    data: bytes,
    record: EngineRecord,
    where: str = "the engine",
    *,
    cuda_graphs: bool = False,
    weights: Callable[[], bytes] | None = None,
) -> TensorRtBackend:
    """Open a built engine on the first GPU.

    data : its bytes, which must be the record's.  where : its name for messages.
    cuda_graphs : replay CUDA graphs.  weights : gives the ONNX file that it was built from, where that is at
    hand; asked only for an engine that holds no weights.
    Raises BackendError where it is not the record's engine, does not fit this GPU or TensorRT, or lacks its
    weights; OutOfMemory where not even its smallest batch fits the GPU.
    """
    problem, remedy = missing(record.flavour)
    if problem:
        raise BackendError(f"{where} cannot run: {problem}", remedy or rebuild(record.flavour))
    if sha256_bytes(data) != record.sha256:  # before anything of it is read
        raise BackendError(f"{where} does not match its sha256", rebuild(record.flavour))
    state = cuda_driver.probe()
    trt = module_for(record, state, where)
    onnx = _weights(record, where, weights) if "stripped" in record.flags else None
    return TensorRtBackend(trt, cuda_driver.Cuda(), data, record, where, state.device, cuda_graphs, onnx)


def _weights(record: EngineRecord, where: str, given: Callable[[], bytes] | None) -> bytes:
    """The ONNX file that a stripped engine was built from, proven to be that."""
    onnx = given() if given is not None else b""
    if sha256_bytes(onnx) != record.model_sha256:
        found = "another one" if onnx else "none"
        raise BackendError(
            f"{where} holds no weights: it needs the ONNX file {record.model_sha256[:12]}..., "
            f"{found} is given",
            "Run it from the bundle that it was exported with.",
        )
    return onnx


class TensorRtBackend:
    """A network as a TensorRT engine; see `Backend`. Runs of several threads follow one another.

    engine_sha256 : of the engine's bytes; `sha256` is that of the ONNX file it was built from.
    notes : what had to be done while running, e.g. smaller batches for want of memory.
    """

    def __init__(
        self,
        trt: Any,
        gpu: cuda_driver.Cuda,
        data: bytes,
        record: EngineRecord,
        where: str,
        device: str,
        cuda_graphs: bool,
        onnx: bytes | None = None,
    ) -> None:
        self.name = record.flavour.replace("_", "-")
        self.version = str(trt.__version__)
        self.provider = f"CUDA ({trt.__name__})"
        self.device = device
        self.precision = record.precision
        self.operators = shares(record.layers)
        self.sha256 = record.model_sha256
        self.engine_sha256 = record.sha256
        self._notes: list[str] = []
        self._lock = threading.Lock()
        self._cuda: cuda_driver.Cuda | None = gpu
        self._space: Workspace | None = None
        try:
            self._runtime, self._loaded = _load(trt, data, record, where, onnx)
            self.inputs: tuple[TensorSpec, ...] = (self._loaded.source,)
            self.outputs = self._loaded.outputs
            self._tuned, self._limit = record.profile.tuned, record.profile.most
            self._cuda_graphs = cuda_graphs
            self._opened()
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        fed = check_batch(batch, self.inputs[0])
        with self._lock:
            found = self._run(fed)
        return check_outputs(found, f"{self.name} {self.version}")

    def resident(self, batch: NDArray[np.float32]) -> Callable[[], None]:
        """A call that computes `batch`, which stays on the GPU, and waits; no data moves. For benchmarks.

        Raises BackendError for a batch that is not run in one piece.
        """
        fed = check_batch(batch, self.inputs[0])
        with self._lock:
            _, space = self._opened()
            if not self._loaded.least <= len(fed) <= space.most:
                raise BackendError(f"A batch of {len(fed)} is not run in one piece.", "Use a smaller one.")
            call = space.resident(fed)

        def locked() -> None:
            with self._lock:
                self._opened()
                call()

        return locked

    def close(self) -> None:
        with self._lock:
            gpu, self._cuda = self._cuda, None
            if gpu is None:
                return
            if self._space is not None:
                try:
                    gpu.use()
                    self._space.close()
                except EngineFailure:  # a GPU that has failed takes nothing back
                    pass
            self._space = None
            self._loaded = self._runtime = None  # type: ignore[assignment]
            gpu.close()

    def _opened(self) -> tuple[cuda_driver.Cuda, Workspace]:
        """The GPU, made this thread's, and room on it."""
        gpu = self._cuda
        if gpu is None:
            raise BackendError("This backend was closed.", "Open it again.")
        gpu.use()
        while self._space is None:
            try:
                self._space = Workspace(self._loaded, gpu, self._limit, self._cuda_graphs, self._notes)
            except OutOfMemory as error:
                self._halve(error)
        return gpu, self._space

    def _run(self, fed: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        while True:
            _, space = self._opened()
            try:
                return space.run(fed, pieces(len(fed), self._tuned, self._limit))
            except OutOfMemory as error:
                space.close()
                self._space = None
                self._halve(error)

    def _halve(self, error: OutOfMemory) -> None:
        """Room for half as many from here on; raises `error` where it is for the smallest batch already."""
        if self._limit <= self._loaded.least:
            raise error
        before, self._limit = self._limit, max(self._loaded.least, self._limit // 2)
        self._notes.append(
            f"{self.name}: GPU out of memory with room for batches of {before}; "
            f"at most {self._limit} from here on"
        )


def _load(trt: Any, data: bytes, record: EngineRecord, where: str, onnx: bytes | None) -> tuple[Any, Loaded]:
    """The TensorRT runtime, which must outlive its engine, and the engine, with the weights of `onnx`."""
    logger, log = _shared_logger(trt)
    log.clear()
    runtime = trt.Runtime(logger)
    if _holds_code(record):
        runtime.engine_host_code_allowed = True  # `open_engine` has checked whose code it is
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise failure(log, f"load {where}")
    if onnx is not None:
        _refit(trt, engine, logger, log, onnx, where)
    sources, outputs = _specs(trt, engine)
    wrong = _wrong_tensors(sources, outputs) or _wrong_profile(engine, sources[0], record)
    if wrong:
        raise BackendError(f"{where} {wrong}", rebuild(record.flavour))
    return runtime, Loaded(trt, engine, log, sources[0], tuple(outputs), record.profile.least)


def _refit(trt: Any, engine: Any, logger: Any, log: list[str], onnx: bytes, where: str) -> None:
    """Put the weights of an ONNX file into an engine that was built from it without them."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(onnx):
        log += [_brief(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise failure(log, f"read the weights of {where}")
    if not refitter.refit_cuda_engine():
        raise failure(log, f"put the weights into {where}")


@cache
def _shared_logger(trt: Any) -> tuple[Any, list[str]]:
    """One logger a module, and what it keeps: TensorRT sends some messages to the first that it was given."""
    log: list[str] = []
    return _logger(trt, log), log


def _logger(trt: Any, log: list[str]) -> Any:
    """A TensorRT logger that keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.append(_brief(msg))

    return Log()


def _specs(trt: Any, engine: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The engine's inputs and outputs; a free axis is "N"."""
    kinds = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    sources: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple("N" if length == -1 else int(length) for length in engine.get_tensor_shape(name))
        kind = engine.get_tensor_dtype(name)
        way = sources if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        way.append(TensorSpec(str(name), shape, kinds.get(kind, str(kind))))
    return sources, outputs


def _wrong_tensors(sources: list[TensorSpec], outputs: list[TensorSpec]) -> str:
    """Why an engine with these tensors is not run here, or ""."""
    if len(sources) != 1 or not outputs:
        return f"has {len(sources)} inputs and {len(outputs)} outputs"
    for spec in (*sources, *outputs):
        if spec.dtype != "float32" or spec.shape[:1] != ("N",) or "N" in spec.shape[1:]:
            return f"has a tensor {spec}, not float32 with a free batch"
    return ""


def _wrong_profile(engine: Any, source: TensorSpec, record: EngineRecord) -> str:
    """Why the engine is not the one that its record speaks of, or ""."""
    asked = (record.profile.least, record.profile.tuned, record.profile.most)
    takes = tuple(int(shape[0]) for shape in engine.get_tensor_profile_shape(source.name, 0))
    return "" if takes == asked else f"takes batches {takes}, its record says {asked}"


def _brief(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE]
