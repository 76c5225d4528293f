"""A GPU that is not there: a driver and a TensorRT whose work is numpy on ordinary memory.

The driver does nothing until somebody waits. What is put on a stream stays there, and runs, in the order
that streams and events demand and no sooner, when a stream is waited for: data that are overwritten too
early, read too early, or left unordered come out wrong, as they might on a GPU.

The TensorRT runs the closed forms of tests/tiny.py. An engine of it is JSON (`engine_bytes`). The names and
parameters here are held against the real modules by tests/contracts/test_tensorrt_modules.py.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

import tiny
from hz_runtime.backends.cuda_driver import DriverState
from hz_runtime.bundle.engine_cache import EngineRecord, Profile
from hz_runtime.io.atomic import sha256_bytes

OK, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 0, 2, 700
HERE = DriverState(cuda=(13, 0), device="Fake GPU", capability="8.9", memory=2**30)
FUNCTIONS = {"harmonizer": tiny.expected_harmonized, "age": tiny.expected_age}
OUTPUTS = {"harmonizer": "harmonized", "age": "age"}


class Stream:
    """What is still to be done, in order; while capturing, what a graph is made of."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pending: list[tuple[str, Any]] = []
        self.captured: list[tuple[str, Any]] | None = None

    def __int__(self) -> int:
        return self.number

    def put(self, kind: str, what: Any) -> None:
        (self.pending if self.captured is None else self.captured).append((kind, what))


