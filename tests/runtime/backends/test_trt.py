"""Control flow of the TensorRT backend over a GPU that is a fake (tests/fake_gpu.py); truth is arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tiny
from fake_gpu import ILLEGAL_ADDRESS, Driver, engine_bytes, fake_tensorrt, install, record_of
from hz_runtime.backends import trt
from hz_runtime.backends.base import Backend, EngineFailure, OutOfMemory, describe, notes, on_gpu
from hz_runtime.backends.trt import TensorRtBackend, open_engine
from hz_runtime.backends.trt_buffers import pieces
from hz_runtime.bundle.engine_cache import Profile
from hz_runtime.errors import BackendError, GridMismatch, NonFiniteInput

GRID = (6, 5, 4)
VOLUME = 4 * 6 * 5 * 4  # bytes
SMALL = {"grid": GRID, "profile": (1, 2, 8)}


def volumes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, *GRID), dtype=np.float32)


class Machine:
    """A fake GPU with its TensorRT; `open` opens an engine on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str = "tensorrt", room: int = 2**30) -> None:
        self.driver = Driver(room)
        self.trt = fake_tensorrt(self.driver, module)
        install(monkeypatch, self.driver, self.trt)

    def open(
        self, cuda_graphs: bool = False, record: dict[str, Any] | None = None, **said: Any
    ) -> TensorRtBackend:
        data = engine_bytes(**{**SMALL, **said})
        return open_engine(data, record_of(data, **(record or {})), "e.engine", cuda_graphs=cuda_graphs)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def backend(machine: Machine) -> Iterator[TensorRtBackend]:
    opened = machine.open()
    yield opened
    opened.close()


def check(backend: Backend, batch: np.ndarray) -> None:
    found = backend.run(batch)["harmonized"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tiny.expected_harmonized(batch))


def test_says_what_it_is(backend: TensorRtBackend) -> None:
    told = describe(backend)
    engine = engine_bytes(**SMALL)
    assert told == {
        "name": "tensorrt",
        "version": "11.4.0.106",
        "provider": "CUDA (tensorrt)",
        "device": "Fake GPU",
        "precision": "fp16",
        "operators": {"fp16": 1.0},
        "engine_sha256": record_of(engine).sha256,
    }
    assert backend.sha256 == "0" * 64  # of the ONNX file: what the bundle knows it by
    assert on_gpu(backend)
    assert not notes(backend)
    assert [str(spec) for spec in (*backend.inputs, *backend.outputs)] == [
        "volume float32 (N, 1, 6, 5, 4)",
        "harmonized float32 (N, 1, 6, 5, 4)",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 17, 30])
def test_any_batch_is_right(backend: TensorRtBackend, machine: Machine, count: int) -> None:
    check(backend, volumes(count, seed=count))
    assert sum(size for _, size in machine.trt.runs) == count
    assert max(size for _, size in machine.trt.runs) <= 8


def test_an_age_network_is_right(machine: Machine) -> None:
    batch = volumes(11)
    found = machine.open(role="age").run(batch)["age"]
    np.testing.assert_array_equal(found, tiny.expected_age(batch))


@pytest.mark.parametrize(
    ("count", "tuned", "limit", "expected"),
    [
        (1, 4, 16, (1,)),
        (7, 4, 16, (7,)),
        (8, 4, 16, (4, 4)),
        (9, 4, 16, (5, 4)),
        (16, 4, 16, (8, 8)),
        (40, 4, 16, (14, 13, 13)),
        (5, 4, 1, (1, 1, 1, 1, 1)),
        (3, 4, 2, (2, 1)),
    ],
)
def test_pieces(count: int, tuned: int, limit: int, expected: tuple[int, ...]) -> None:
    assert pieces(count, tuned, limit) == expected


def test_two_streams_take_turns_and_computations_follow_one_another(
    backend: TensorRtBackend, machine: Machine
) -> None:
    machine.driver.calls.clear()
    check(backend, volumes(30))
    streams = [stream for stream, _ in machine.trt.runs]
    assert len(set(streams)) == 2
    assert all(a != b for a, b in pairwise(streams))
    calls = machine.driver.calls
    assert calls.count("cuStreamWaitEvent") == len(streams) - 1
    # the second piece is on its way before anybody waits for the first
    assert (
        calls.index("cuStreamSynchronize") > [i for i, c in enumerate(calls) if c == "cuMemcpyHtoDAsync"][1]
    )


def test_buffers_and_contexts_are_made_once(backend: TensorRtBackend, machine: Machine) -> None:
    check(backend, volumes(3))
    made = (machine.trt.contexts, machine.driver.calls.count("cuMemAlloc"))
    for seed in range(5):
        check(backend, volumes(3, seed))
    assert (machine.trt.contexts, machine.driver.calls.count("cuMemAlloc")) == made
    # 2 slots of input and output for the profile's 8 volumes, and the scratch memory for 8
    assert machine.driver.used == 2 * 2 * 8 * VOLUME + 8 * 1000


