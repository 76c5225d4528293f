"""Activation ranges: histograms that grow, and each method against a search or a formula of its own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="calibration needs onnx")

from hz_calibration.ranges import BINS, LEVELS, METHODS, Histogram, collect, ranges
from hz_runtime.errors import HzError, UsageError
from small_networks import grids, harmonizer

RNG = np.random.default_rng(5)


def filled(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


def quantized(values: np.ndarray, amax: float) -> np.ndarray:
    step = amax / LEVELS
    return np.clip(np.rint(values / step), -LEVELS, LEVELS) * step


def test_minmax_is_the_largest_magnitude_of_any_scan() -> None:
    found = filled(RNG.normal(0, 1, 500), np.array([-7.25, 3.0]), RNG.normal(0, 1, 500)).range("minmax")
    assert (found.amax, found.low) == (7.25, -7.25)
    assert found.scale == 7.25 / 127


@pytest.mark.parametrize("sizes", [(1e-44, 1e-44), (1e38, 3e38)])
def test_magnitudes_at_the_ends_of_float32(sizes: tuple[float, float]) -> None:
    parts = [np.full(10, size, np.float32) for size in sizes]
    found = filled(*parts)
    for method in METHODS:
        assert found.range(method).amax == pytest.approx(float(parts[1][0]))


def test_scan_by_scan_and_all_at_once_agree() -> None:
    parts = [RNG.normal(0, scale, 4000) for scale in (0.1, 1.0, 12.0)]
    streamed, whole = filled(*parts), filled(np.concatenate(parts))
    assert streamed.counts.shape == (BINS,)
    assert streamed.counts.sum() == whole.counts.sum() == 12000
    for method in ("minmax", "percentile", "mse"):
        assert streamed.range(method).amax == pytest.approx(whole.range(method).amax, rel=0.05)


def test_growing_keeps_every_count_in_place() -> None:
    streamed = filled(np.full(10, 1.0), np.full(5, 1000.0))
    bins = np.flatnonzero(streamed.counts)
    assert streamed.counts[bins].tolist() == [10, 5]
    assert streamed.centres[bins] == pytest.approx([1.0, 1000.0], abs=streamed.top / BINS)


def test_percentile_counts_zeros_too() -> None:
    values = np.concatenate([np.zeros(9000), np.linspace(0.001, 1, 1000)])
    assert filled(values).range("percentile").amax == pytest.approx(np.quantile(values, 0.9999), abs=2e-3)
    assert filled(values[9000:]).range("percentile").amax == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    "values", [RNG.normal(0, 1, 50_000), RNG.laplace(0, 1, 50_000)], ids=["normal", "laplace"]
)
def test_mse_finds_the_least_squared_error(values: np.ndarray) -> None:
    found = filled(values).range("mse").amax
    tried = np.linspace(0.2, 1.0, 200) * np.abs(values).max()
    errors = [np.square(quantized(values, amax) - values).mean() for amax in tried]
    assert np.square(quantized(values, found) - values).mean() <= 1.02 * min(errors)
    assert found < 0.95 * np.abs(values).max()


def test_entropy_cuts_a_far_outlier_and_keeps_an_even_spread() -> None:
    outlier = np.concatenate([RNG.normal(0, 1, 100_000), [500.0]])
    assert filled(outlier).range("entropy").amax < 50
    even = RNG.uniform(0, 1, 100_000)
    assert filled(even).range("entropy").amax > 0.9


def test_a_tensor_that_is_always_zero_has_a_usable_step() -> None:
    for method in METHODS:
        found = filled(np.zeros(100)).range(method)
        assert (found.amax, found.scale) == (0.0, 1.0)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(HzError, match="not finite"):
        filled(np.array([1.0, np.inf]))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="no range method"):
        filled(np.ones(3)).range("guess")


def test_collected_ranges_are_those_of_the_tensors() -> None:
    pytest.importorskip("onnxruntime")
    volumes = grids(2)
    seen: list[int] = []
    found = collect(harmonizer(), ["stem_relu_out", "volume"], volumes, lambda: seen.append(1))
    assert len(seen) == 2
    assert found["volume"].range("minmax").amax == volumes.max()
    relu = found["stem_relu_out"]
    assert relu.low == 0.0 and relu.high > 1.0  # after a norm and a ReLU
    assert relu.counts.sum() + relu.zeros == 2 * 8 * 16**3
    assert set(ranges(found, "minmax")) == {"stem_relu_out", "volume"}
