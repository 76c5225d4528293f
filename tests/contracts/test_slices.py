"""Networks of slices on every engine that is here, and what holds for both systems: a scan's result is that
scan's alone, whatever batch it travelled in and whoever its neighbours were.

Truth is arithmetic (tests/tiny_slices.py); independence is byte for byte.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tiny_slices
from fake_gpu import Driver, engine_bytes, fake_tensorrt, install, record_of
from hz_runtime.backends.base import Backend
from hz_runtime.backends.registry import ENGINES, missing, open_backend
from hz_runtime.backends.trt import open_engine
from hz_runtime.batch.scan_stages import OnGrid, PreparedScan, Ticket
from hz_runtime.batch.stages import Stages
from hz_runtime.bundle.manifest import ModelEntry
from hz_runtime.errors import GridMismatch
from hz_runtime.inference.predictors import AgePredictor, DiagnosisPredictor, Harmonizer
from hz_runtime.inference.slice_wise import SLICE_BATCH, axial_slices
from hz_runtime.model_space.recipe import ModelInput, Recipe
from small_kserve import RUNNING

ONNX_ENGINES = {engine.name: engine for engine in ENGINES if not engine.built}
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-3}
GRIDS = {"volumes": (24, 20, 22), "slices": (24, 20)}
RECIPE = Recipe(grid_shape=(24, 20, 22), middle_slices=9)
ENTRY = ModelEntry("x", "x.onnx", "0" * 64, 0, "fp32", (), (), (), None, 0, {}, {}, ("control", "patient"))


def opened(name: str, model: bytes, threads: int = 2) -> Backend:
    """Open with the engine, or skip where this machine does not have it."""
    if name == "remote":
        RUNNING[os.environ["HZ_REMOTE"]].serve(model)
    if problem := missing(ONNX_ENGINES[name])[0]:
        pytest.skip(f"{problem} here")
    return open_backend(name, model, threads=threads)


@pytest.fixture(params=ONNX_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "remote":
        request.getfixturevalue("remote_server")
    return str(request.param)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("n", [1, 3, SLICE_BATCH])
def test_slices_are_right(engine: str, precision: str, n: int) -> None:
    backend = opened(engine, tiny_slices.harmonizer_onnx(precision))
    batch = np.random.default_rng(n).random((n, 1, 64, 64), dtype=np.float32)
    assert backend.inputs[0].shape == ("N", 1, 64, 64)
    found = backend.run(batch)["harmonized"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, tiny_slices.expected_harmonized(batch), rtol=0, atol=TOLERANCE[precision]
    )


def test_volumes_are_refused_by_a_network_of_slices(engine: str) -> None:
    backend = opened(engine, tiny_slices.harmonizer_onnx())
    with pytest.raises(GridMismatch, match=r"\(1, 1, 64, 64, 64\), the network takes"):
        backend.run(np.zeros((1, 1, 64, 64, 64), np.float32))


@pytest.mark.parametrize("count", [1, SLICE_BATCH, 40])
def test_tensorrt_takes_slices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Over the fake GPU; the real module's names are held against it elsewhere."""
    driver = Driver()
    install(monkeypatch, driver, fake_tensorrt(driver, "tensorrt"))
    data = engine_bytes(grid=(6, 5), profile=(1, 4, 16))
    backend = open_engine(data, record_of(data), "e.engine")
    assert backend.inputs[0].shape == ("N", 1, 6, 5)
    slices = np.random.default_rng(count).random((count, 1, 6, 5), dtype=np.float32)
    found = backend.run(slices)["harmonized"]
    np.testing.assert_array_equal(found, tiny_slices.expected_harmonized(slices))
    backend.close()


def stages(engine: str, kind: str, batch: int) -> Stages:
    """The infer step over three networks without closed form, in batches of `batch` scans."""
    grid = GRIDS[kind]
    harmonize = opened(engine, tiny_slices.mixing_onnx(grid))
    age, probability = (opened(engine, tiny_slices.mixing_onnx(grid, True, seed)) for seed in (1, 2))
    return Stages(
        bundle=None,  # type: ignore[arg-type]  # infer does not look at it
        recipe=RECIPE,
        harmonizer=Harmonizer(harmonize, RECIPE, ENTRY),
        predictor=AgePredictor(age, None, RECIPE),
        out=Path(),
        space="model",
        dtype="float32",
        figures=False,
        overwrite=False,
        options={},
        batch=batch,
        diagnosis=DiagnosisPredictor(probability, ENTRY, RECIPE),
    )


def model_input(grid: np.ndarray) -> ModelInput:
    return ModelInput(grid, 0.0, 1.0, (0.0, 0.0, 0.0), np.eye(4), {}, ())


def answers(step: Stages, grids: list[np.ndarray]) -> list[tuple[bytes, float | None, float | None]]:
    """What becomes of scans that travel together: their volumes' bytes, ages and probabilities."""
    scans = [
        PreparedScan(Ticket(n, None), None, OnGrid(model_input(grid)))  # type: ignore[arg-type]
        for n, grid in enumerate(grids)
    ]
    return [
        (scan.harmonized.tobytes(), scan.prediction.age_raw, scan.prediction.diagnosis_probability)
        for scan in step.infer(scans)
    ]


@pytest.mark.parametrize("kind", GRIDS)
def test_a_scans_result_does_not_depend_on_its_batch_or_neighbours(engine: str, kind: str) -> None:
    rng = np.random.default_rng(8)
    a, b, c, d = (rng.random(RECIPE.grid_shape, dtype=np.float32) for _ in range(4))
    step = stages(engine, kind, 4)
    (alone,) = answers(step, [a])
    assert alone[1] is not None
    assert alone[2] is not None
    for company in ([a, b], [a, b, c, d], [c, a], [b, c, d, a], [a, a, a]):
        place = next(n for n, grid in enumerate(company) if grid is a)
        assert answers(step, company)[place] == alone
    other = np.full_like(b, 1e3)  # neighbours far out of range
    assert answers(step, [other, a, other])[1] == alone
    if kind == "slices":  # whose batches are of slices: even the number of scans a call is nothing to them
        assert answers(stages(engine, kind, 1), [a]) == [alone]


def test_a_slices_answer_is_the_same_alone(engine: str) -> None:
    """What `slices` rests on: in a batch of one size, a slice's answer is its own."""
    backend = opened(engine, tiny_slices.mixing_onnx(GRIDS["slices"]))
    volume = np.random.default_rng(3).random(RECIPE.grid_shape, dtype=np.float32)
    slices = axial_slices(volume)
    through = Harmonizer(backend, RECIPE, ENTRY)(volume)
    for k in (0, 7, 21):
        batch = np.zeros((SLICE_BATCH, *slices.shape[1:]), np.float32)
        batch[k % SLICE_BATCH] = slices[k]
        found = next(iter(backend.run(batch).values()))[k % SLICE_BATCH, 0]
        assert np.clip(found, 0, 1).tobytes() == np.ascontiguousarray(through[:, :, k]).tobytes()