def test_fewer_volumes_than_the_engine_takes_are_filled_up(machine: Machine) -> None:
    backend = machine.open(profile=(4, 4, 8))
    check(backend, volumes(8))
    check(backend, volumes(1))  # nothing of the run before shows
    check(backend, volumes(9))
    assert min(size for _, size in machine.trt.runs) == 4


def test_results_are_the_callers_own(backend: TensorRtBackend) -> None:
    first = backend.run(volumes(2, 1))["harmonized"]
    kept = first.copy()
    backend.run(volumes(2, 2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "batch",
    [np.zeros((1, 1, *GRID)), np.zeros((1, 1, 6, 5, 5), np.float32), np.zeros((0, 1, *GRID), np.float32)],
)
def test_wrong_input_is_refused_before_the_gpu_sees_it(
    backend: TensorRtBackend, machine: Machine, batch: np.ndarray
) -> None:
    with pytest.raises(GridMismatch, match="network takes"):
        backend.run(batch)
    assert not machine.trt.runs


def test_non_finite_values_are_refused_both_ways(
    backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = volumes(3)
    batch[2, 0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteInput, match=r"Input .* \(batch item 2\)"):
        backend.run(batch)
    monkeypatch.setitem(__import__("fake_gpu").FUNCTIONS, "harmonizer", lambda x: x / 0.0 * np.inf)
    with np.errstate(all="ignore"), pytest.raises(BackendError, match="Output 'harmonized' of tensorrt"):
        backend.run(volumes(1))


def test_many_threads(backend: TensorRtBackend) -> None:
    batches = [volumes(1 + seed % 5, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: backend.run(batch)["harmonized"], batches))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_array_equal(result, tiny.expected_harmonized(batch))


def test_closing_gives_all_back_and_is_said(machine: Machine) -> None:
    backend = machine.open()
    check(backend, volumes(9))
    backend.close()
    backend.close()
    assert (machine.driver.used, machine.driver.host, machine.driver.retained) == (0, {}, 0)
    with pytest.raises(BackendError, match="closed"):
        backend.run(volumes(1))
    with pytest.raises(BackendError, match="closed"):
        backend.resident(volumes(1))


def test_data_stay_on_the_gpu_for_a_benchmark(backend: TensorRtBackend, machine: Machine) -> None:
    call = backend.resident(volumes(4))
    copies = machine.driver.calls.count("cuMemcpyHtoDAsync")
    call()
    call()
    assert machine.trt.runs[-2:] == [(machine.trt.runs[-1][0], 4)] * 2
    assert machine.driver.calls.count("cuMemcpyHtoDAsync") == copies
    with pytest.raises(BackendError, match="one piece"):
        backend.resident(volumes(9))


# Memory


def test_no_room_for_the_largest_batch_halves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 2 * 2 * 4 * VOLUME + 4 * 1000  # for batches of 4
    machine = Machine(monkeypatch, room=room + 500)
    backend = machine.open()
    assert backend.notes == (
        "tensorrt: GPU out of memory with room for batches of 8; at most 4 from here on",
    )
    check(backend, volumes(11))
    assert max(size for _, size in machine.trt.runs) <= 4
    assert machine.driver.used <= room


def test_no_room_at_all_is_out_of_memory_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, room=1000)
    with pytest.raises(OutOfMemory):
        machine.open()
    assert (machine.driver.used, machine.driver.host, machine.driver.retained) == (0, {}, 0)


def test_memory_that_runs_out_later_halves_the_batch_and_the_run_goes_on(machine: Machine) -> None:
    backend = machine.open()
    check(backend, volumes(8))
    real = machine.trt.IExecutionContext.execute_async_v3

    def hungry(self: Any, stream_handle: int) -> bool:
        if self.size > 2:
            self.engine.logger.log(1, "Error Code 2: OutOfMemory (Requested size was 999 bytes.)")
            return False
        return bool(real(self, stream_handle))

    machine.trt.IExecutionContext.execute_async_v3 = hungry
    check(backend, volumes(8))
    assert [note.rsplit("; ", 1)[1] for note in backend.notes] == [
        "at most 4 from here on",
        "at most 2 from here on",
    ]
    machine.trt.IExecutionContext.execute_async_v3 = real
    check(backend, volumes(5))  # it does not grow again


def test_an_engine_that_needs_no_scratch_memory(machine: Machine) -> None:
    check(machine.open(scratch=0), volumes(5))


def test_memory_needs_that_tensorrt_cannot_tell_are_a_failure(machine: Machine) -> None:
    machine.trt.IExecutionContext.update_device_memory_size_for_shapes = lambda self: 0
    with pytest.raises(EngineFailure, match="say what memory a batch of 8 takes"):
        machine.open()


def test_memory_that_is_gone_for_good_is_an_error_every_time(machine: Machine) -> None:
    backend = machine.open(fails="Cuda Runtime (out of memory)")
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="out of memory"):
            backend.run(volumes(3))


