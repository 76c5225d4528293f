"""onnxruntime where it fails while running: memory that runs out, and a GPU that gives up in mid-run.

The network is real and runs on the CPU; only the failures are made, as onnxruntime words them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="these tests are about onnxruntime")

import tiny
from hz_runtime.backends import cuda_driver, fallback, ort
from hz_runtime.backends.base import Backend, EngineFailure, OutOfMemory, notes
from hz_runtime.backends.fallback import FallbackBackend, choose
from hz_runtime.backends.registry import Engine, engines_named, missing, open_backend
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import BackendError, GridMismatch

NO_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "Name:'conv' Status Message: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9"
)
BROKEN = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered"


class Session:
    """A session that fails as told: batches past `room`, or every one once `broken`."""

    def __init__(self, real: Any, room: int = 1000, broken: bool = False) -> None:
        self.real, self.room, self.broken = real, room, broken
        self.sizes: list[int] = []

    def run(self, names: list[str], fed: dict[str, np.ndarray]) -> Any:
        (batch,) = fed.values()
        if self.broken:
            raise RuntimeError(BROKEN)
        if len(batch) > self.room:
            raise RuntimeError(NO_MEMORY)
        self.sizes.append(len(batch))
        return self.real.run(names, fed)


def failing(precision: str = "fp32", **how: Any) -> tuple[Backend, Session]:
    backend: Any = open_backend("onnxruntime", tiny.harmonizer_onnx(precision), device="cpu", threads=1)
    backend._session = Session(backend._session, **how)
    backend.provider = "CUDAExecutionProvider"  # as it says of itself on a GPU
    return backend, backend._session


def test_memory_that_runs_out_halves_the_batch_and_it_stays_so() -> None:
    backend, session = failing(room=2)
    batch = tiny.random_volumes(7)
    found = backend.run(batch)["harmonized"]
    np.testing.assert_allclose(found, tiny.expected_harmonized(batch), rtol=0, atol=1e-6)
    assert session.sizes == [1] * 7  # 7, 3, then 1
    assert notes(backend) == (
        "onnxruntime: out of memory at batches of 7; at most 3 from here on",
        "onnxruntime: out of memory at batches of 3; at most 1 from here on",
    )
    backend.run(batch[:2])
    assert session.sizes == [1] * 9 and len(notes(backend)) == 2


def test_threads_that_run_out_together_halve_once() -> None:
    backend, _ = failing(room=4)
    batches = [tiny.random_volumes(8, seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: backend.run(batch)["harmonized"], batches))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_allclose(result, tiny.expected_harmonized(batch), rtol=0, atol=1e-6)
    assert notes(backend) == ("onnxruntime: out of memory at batches of 8; at most 4 from here on",)


def test_no_room_for_one_volume_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match=r"out of memory: .*Failed to allocate"):
        failing(room=0)[0].run(tiny.random_volumes(2))


def test_a_failing_gpu_is_the_engines_fault_and_bad_input_is_not() -> None:
    backend, _ = failing(broken=True)
    with pytest.raises(EngineFailure, match=r"cannot run the network: .*illegal memory access") as caught:
        backend.run(tiny.random_volumes(1))
    assert not isinstance(caught.value, OutOfMemory)
    with pytest.raises(GridMismatch, match="float64"):
        backend.run(np.zeros((1, 1, 64, 64, 64)))


@pytest.fixture
def on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The tiny bundle on a machine whose onnxruntime has a GPU that fails, and no TensorRT."""
    real, missing = fallback.open_model, fallback.missing

    def opened(engine: Engine, *how: Any) -> Backend:
        return failing("fp16", broken=True)[0] if engine.name == "onnxruntime-cuda" else real(engine, *how)

    def lacking(engine: Engine) -> tuple[str, str]:
        return ("", "") if engine.name == "onnxruntime-cuda" else missing(engine)

    monkeypatch.setattr(fallback, "open_model", opened)
    monkeypatch.setattr(fallback, "missing", lacking)
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: False)
    return load_bundle(tiny.make_tiny_bundle(tmp_path / "tiny.hz"))


def test_a_failing_gpu_hands_over_to_the_next(on_cuda: Bundle) -> None:
    backend, attempts = choose(on_cuda, "harmonizer")
    assert isinstance(backend, FallbackBackend)
    assert str(attempts[-1]).startswith("onnxruntime CUDA: runs harmonizer.fp16.onnx")
    batch = tiny.random_volumes(2)
    found = backend.run(batch)["harmonized"]
    np.testing.assert_allclose(found, tiny.expected_harmonized(batch), rtol=0, atol=1e-6)
    assert "CUDA" not in backend.provider
    assert backend.notes[0].startswith("onnxruntime failed: onnxruntime cannot run the network: ")
    assert ": runs harmonizer.onnx (fp32)" in backend.notes[-1]
    backend.close()


def test_a_required_gpu_fails_rather_than_falls(on_cuda: Bundle) -> None:
    backend, _ = choose(on_cuda, "harmonizer", require="onnxruntime-cuda")
    with pytest.raises(EngineFailure, match="illegal memory access"):
        backend.run(tiny.random_volumes(1))


# A build for CUDA where CUDA is not: onnxruntime itself would say that nodes are left to the CPU


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "has_cuda", lambda: True)
    monkeypatch.setattr(
        cuda_driver, "probe", lambda: cuda_driver.DriverState("no NVIDIA driver is installed", "Install it.")
    )


@pytest.mark.usefixtures("cuda_build")
def test_without_a_driver_auto_is_the_cpu() -> None:
    backend = open_backend("onnxruntime", tiny.harmonizer_onnx(), threads=1)
    assert backend.provider == "CPUExecutionProvider"


@pytest.mark.usefixtures("cuda_build")
def test_without_a_driver_that_is_the_reason() -> None:
    assert missing(*engines_named("onnxruntime-cuda")) == ("no NVIDIA driver is installed", "Install it.")


@pytest.mark.usefixtures("cuda_build")
def test_a_cuda_library_that_does_not_load_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")

    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(ort, "OrtBackend", refused)
    monkeypatch.setattr(ort, "quiet_onnxruntime", lambda: SimpleNamespace(__file__=str(tmp_path / "x.py")))
    with pytest.raises(BackendError, match="on CUDAExecutionProvider: This session contains"):
        open_backend("onnxruntime", tiny.harmonizer_onnx(), device="cuda")  # no such library: its own words
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"not a library")
    with pytest.raises(BackendError, match=r"on CUDAExecutionProvider: .*(file too short|ELF)") as caught:
        open_backend("onnxruntime", tiny.harmonizer_onnx(), device="cuda")
    assert caught.value.remedy == "pip install 'hz-mri[gpu]'"