class Mark:
    """One recording of an event: on which stream, and whether that point was reached."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reached = False


class Driver:
    """cuda.bindings.driver, as far as the runtime uses it: functions give (code, value...).

    room : bytes of GPU memory.  calls : names of the functions called.  fail : function name -> code to give.
    """

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, room: int = 2**30) -> None:
        self.room = room
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.retained = 0
        self.made = 0  # streams

    def _code(self, name: str) -> int:
        self.calls.append(name)
        return self.fail.get(name, OK)

    @property
    def used(self) -> int:
        """Bytes of GPU memory that are taken."""
        return sum(len(block) for block in self.device.values())

    def address(self, place: int, size: int) -> Any:
        """`size` bytes of the GPU's memory; a fault of the test where they are not in one block of it."""
        for start, block in self.device.items():
            if start <= place and place + size <= start + len(block):
                return (ctypes.c_char * size).from_address(place)
        raise AssertionError(f"{size} bytes at {place} are not GPU memory")

    def cuInit(self, Flags: int) -> tuple[Any, ...]:  # noqa: N802
        return (self._code("cuInit"),)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:  # noqa: N802
        return self._code("cuDeviceGet"), ordinal

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> tuple[Any, ...]:  # noqa: N802
        self.retained += 1
        return self._code("cuDevicePrimaryCtxRetain"), "the context"

    def cuDevicePrimaryCtxRelease(self, dev: Any) -> tuple[Any, ...]:  # noqa: N802
        self.retained -= 1
        return (self._code("cuDevicePrimaryCtxRelease"),)

    def cuCtxSetCurrent(self, ctx: Any) -> tuple[Any, ...]:  # noqa: N802
        assert ctx == "the context"
        return (self._code("cuCtxSetCurrent"),)

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:  # noqa: N802
        code = self._code("cuMemAlloc")
        if code == OK and self.used + bytesize > self.room:
            code = OUT_OF_MEMORY
        if code != OK:
            return code, None
        block = (ctypes.c_char * bytesize)(*b"\xff" * min(bytesize, 64))  # fresh memory holds nonsense
        self.device[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cuMemFree(self, dptr: int) -> tuple[Any, ...]:  # noqa: N802
        for stream in self.streams.values():
            self.run(stream)  # as the driver does, which waits for the GPU
        del self.device[dptr]
        return (self._code("cuMemFree"),)

    def cuMemAllocHost(self, bytesize: int) -> tuple[Any, ...]:  # noqa: N802
        block = (ctypes.c_char * bytesize)()
        self.host[ctypes.addressof(block)] = block
        return self._code("cuMemAllocHost"), ctypes.addressof(block)

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:  # noqa: N802
        del self.host[p]
        return (self._code("cuMemFreeHost"),)

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:  # noqa: N802
        self.made += 1
        stream = Stream(self.made)
        self.streams[stream.number] = stream
        return self._code("cuStreamCreate"), stream

    def cuStreamDestroy(self, hStream: Stream) -> tuple[Any, ...]:  # noqa: N802
        del self.streams[hStream.number]
        return (self._code("cuStreamDestroy"),)

    def cuEventCreate(self, Flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._code("cuEventCreate"), SimpleNamespace(mark=None)

    def cuEventDestroy(self, hEvent: Any) -> tuple[Any, ...]:  # noqa: N802
        return (self._code("cuEventDestroy"),)

    def cuEventRecord(self, hEvent: Any, hStream: Stream) -> tuple[Any, ...]:  # noqa: N802
        hEvent.mark = Mark(hStream)
        hStream.put("mark", hEvent.mark)
        return (self._code("cuEventRecord"),)

    def cuStreamWaitEvent(self, hStream: Stream, hEvent: Any, Flags: int) -> tuple[Any, ...]:  # noqa: N802
        hStream.put("wait", hEvent.mark)
        return (self._code("cuStreamWaitEvent"),)

    def cuMemcpyHtoDAsync(  # noqa: N802
        self, dstDevice: int, srcHost: int, ByteCount: int, hStream: Stream
    ) -> tuple[Any, ...]:
        assert srcHost in self.host, "not pinned"
        target = self.address(dstDevice, ByteCount)
        hStream.put("upload", lambda: ctypes.memmove(target, srcHost, ByteCount))
        return (self._code("cuMemcpyHtoDAsync"),)

    def cuMemcpyDtoHAsync(  # noqa: N802
        self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Stream
    ) -> tuple[Any, ...]:
        assert dstHost in self.host, "not pinned"
        source = self.address(srcDevice, ByteCount)
        hStream.put("download", lambda: ctypes.memmove(dstHost, source, ByteCount))
        return (self._code("cuMemcpyDtoHAsync"),)

    def cuStreamSynchronize(self, hStream: Stream) -> tuple[Any, ...]:  # noqa: N802
        self.run(hStream)
        return (self._code("cuStreamSynchronize"),)

    def cuStreamBeginCapture(self, hStream: Stream, mode: int) -> tuple[Any, ...]:  # noqa: N802
        code = self._code("cuStreamBeginCapture")
        if code == OK:
            hStream.captured = []
        return (code,)

    def cuStreamEndCapture(self, hStream: Stream) -> tuple[Any, ...]:  # noqa: N802
        graph, hStream.captured = hStream.captured, None
        return self._code("cuStreamEndCapture"), graph

    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._code("cuGraphInstantiate"), list(hGraph)

    def cuGraphDestroy(self, hGraph: Any) -> tuple[Any, ...]:  # noqa: N802
        return (self._code("cuGraphDestroy"),)

    def cuGraphExecDestroy(self, hGraphExec: Any) -> tuple[Any, ...]:  # noqa: N802
        return (self._code("cuGraphExecDestroy"),)

    def cuGraphLaunch(self, hGraphExec: Any, hStream: Stream) -> tuple[Any, ...]:  # noqa: N802
        for kind, what in hGraphExec:
            hStream.put(kind, what)
        return (self._code("cuGraphLaunch"),)

    def run(self, stream: Stream, until: Mark | None = None) -> None:
        """Do what is on a stream, up to a mark, and of other streams only what it has to wait for."""
        while stream.pending and not (until and until.reached):
            kind, what = stream.pending.pop(0)
            if kind == "mark":
                what.reached = True
            elif kind == "wait":
                if what is not None and not what.reached:
                    self.run(what.stream, what)
            else:
                what()


def engine_bytes(role: str = "harmonizer", **said: Any) -> bytes:
    """An engine of the fake TensorRT.

    said : profile (1, 4, 16), grid, scratch (bytes a volume), host_code (bool), dtype ("FLOAT"), fails
    ("", or what TensorRT logs when it runs), and stripped (bool: gives zeros until it has its weights).
    """
    return json.dumps({"role": role, **said}).encode()


def record_of(data: bytes, **changed: Any) -> EngineRecord:
    """The record of a fake engine, for the fake GPU."""
    said = {
        "role": json.loads(data)["role"],
        "model_sha256": "0" * 64,
        "flavour": "tensorrt",
        "version": "11.4.0.106",
        "capability": (HERE.capability,),
        "profile": Profile(*json.loads(data).get("profile", (1, 4, 16))),
        "flags": (),
        "precision": "fp16",
        "layers": {"fp16": 2},
        "sha256": sha256_bytes(data),
        "bytes": len(data),
    }
    return EngineRecord(**{**said, **changed})


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError  # abstract in TensorRT too: a logger overrides it


class Runtime:
    trt: Any

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        self.logger.log(ILogger.INFO, "Loaded engine size: 0 MiB")
        try:
            said = json.loads(serialized_engine)
        except ValueError:
            self.logger.log(ILogger.ERROR, "IRuntime::deserialize: Error Code 1:\n magic tag does not match")
            return None
        if said.get("host_code", False) != self.engine_host_code_allowed:
            self.logger.log(ILogger.ERROR, "engine_host_code_allowed is not as the engine needs it")
            return None
        return self.trt.ICudaEngine(said, self.logger)


class Refitter:
    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.given = False

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = self.given
        return self.given


class OnnxParserRefitter:
    """Takes what onnx takes; an engine of the fake knows its network, so that the values do not matter."""

    def __init__(self, refitter: Any, logger: Any) -> None:
        self.refitter = refitter
        self.errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]

    def refit_from_bytes(self, model: bytes, path: str = "") -> bool:
        import onnx

        try:
            onnx.load_from_string(model)
        except Exception:
            self.errors.append(SimpleNamespace(desc=lambda: "Failed to parse the ONNX model."))
            return False
        self.refitter.given = True
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = None
        self.cuda_graph_strategy = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class ICudaEngine:
    trt: Any

    def __init__(self, said: dict[str, Any], logger: Any) -> None:
        self.said, self.logger = said, logger
        self.weights = not said.get("stripped", False)
        self.grid = tuple(said.get("grid", (64, 64, 64)))
        self.profile = said.get("profile", (1, 4, 16))
        self.tensors = {
            "volume": (-1, 1, *self.grid),
            OUTPUTS[said["role"]]: (-1, 1, *self.grid) if said["role"] == "harmonizer" else (-1, 1),
        }
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = int(said.get("scratch", 1000)) * self.profile[2]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[self.said.get("dtype", "FLOAT")]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name == "volume" else modes.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [(size, *self.tensors[name][1:]) for size in self.profile]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> Any:
        given = strategy.strategy if isinstance(strategy, IRuntimeConfig) else strategy
        assert given == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.trt.contexts += 1
        return self.trt.IExecutionContext(self)


class IExecutionContext:
    trt: Any

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.size = 0
        self.places: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profile
        if shape[1:] != self.engine.tensors[name][1:] or not least <= shape[0] <= most:
            self.engine.logger.log(ILogger.ERROR, f"{shape} is out of the profile")
            return False
        self.size = shape[0]
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.size, *self.engine.tensors[name][1:])

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.size, "the shape comes first"
        return self.size * int(self.engine.said.get("scratch", 1000))

    def set_device_memory(self, memory: int, size: int) -> None:
        self.trt.driver.address(memory, size)
        assert size >= self.update_device_memory_size_for_shapes()
        self.scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.places[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if fails := self.engine.said.get("fails"):
            self.engine.logger.log(ILogger.ERROR, fails)
            return False
        (name, place), (made, target) = ((n, self.places[n]) for n in self.engine.tensors)
        shapes = self.get_tensor_shape(name), self.get_tensor_shape(made)
        source, result = (
            np.frombuffer(self.trt.driver.address(where, 4 * int(np.prod(shape))), np.float32).reshape(shape)
            for where, shape in zip((place, target), shapes, strict=True)
        )
        if self.update_device_memory_size_for_shapes():
            self.trt.driver.address(*self.scratch)  # still there
        function: Callable[[np.ndarray], np.ndarray] = FUNCTIONS[self.engine.said["role"]]

        def work(size: int = self.size) -> None:
            self.trt.runs.append((stream_handle, size))
            result[...] = function(source) if self.engine.weights else 0

        self.trt.driver.streams[stream_handle].put("run", work)
        return True


def fake_tensorrt(driver: Driver, name: str = "tensorrt", version: str = "11.4.0.106") -> Any:
    """A module that stands for `tensorrt`, one of its runtimes, or `tensorrt_rtx`.

    Its `runs` lists (stream, batch size) of every execution that the GPU really did.
    """
    trt: Any = ModuleType(name)
    trt.__version__ = version
    trt.runs = []
    trt.contexts = 0
    trt.driver = driver

    trt.DataType = enum.Enum("DataType", ["FLOAT", "HALF"])
    trt.TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    trt.ExecutionContextAllocationStrategy = enum.Enum("Strategy", ["STATIC", "USER_MANAGED"])
    if name == "tensorrt_rtx":
        trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

    trt.ILogger, trt.IRuntimeConfig, trt.Refitter = ILogger, IRuntimeConfig, Refitter
    if name in ("tensorrt", "tensorrt_rtx"):  # the lean runtimes have no parser
        trt.OnnxParserRefitter = OnnxParserRefitter
    for made in (Runtime, ICudaEngine, IExecutionContext):  # of this module alone: tests change them
        setattr(trt, made.__name__, type(made.__name__, (made,), {"trt": trt}))
    return trt


def install(monkeypatch: Any, driver: Driver, *modules: Any, state: DriverState = HERE) -> None:
    """Let the runtime find this driver and these TensorRT modules, and none of those that are installed."""

    by_name = {module.__name__: module for module in modules}
    from hz_runtime.backends import cuda_driver, trt

    monkeypatch.setattr(cuda_driver, "has_driver", lambda: True)
    monkeypatch.setattr(cuda_driver, "probe", lambda: state)
    monkeypatch.setattr(cuda_driver, "bindings", lambda: driver)
    known = ("cuda", "cuda.bindings")
    monkeypatch.setattr(trt, "find_spec", lambda name: name if name in (*by_name, *known) else None)
    monkeypatch.setattr(trt, "import_module", by_name.__getitem__)
    monkeypatch.setattr(trt, "_built_for", lambda module: 13)