# CUDA graphs


def test_graphs_are_recorded_once_a_slot_and_size_and_replayed(machine: Machine) -> None:
    backend = machine.open(cuda_graphs=True)
    for seed in range(6):
        check(backend, volumes(4, seed))  # 2 + 2: one context a slot
    calls = machine.driver.calls
    assert calls.count("cuGraphInstantiate") == 2
    assert calls.count("cuGraphLaunch") == 2 * 5  # every run but the first, which is not recorded
    check(backend, volumes(1))
    check(backend, volumes(30))
    backend.close()
    assert calls.count("cuGraphExecDestroy") == calls.count("cuGraphInstantiate")


def test_graphs_that_cannot_be_recorded_are_done_without(machine: Machine) -> None:
    machine.driver.fail["cuStreamEndCapture"] = 901
    backend = machine.open(cuda_graphs=True)
    for seed in range(4):
        check(backend, volumes(2, seed))
    assert len(backend.notes) == 1
    assert backend.notes[0].startswith("CUDA graphs are off: ")
    assert machine.driver.calls.count("cuStreamBeginCapture") == 1


def test_rtx_records_its_own_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, "tensorrt_rtx")
    backend = machine.open(cuda_graphs=True, record={"flavour": "tensorrt_rtx"})
    assert (backend.name, backend.provider) == ("tensorrt-rtx", "CUDA (tensorrt_rtx)")
    (context,) = backend._space._contexts.values()  # type: ignore[union-attr]
    assert context.config.cuda_graph_strategy == machine.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for seed in range(3):
        check(backend, volumes(4, seed))
    assert "cuStreamBeginCapture" not in machine.driver.calls


# Failures


def test_what_tensorrt_says_is_in_the_error(machine: Machine) -> None:
    backend = machine.open(fails="Error Code 1: Cask\n  (no kernel)")
    with pytest.raises(
        EngineFailure, match=r"TensorRT cannot run the engine: Error Code 1: Cask \(no kernel\)"
    ) as it:
        backend.run(volumes(1))
    assert it.value.remedy
    assert not isinstance(it.value, OutOfMemory)


def test_a_failed_gpu_is_an_error_and_closing_still_ends(machine: Machine) -> None:
    backend = machine.open()
    machine.driver.fail["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineFailure, match="CUDA error 700"):
        backend.run(volumes(20))
    machine.driver.fail.clear()
    check(backend, volumes(20))  # what was in flight does not spoil the next run
    machine.driver.fail.update(cuCtxSetCurrent=ILLEGAL_ADDRESS, cuMemFree=ILLEGAL_ADDRESS)
    backend.close()


@pytest.mark.parametrize(
    ("data", "changed", "says"),
    [
        (b"{", {}, "TensorRT cannot load e.engine: IRuntime::deserialize: Error Code 1: magic tag"),
        (engine_bytes(**SMALL, dtype="HALF"), {}, "not float32"),
        (engine_bytes(**SMALL), {"profile": Profile(1, 2, 4)}, r"takes batches \(1, 2, 8\), its record says"),
    ],
)
def test_an_engine_that_is_not_what_its_record_says(
    machine: Machine, data: bytes, changed: dict[str, Any], says: str
) -> None:
    record = record_of(engine_bytes(**SMALL), sha256=trt.sha256_bytes(data), **changed)
    with pytest.raises(BackendError, match=says):
        open_engine(data, record, "e.engine")
    assert machine.driver.retained == 0


def test_tampered_bytes_never_reach_tensorrt(machine: Machine) -> None:
    data = engine_bytes(**SMALL)
    machine.trt.Runtime = None  # would be a TypeError
    with pytest.raises(BackendError, match=r"e\.engine does not match its sha256") as caught:
        open_engine(data + b" ", record_of(data), "e.engine")
    assert "--engine tensorrt" in caught.value.remedy
    assert not machine.driver.calls


def test_host_code_is_allowed_only_to_engines_that_hold_it(machine: Machine) -> None:
    portable = {"flags": ("version_compatible",)}
    check(machine.open(host_code=True, record=portable), volumes(1))
    check(machine.open(record={"flags": ("exclude_lean_runtime", "version_compatible")}), volumes(1))
    with pytest.raises(BackendError, match="engine_host_code_allowed"):
        machine.open(host_code=True)
