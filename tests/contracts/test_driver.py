"""Memory, streams, events and graphs through the real driver: what running an engine takes, without one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from hz_runtime.backends import cuda_driver
from hz_runtime.backends.base import EngineFailure, OutOfMemory

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> Iterator[cuda_driver.Cuda]:
    state = cuda_driver.probe()
    if not state.usable:
        pytest.skip(f"{state.problem} here")
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed here")
    opened = cuda_driver.Cuda()
    yield opened
    opened.close()


def test_what_is_uploaded_on_one_stream_is_downloaded_on_another(gpu: cuda_driver.Cuda) -> None:
    shape = (4, 64, 64, 64)
    sent, back = gpu.pinned(shape), gpu.pinned(shape)
    size = sent.array.nbytes
    place, there, home, up = gpu.memory(size), gpu.stream(), gpu.stream(), gpu.event()
    for seed in range(5):
        sent.array[:] = np.random.default_rng(seed).random(shape, np.float32)
        back.array[:] = 0
        gpu.upload(place, sent.address, size, there)
        gpu.record(up, there)
        gpu.wait(home, up)
        gpu.download(back.address, place, size, home)
        gpu.finish(home)
        np.testing.assert_array_equal(back.array, sent.array)


def test_a_graph_does_its_work_when_it_is_launched(gpu: cuda_driver.Cuda) -> None:
    sent, back, stream = gpu.pinned((1000,)), gpu.pinned((1000,)), gpu.stream()
    size = sent.array.nbytes
    place = gpu.memory(size)

    def work() -> None:
        gpu.upload(place, sent.address, size, stream)
        gpu.download(back.address, place, size, stream)

    back.array[:] = -1
    graph = gpu.capture(stream, work)
    gpu.finish(stream)
    assert (back.array == -1).all()
    for value in (3, 5):
        sent.array[:] = value
        gpu.launch(graph, stream)
        gpu.finish(stream)
        assert (back.array == value).all()


def test_a_capture_that_fails_leaves_the_stream_usable(gpu: cuda_driver.Cuda) -> None:
    stream, held = gpu.stream(), gpu.pinned((10,))

    def work() -> None:
        raise EngineFailure("said", "do")

    with pytest.raises(EngineFailure, match="said"):
        gpu.capture(stream, work)
    held.array[:] = 1
    gpu.upload(gpu.memory(40), held.address, 40, stream)
    gpu.finish(stream)


def test_more_than_there_is_is_out_of_memory_and_frees_nothing_else(gpu: cuda_driver.Cuda) -> None:
    with pytest.raises(OutOfMemory):
        gpu.memory(2 * cuda_driver.probe().memory)
    gpu.free(gpu.memory(2**20))
