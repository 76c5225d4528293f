"""The driver's answers in words, and memory, streams and graphs over a driver that is a fake."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fake_gpu import ILLEGAL_ADDRESS, Driver
from hz_runtime.backends import cuda_driver
from hz_runtime.backends.base import EngineFailure, OutOfMemory
from hz_runtime.backends.cuda_driver import Cuda, DriverState, ask
from hz_runtime.errors import BackendError


class Library:
    """libcuda of a machine with GPUs; answers are written through pointers, as the real one does.

    init : what cuInit gives.  count : of GPUs.  broken : a function that gives an error.
    """

    def __init__(self, init: int = 0, count: int = 1, broken: str = "") -> None:
        self.init, self.count, self.broken = init, count, broken

    def __getattr__(self, name: str) -> Any:
        values = {"cuDriverGetVersion": 13010, "cuDeviceGetCount": self.count, "cuDeviceGet": 0}

        def function(place: Any, *arguments: Any) -> int:
            if name == "cuInit":
                return self.init
            if name == self.broken:
                return 999
            if name == "cuDeviceGetName":
                place.value = b"NVIDIA H200"
            elif name == "cuDeviceTotalMem_v2":
                place._obj.value = 141 * 2**30
            elif name == "cuDeviceGetAttribute":
                place._obj.value = {75: 9, 76: 0}[arguments[0]]
            else:
                place._obj.value = values[name]
            return 0

        return function


def test_a_gpu_is_described() -> None:
    state = ask(Library())
    assert state.usable
    assert state == DriverState("", "", (13, 1), "NVIDIA H200", "9.0", 141 * 2**30)
    assert str(state) == "NVIDIA H200 (9.0, 141 GiB), CUDA 13.1"


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (None, "no NVIDIA driver is installed"),
        (Library(init=34), "stub"),
        (Library(init=100), "finds no GPU"),
        (Library(init=803), "different versions"),
        (Library(init=802), "not ready"),
        (Library(init=804), "compatibility library"),
        (Library(init=999), "cuInit says 999"),
        (Library(count=0), "finds no GPU"),
        (Library(broken="cuDeviceGetName"), "does not answer (error 999)"),
        (Library(broken="cuDeviceTotalMem_v2"), "does not answer"),
    ],
)
def test_every_trouble_is_one_clear_line(library: Any, says: str) -> None:
    state = ask(library)
    assert not state.usable
    assert says in state.problem
    assert state.remedy
    for text in (state.problem, state.remedy, str(state)):
        assert text
        assert "\n" not in text


def test_probe_imports_nothing_and_ends_well() -> None:
    """On any machine, with or without a driver: no TensorRT, no cuda-bindings, no numpy, and a clean exit."""
    code = (
        "import sys\n"
        "from hz_runtime.backends import cuda_driver\n"
        "state = cuda_driver.probe()\n"
        "assert cuda_driver.probe() is state\n"
        "assert state.usable or (state.problem and state.remedy)\n"
        "heavy = {'tensorrt', 'tensorrt_lean', 'tensorrt_rtx', 'cuda', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_is_copied_there_and_back_in_order() -> None:
    gpu = Cuda(Driver())
    there, back = gpu.pinned((2, 3)), gpu.pinned((2, 3))
    place, stream = gpu.memory(24), gpu.stream()
    there.array[...] = np.arange(6, dtype=np.float32).reshape(2, 3)
    gpu.upload(place, there.address, 24, stream)
    gpu.download(back.address, place, 24, stream)
    assert not back.array.any()  # nothing has been done yet
    gpu.finish(stream)
    np.testing.assert_array_equal(back.array, [[0, 1, 2], [3, 4, 5]])


def test_a_stream_waits_for_anothers_event() -> None:
    gpu = Cuda(Driver())
    there, back = gpu.pinned((1,)), gpu.pinned((1,))
    place, first, second, event = gpu.memory(4), gpu.stream(), gpu.stream(), gpu.event()
    there.array[0] = 7
    gpu.upload(place, there.address, 4, first)
    gpu.record(event, first)
    gpu.wait(second, event)
    gpu.download(back.address, place, 4, second)
    gpu.finish(second)
    assert back.array[0] == 7


def test_a_graph_is_recorded_without_running_and_replayed() -> None:
    gpu = Cuda(Driver())
    there, place, stream = gpu.pinned((1,)), gpu.memory(4), gpu.stream()
    ran: list[int] = []
    graph = gpu.capture(stream, lambda: stream.put("run", lambda: ran.append(1)))
    gpu.finish(stream)
    assert not ran
    gpu.launch(graph, stream)
    gpu.launch(graph, stream)
    gpu.finish(stream)
    assert ran == [1, 1]
    assert there.address != place


def test_a_failed_recording_leaves_the_stream_usable() -> None:
    driver = Driver()
    gpu = Cuda(driver)
    stream = gpu.stream()

    def faulty() -> None:
        raise EngineFailure("cannot be recorded")

    with pytest.raises(EngineFailure, match="cannot be recorded"):
        gpu.capture(stream, faulty)
    assert stream.captured is None


def test_no_memory_and_other_failures_are_told_apart() -> None:
    driver = Driver(room=1000)
    gpu = Cuda(driver)
    gpu.memory(900)
    with pytest.raises(OutOfMemory, match="cuMemAlloc") as caught:
        gpu.memory(200)
    assert "--batch" in caught.value.remedy
    driver.fail["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineFailure, match="cuStreamSynchronize: CUDA error 700") as other:
        gpu.finish(gpu.stream())
    assert not isinstance(other.value, OutOfMemory)


def test_all_is_given_back_once_whatever_fails() -> None:
    driver = Driver()
    gpu = Cuda(driver)
    kept = gpu.memory(100)
    gpu.free(gpu.memory(100))
    gpu.pinned((4,))
    gpu.stream()
    gpu.event()
    assert kept in driver.device
    driver.fail["cuEventDestroy"] = ILLEGAL_ADDRESS
    gpu.close()
    gpu.close()
    assert not driver.device
    assert not driver.host
    assert not driver.streams
    assert driver.retained == 0


def test_bindings_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    def broken(_: str) -> None:
        raise ImportError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr(cuda_driver, "import_module", absent)
    with pytest.raises(BackendError, match="cuda-bindings is not installed") as caught:
        cuda_driver.bindings()
    assert caught.value.remedy == "pip install cuda-bindings"
    monkeypatch.setattr(cuda_driver, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load \(libfoo"):
        cuda_driver.bindings()


def test_real_bindings_load_without_a_driver() -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed here")
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert cuda_driver.bindings().__name__ == "cuda.bindings.driver"
