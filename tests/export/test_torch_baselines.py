"""The network in PyTorch: every way gives the network's own answer, and half precision is for GPUs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hz_export import torch_baselines  # noqa: E402
from hz_export.torch_baselines import TorchBaseline, Way  # noqa: E402
from hz_train.volume_cyclegan import Generator  # noqa: E402


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return Generator(2).eval()


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).random((2, 1, 16, 16, 16), dtype=np.float32)


@pytest.fixture
def expected(network: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(batch)).numpy()


def test_a_cpu_has_no_half_precision(network: torch.nn.Module) -> None:
    assert [c.name for c in torch_baselines.torch_candidates(network, "cpu")] == [
        way.name for way in torch_baselines.ON_CPU
    ]
    assert all(way.precision == "fp32" for way in torch_baselines.ON_CPU)
    assert "torch eager fp16" in torch_baselines.gpu_only("cpu")
    assert torch_baselines.gpu_only("cuda") == []


def test_ways_say_what_they_compute_in() -> None:
    found = {way.name: way.precision for way in torch_baselines.ON_CUDA}
    assert found["torch eager fp32"] == "fp32"
    assert found["torch eager tf32"] == "tf32"
    assert {found[name] for name in torch_baselines.EAGER_HALF} == {"fp16"}


@pytest.mark.parametrize("way", [w for w in torch_baselines.ON_CPU if not w.compiled], ids=lambda w: w.name)
def test_eager_ways_give_the_networks_answer(
    way: Way, network: torch.nn.Module, batch: np.ndarray, expected: np.ndarray
) -> None:
    before = torch.get_num_threads()
    candidate = TorchBaseline(network, way, "cpu", threads=1).candidate()
    found = candidate.answer(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    assert torch.get_num_threads() == before
    assert list(candidate.ways(batch)) == ["model"]
    assert candidate.ran["provider"] == "eager"
    candidate.close()


def test_a_half_network_takes_and_gives_float32(network: torch.nn.Module, batch: np.ndarray) -> None:
    """The GPU's way, where it can be run here: conversions at both ends, the caller's network untouched."""
    half = TorchBaseline(network, Way("half", stored="float16", channels_last=True), "cpu", threads=1)
    laid = half._put(batch)
    assert laid.dtype == torch.float16
    assert laid.is_contiguous(memory_format=torch.channels_last_3d)
    assert next(half.call.parameters()).dtype == torch.float16
    assert next(network.parameters()).dtype == torch.float32


def test_compiled_is_asked_of_torch(
    network: torch.nn.Module, batch: np.ndarray, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compile_(module: torch.nn.Module, **options: object) -> torch.nn.Module:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    candidate = TorchBaseline(network, Way("c", compiled=True), "cpu", threads=1).candidate()
    assert asked == [{"dynamic": False}]
    assert candidate.ran["provider"] == "compile"
    np.testing.assert_allclose(candidate.answer(batch), expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("way", torch_baselines.ON_CUDA, ids=lambda w: w.name)
def test_every_way_on_a_gpu(
    way: Way, network: torch.nn.Module, batch: np.ndarray, expected: np.ndarray
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    candidate = TorchBaseline(network, way, "cuda").candidate()
    atol = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}[way.precision]
    np.testing.assert_allclose(candidate.answer(batch), expected, atol=atol)
    assert candidate.resident is not None
    candidate.resident(batch)()
    candidate.close()
