"""The NVIDIA driver: whether there is one, what GPU it drives, and the calls that running an engine takes.

`probe` asks the driver library itself (ctypes), before any TensorRT is touched: creating a TensorRT runtime
on a machine without a driver ends the interpreter with a crash. `Cuda` owns memory, streams, events and
graphs on the first GPU, through cuda-bindings.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.base import EngineFailure, OutOfMemory
from hz_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# CUresult and CUdevice_attribute, from cuda.h
_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76
_DRIVER = "Install NVIDIA's driver; nvidia-smi shows whether it works."
# What cuInit says -> what that means, and what to do.
_WHY = {
    34: ("libcuda is the CUDA toolkit's stub, not a driver", _DRIVER),
    100: (
        "the NVIDIA driver finds no GPU",
        "Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
    ),
    802: ("the NVIDIA driver is not ready", "Start the machine's NVIDIA Fabric Manager, then try again."),
    803: ("the NVIDIA driver and its kernel module are of different versions", "Restart the machine."),
    804: ("the CUDA compatibility library does not support this GPU", "Update NVIDIA's driver instead."),
}


@dataclass(frozen=True)
class DriverState:
    """What the driver says of this machine's first GPU.

    problem : why no GPU can be used, half a sentence; "" where one can.  remedy : what to do about it.
    cuda : the newest CUDA that the driver runs, e.g. (13, 0).  device : the GPU's name.
    capability : its compute capability, e.g. "9.0".  memory : of the GPU, in bytes.
    """

    problem: str = ""
    remedy: str = ""
    cuda: tuple[int, int] = (0, 0)
    device: str = ""
    capability: str = ""
    memory: int = 0

    @property
    def usable(self) -> bool:
        """Whether there is a driver and a GPU."""
        return not self.problem

    def __str__(self) -> str:
        """One line."""
        if self.problem:
            return self.problem
        size = f"{self.memory / 2**30:.0f} GiB"
        return f"{self.device} ({self.capability}, {size}), CUDA {self.cuda[0]}.{self.cuda[1]}"


@cache
def probe() -> DriverState:
    """The driver's state, asked once a process. Never raises; imports neither TensorRT nor cuda-bindings."""
    return ask(_library())


@cache
def _library() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def has_driver() -> bool:
    """Whether a driver library is there at all: costs nothing, while `probe` starts the driver."""
    return _library() is not None


