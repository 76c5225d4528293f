"""Activation ranges: which magnitude of every tensor becomes 127.

Histograms of magnitudes are filled scan by scan, so that memory does not grow with their number. Quantization
is symmetric, so that one number a tensor, `amax`, says everything: its step is amax / 127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from hz_calibration.graph import with_outputs
from hz_runtime.backends.registry import open_backend
from hz_runtime.errors import HzError, UsageError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

METHODS = ("minmax", "percentile", "entropy", "mse")
LEVELS = 127  # magnitudes of symmetric int8
BINS = 4096
PERCENTILE = 99.99
CANDIDATES = 128  # thresholds that entropy and mse try


@dataclass(frozen=True)
class Range:
    """What is quantized of one tensor.

    amax : magnitude that becomes 127; larger ones are cut to it.  low, high : the values that were seen.
    """

    amax: float
    low: float
    high: float

    @property
    def scale(self) -> float:
        """Size of one step, in the tensor's units. A tensor that is (as good as) always 0 has steps of 1."""
        step = self.amax / LEVELS
        return step if step >= float(np.finfo(np.float32).tiny) else 1.0


@dataclass
class Histogram:
    """Magnitudes of one tensor. counts : (BINS,) over [0, top]; zeros are left out of them."""

    counts: F64 = field(default_factory=lambda: np.zeros(BINS))
    top: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    zeros: int = 0

    def add(self, values: F32) -> None:
        """Count an array. Raises HzError where it holds a value that is not finite."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise HzError("An activation is not finite.", "The network overflows in float32; train it again.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if self.top == 0.0:
            self.top = largest
        while largest > self.top > 0:  # twice the range, half the bins: no scan has to be seen again
            wider = np.zeros(BINS)
            wider[: BINS // 2] = self.counts[::2] + self.counts[1::2]
            self.counts = wider
            self.top *= 2
        magnitudes = np.abs(values[values != 0], dtype=np.float64)  # bins of float32 cannot hold every range
        self.zeros += int(values.size - magnitudes.size)
        if magnitudes.size:
            np.add(self.counts, np.histogram(magnitudes, BINS, (0.0, self.top))[0], out=self.counts)

    @property
    def centres(self) -> F64:
        """(BINS,) magnitude in the middle of every bin."""
        middles: F64 = (np.arange(BINS, dtype=np.float64) + 0.5) * (self.top / BINS)
        return middles

    def range(self, method: str, percentile: float = PERCENTILE) -> Range:
        """The range by one of METHODS. Raises UsageError for another."""
        largest = max(abs(self.low), abs(self.high), 0.0) if self.counts.any() else 0.0
        if method == "minmax" or largest == 0.0:
            amax = largest
        elif method == "percentile":
            amax = self._percentile(percentile)
        elif method == "mse":
            amax = min(self._thresholds(), key=self._squared_error)
        elif method == "entropy":
            amax = min(self._thresholds(), key=self._divergence)
        else:
            raise UsageError(f"no range method is called {method!r}.", f"Known: {', '.join(METHODS)}.")
        return Range(min(float(amax), largest), self.low, self.high)

    def _percentile(self, percentile: float) -> float:
        """Magnitude under which this share of all values lies, zeros included."""
        total = self.counts.sum() + self.zeros
        above = np.cumsum(self.counts[::-1])[::-1]  # in this bin or a higher one
        over = np.flatnonzero(above > (1 - percentile / 100) * total)
        return float((over[-1] + 1 if over.size else BINS) * self.top / BINS)

    def _thresholds(self) -> F64:
        """Upper edges of bins, evenly over the values seen, and the largest value itself."""
        last = int(np.flatnonzero(self.counts)[-1]) + 1
        bins = np.unique(np.linspace(max(1, last // CANDIDATES), last, CANDIDATES).round())
        edges: F64 = bins * (self.top / BINS)
        return edges

    def _squared_error(self, amax: float) -> float:
        """Mean squared error of rounding to LEVELS steps of amax / LEVELS and cutting the rest."""
        step = amax / LEVELS
        kept = np.minimum(np.rint(self.centres / step), LEVELS) * step
        inside = self.centres <= amax
        width = self.top / BINS
        # Within a bin values are spread evenly: where steps are finer than bins, rounding costs step^2 / 12.
        rounding = np.maximum(np.square(kept - self.centres), min(step, width) ** 2 / 12)
        error = np.where(inside, rounding, np.square(self.centres - amax))
        return float((self.counts * error).sum())

    def _divergence(self, amax: float) -> float:
        """Kullback-Leibler divergence of the values, cut at amax, from their quantized form.

        After Migacz, "8-bit inference with TensorRT" (GTC 2017), on magnitudes other than 0: zeros are exact
        in every symmetric quantization, and their number would hide the rest.
        """
        bins = max(1, round(amax / self.top * BINS))
        kept = self.counts[:bins].copy()
        filled = kept > 0
        if bins <= LEVELS:
            levels = np.arange(bins)
        else:
            levels = np.minimum((np.arange(bins) * LEVELS) // bins, LEVELS - 1)
        sums = np.bincount(levels, kept, LEVELS)
        sizes = np.bincount(levels, filled.astype(np.float64), LEVELS)
        spread = np.where(filled, (sums / np.maximum(sizes, 1))[levels], 0.0)
        true = kept.copy()
        true[-1] += self.counts[bins:].sum()
        both = (true > 0) & (spread > 0)
        p, q = true / true.sum(), spread / max(spread.sum(), 1e-300)
        missed = float(p[(true > 0) & ~both].sum())  # cut values where nothing lay: infinitely surprising
        return float((p[both] * np.log(p[both] / q[both])).sum()) + missed * 50.0


def collect(
    model: ModelProto, tensors: Iterable[str], grids: F32, step: Callable[[], None] = lambda: None
) -> dict[str, Histogram]:
    """Histograms of the named tensors of a float32 graph over prepared scans, in onnxruntime on the CPU.

    grids : (n, D, H, W) float32, one scan at a time through the network.  step : called after every scan.
    Raises BackendError where onnxruntime is absent or fails, HzError where a value is not finite.
    """
    names = tuple(dict.fromkeys(tensors))
    given = model.graph.input[0].name
    found = {name: Histogram() for name in names}
    backend = open_backend("onnxruntime", with_outputs(model, names).SerializeToString(), device="cpu")
    try:
        for grid in grids:
            outputs = {**backend.run(grid[None, None]), given: grid}
            for name in names:
                found[name].add(outputs[name])
            step()
    finally:
        backend.close()
    return found


def ranges(histograms: Mapping[str, Histogram], method: str) -> dict[str, Range]:
    """The range of every tensor by one of METHODS."""
    return {name: histogram.range(method) for name, histogram in histograms.items()}
