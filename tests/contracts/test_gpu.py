"""The whole way on a real NVIDIA GPU: build an engine, run it, compare with arithmetic and with onnxruntime.

Skips, and says why, where there is no driver, no builder, or a GPU that this TensorRT does not build for.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import tiny
from hz_runtime.backends import cuda_driver, trt
from hz_runtime.backends.base import notes
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.registry import installed, open_backend
from hz_runtime.backends.trt import TensorRtBackend, open_engine
from hz_runtime.bundle.engine_cache import EngineRecord, Profile
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import BackendError

pytestmark = pytest.mark.gpu

MODELS = {"harmonizer": tiny.harmonizer_onnx, "age": tiny.age_onnx}
ATOL = {"harmonizer": 1e-3, "age": 0.13}  # float16: see tests/contracts/test_backends.py


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    state = cuda_driver.probe()
    if not state.usable:
        pytest.skip(f"{state.problem} here")
    if find_spec(name) is None:
        pytest.skip(f"{name}, which builds engines, is not installed here")
    if problem := trt.missing(name)[0]:
        pytest.skip(problem)
    return name


def built(flavour: str, role: str, profile: Profile) -> tuple[EngineRecord, bytes]:
    from hz_export.engine import build_engine
    from hz_export.engine_target import EngineOptions

    capability = (cuda_driver.probe().capability,)
    try:
        options = EngineOptions(
            flavour=flavour, profile=profile, capability=capability, version_compatible=False
        )
        return build_engine(MODELS[role]("fp16"), role, "fp16", options)
    except BackendError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def engine(flavour: str) -> tuple[EngineRecord, bytes]:
    return built(flavour, "harmonizer", Profile(1, 2, 8))


@pytest.fixture(params=[False, True], ids=["plain", "graphs"])
def backend(engine: tuple[EngineRecord, bytes], request: pytest.FixtureRequest) -> Iterator[TensorRtBackend]:
    record, data = engine
    opened = open_engine(data, record, cuda_graphs=request.param)
    yield opened
    opened.close()
    del opened
    gc.collect()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 21])
def test_every_batch_is_right_every_time(backend: TensorRtBackend, count: int) -> None:
    batch = tiny.random_volumes(count, seed=count)
    first = backend.run(batch)["harmonized"]
    np.testing.assert_allclose(first, tiny.expected_harmonized(batch), rtol=0, atol=ATOL["harmonizer"])
    for _ in range(4):  # with graphs: recorded in the second run, replayed from then on
        np.testing.assert_array_equal(backend.run(batch)["harmonized"], first)
    assert not notes(backend)


def test_it_agrees_with_onnxruntime(flavour: str) -> None:
    if "onnxruntime" not in dict(installed()):
        pytest.skip("onnxruntime is not installed here")
    for role, make in MODELS.items():
        record, data = built(flavour, role, Profile(1, 4, 4))
        here, there = open_engine(data, record), open_backend("onnxruntime", make("fp32"), device="cpu")
        batch = tiny.random_volumes(3, seed=9)
        ours, theirs = (next(iter(b.run(batch).values())) for b in (here, there))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL[role])
        here.close()


def test_two_backends_at_once(engine: tuple[EngineRecord, bytes]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    record, data = engine
    backends = [open_engine(data, record) for _ in range(2)]
    batches = [tiny.random_volumes(1 + seed % 5, seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(backends[n % 2].run, batch) for n, batch in enumerate(batches)]
        found = [job.result()["harmonized"] for job in jobs]
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_allclose(result, tiny.expected_harmonized(batch), rtol=0, atol=1e-3)
    for backend in backends:
        backend.close()


def test_resident_data_and_closing(backend: TensorRtBackend) -> None:
    call = backend.resident(tiny.random_volumes(2))
    for _ in range(3):
        call()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(tiny.random_volumes(1))


def test_the_ladder_builds_keeps_and_finds_it(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hz_cli.run import _builder

    built(flavour, "harmonizer", Profile())  # skips where this GPU is not built for
    monkeypatch.setenv("HZ_ENGINES", str(tmp_path / "engines"))
    bundle: Bundle = load_bundle(tiny.make_tiny_bundle(tmp_path / "tiny.hz"))
    required = flavour.replace("_", "-")
    _, attempts = choose(bundle, "harmonizer", require=required, build=_builder(quiet=True))
    assert "runs engine of harmonizer.fp16.onnx (fp16)" in attempts[0]
    backend, attempts = choose(bundle, "harmonizer", require=required)
    assert "runs kept engine" in attempts[0]
    batch = tiny.random_volumes(2)
    np.testing.assert_allclose(backend.run(batch)["harmonized"], tiny.expected_harmonized(batch), atol=1e-3)
    backend.close()