def ask(library: Any) -> DriverState:
    """The state behind a driver library, or behind None.

    library : a ctypes.CDLL of libcuda, or an object with the functions used here.
    """
    if library is None:
        return DriverState("no NVIDIA driver is installed", _DRIVER)
    code = int(library.cuInit(0))
    if code != 0:
        problem, remedy = _WHY.get(code, (f"the NVIDIA driver does not start (cuInit says {code})", _DRIVER))
        return DriverState(problem, remedy)
    try:
        version = _number(library.cuDriverGetVersion)
        cuda = (version // 1000, version % 1000 // 10)
        if _number(library.cuDeviceGetCount) < 1:
            return DriverState(*_WHY[100], cuda=cuda)
        device = _number(library.cuDeviceGet, 0)
        name = ctypes.create_string_buffer(256)
        _expect(library.cuDeviceGetName(name, 256, device))
        memory = ctypes.c_size_t()
        _expect(library.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
        major, minor = (_number(library.cuDeviceGetAttribute, which, device) for which in (_MAJOR, _MINOR))
    except OSError as error:
        return DriverState(f"the NVIDIA driver does not answer ({error})", _DRIVER)
    return DriverState(
        cuda=cuda,
        device=name.value.decode(errors="replace"),
        capability=f"{major}.{minor}",
        memory=int(memory.value),
    )


def _number(function: Any, *arguments: int) -> int:
    """The int that a driver function writes through its first argument."""
    place = ctypes.c_int()
    _expect(function(ctypes.byref(place), *arguments))
    return int(place.value)


def _expect(code: int) -> None:
    if code != 0:
        raise OSError(f"error {int(code)}")


@dataclass(frozen=True, eq=False)
class Pinned:
    """Page-locked host memory: the GPU copies from and to it while the CPU does something else.

    address : of its first byte.  array : the same memory, float32.
    """

    address: int
    array: NDArray[np.float32]


class Cuda:
    """Memory, streams, events and graphs on the first GPU.

    Everything asked of it is given back by `close`, in reverse order. Addresses are ints; streams, events and
    graphs are opaque. Any thread may call, after `use`. Raises OutOfMemory and EngineFailure.

    driver : cuda.bindings.driver, or an object with the functions used here.
    """

    def __init__(self, driver: Any = None) -> None:
        self._driver = driver if driver is not None else bindings()
        self._call(self._driver.cuInit, 0)
        self._device = self._call(self._driver.cuDeviceGet, 0)
        # TensorRT works in the primary context; memory of another one would be none to it.
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, self._device)
        self._undo: dict[int, Callable[[], None]] = {}
        self._given = 0
        self.use()

    def use(self) -> None:
        """Make the GPU's context the calling thread's."""
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def memory(self, size: int) -> int:
        """Address of `size` bytes of GPU memory, 256-byte aligned, until `free` or `close`."""
        address = int(self._call(self._driver.cuMemAlloc, max(1, size)))
        self._undo[address] = lambda: self._call(self._driver.cuMemFree, address)
        return address

    def pinned(self, shape: tuple[int, ...]) -> Pinned:
        """Page-locked float32 memory of this shape; `free` takes its address."""
        import numpy as np

        count = int(np.prod(shape))
        address = int(self._call(self._driver.cuMemAllocHost, 4 * count))
        self._undo[address] = lambda: self._call(self._driver.cuMemFreeHost, address)
        raw: Any = (ctypes.c_float * count).from_address(address)
        array: NDArray[np.float32] = np.frombuffer(raw, np.float32).reshape(shape)
        return Pinned(address, array)

    def free(self, address: int) -> None:
        """Give memory back before `close` does."""
        self._undo.pop(address)()

    def stream(self) -> Any:
        """A new stream: work on it is done in order, and beside that of other streams."""
        made = self._call(self._driver.cuStreamCreate, self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return self._keep(made, self._driver.cuStreamDestroy)

    def event(self) -> Any:
        """A new event: `record` it on one stream, `wait` for it on another."""
        made = self._call(self._driver.cuEventCreate, self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return self._keep(made, self._driver.cuEventDestroy)

    def upload(self, target: int, source: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes of pinned memory to the GPU."""
        self._call(self._driver.cuMemcpyHtoDAsync, target, source, size, stream)

    def download(self, target: int, source: int, size: int, stream: Any) -> None:
        """Start copying `size` bytes of the GPU's memory to pinned memory."""
        self._call(self._driver.cuMemcpyDtoHAsync, target, source, size, stream)

    def record(self, event: Any, stream: Any) -> None:
        """Mark this point of a stream."""
        self._call(self._driver.cuEventRecord, event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream go on only after an event's point; does not wait itself."""
        self._call(self._driver.cuStreamWaitEvent, stream, event, 0)

    def finish(self, stream: Any) -> None:
        """Wait until everything on a stream is done; faults of that work show here."""
        self._call(self._driver.cuStreamSynchronize, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """The graph of what `work` puts on a stream; nothing of it runs."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream, mode)
        try:
            work()
        finally:  # a stream left capturing would be lost to everything else
            code, graph = self._driver.cuStreamEndCapture(stream)
        self._check(self._driver.cuStreamEndCapture, code)
        try:
            ready = self._call(self._driver.cuGraphInstantiate, graph, 0)
        finally:
            self._call(self._driver.cuGraphDestroy, graph)
        return self._keep(ready, self._driver.cuGraphExecDestroy)

    def launch(self, graph: Any, stream: Any) -> None:
        """Put a captured graph on a stream."""
        self._call(self._driver.cuGraphLaunch, graph, stream)

    def close(self) -> None:
        """Give everything back; twice is fine. A GPU that has failed keeps what it will not take."""
        undo, self._undo = list(self._undo.values()), {}
        context, self._context = self._context, None
        if context is None:
            return
        steps: list[Callable[[], None]] = [
            lambda: self._call(self._driver.cuCtxSetCurrent, context),
            *reversed(undo),
            lambda: self._call(self._driver.cuDevicePrimaryCtxRelease, self._device),
        ]
        for give_back in steps:
            try:
                give_back()
            except EngineFailure:
                continue

    def _keep(self, made: Any, destroy: Callable[[Any], Any]) -> Any:
        self._given -= 1  # below every address
        self._undo[self._given] = lambda: self._call(destroy, made)
        return made

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a driver function returns behind its error code; OutOfMemory or EngineFailure for an error."""
        code, *values = function(*arguments)
        self._check(function, code)
        return values[0] if values else None

    def _check(self, function: Callable[..., Any], code: Any) -> None:
        if int(code) == 0:
            return
        name = getattr(function, "__name__", "a CUDA call")
        text = f"{name}: {getattr(code, 'name', f'CUDA error {int(code)}')}"
        if int(code) == _OUT_OF_MEMORY:
            raise OutOfMemory(f"The GPU is out of memory ({text}).", "Use a smaller --batch.")
        raise EngineFailure(f"The GPU failed ({text}).", "Check it (nvidia-smi), or use --backend openvino.")


def bindings() -> Any:
    """cuda.bindings.driver; BackendError where cuda-bindings is not installed or does not load."""
    try:
        return import_module("cuda.bindings.driver")
    except Exception as error:  # a broken install raises whatever its libraries do
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise BackendError(f"cuda-bindings {what}.", "pip install cuda-bindings") from None
