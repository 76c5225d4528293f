"""How far a network of reduced precision strays from the float32 one, on real scans, in the user's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from hz_runtime.backends import open_backend
from hz_runtime.errors import BackendError, HzError, UsageError

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

BRAIN_ABOVE = 0.02  # of a prepared volume in [0, 1], zero outside the brain
ENGINE = "onnxruntime"
YEARS_PERCENT = 95.0  # share of scans whose age must keep to the budget
DEFAULT_SHARE = 0.015  # of the brain's mean: 2 % is asked of unseen scans, and these are seen
DEFAULT_YEARS = 0.4  # likewise for half a year


@dataclass(frozen=True)
class Deviation:
    """From float32. A network that gives values which are not finite is infinitely far.

    intensity : mean absolute difference inside the brain, of volumes in [0, 1]; None for an age network.
    years : absolute difference that 95 % of the scans' ages keep to; None where there are no ages.
    """

    intensity: float | None
    years: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON types; None for what is infinite, too."""
        return {k: v if v is not None and np.isfinite(v) else None for k, v in self.__dict__.items()}

    def __str__(self) -> str:
        parts = [] if self.intensity is None else [f"{self.intensity:.5f} intensity"]
        parts += [] if self.years is None else [f"{self.years:.3f} years"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Budget:
    """The largest deviation allowed, in the units of `Deviation`; None: not limited."""

    intensity: float | None = None
    years: float | None = None

    def used(self, deviation: Deviation) -> float:
        """The largest share of a limit that is used up; past the budget above 1."""
        pairs = [(deviation.intensity, self.intensity), (deviation.years, self.years)]
        shares = [_share(d, limit) for d, limit in pairs if d is not None and limit is not None]
        if not shares:
            raise UsageError(
                "the budget limits nothing that this network gives.",
                "A harmonizer's is in intensity units (mean=0.01), an age network's in years (years=0.5).",
            )
        return max(shares)


def _share(found: float, limit: float) -> float:
    if limit > 0:
        return found / limit
    return 0.0 if found == 0 else float("inf")


@dataclass(frozen=True)
class Yardstick:
    """Measures reduced networks against one float32 network.

    model : the float32 graph.  grids : (n, D, H, W) float32 that it is given.  age : for a harmonizer, the
    float32 age network behind it, if there is one.  engine : that runs everything.
    expected : the float32 answers, computed once: (n, D, H, W) volumes, or (n,) years.
    """

    model: ModelProto
    grids: F32
    age: ModelProto | None = None
    engine: str = ENGINE
    expected: F32 = field(init=False)
    years: F32 | None = field(init=False)

    def __post_init__(self) -> None:
        expected = answers(self.model, self.grids, self.engine)
        behind = None if self.age is None else answers(self.age, expected, self.engine)
        object.__setattr__(self, "expected", expected)
        object.__setattr__(self, "years", behind)

    @property
    def brain(self) -> Mask:
        """(n, D, H, W)"""
        inside: Mask = self.grids > BRAIN_ABOVE
        return inside

    @property
    def budget(self) -> Budget:
        """What is asked where nothing else is said: 1.5 % of the brain's mean intensity, 0.4 years."""
        if self.expected.ndim == 1:
            return Budget(years=DEFAULT_YEARS)
        mean = float(np.abs(self.expected[self.brain]).mean(dtype=np.float64))
        return Budget(DEFAULT_SHARE * mean, DEFAULT_YEARS if self.years is not None else None)

    def __call__(self, model: ModelProto) -> Deviation:
        """Run a reduced network over the scans. Raises BackendError where it cannot be opened."""
        try:
            found = answers(model, self.grids, self.engine)
        except _NotFinite:
            volumes = self.expected.ndim > 1
            return Deviation(np.inf if volumes else None, np.inf if self._has_years else None)
        return self.deviation(found)

    def deviation(self, found: F32) -> Deviation:
        """found : answers of a reduced network, shaped like `expected`."""
        if self.expected.ndim == 1:
            return Deviation(None, spread_of_years(found, self.expected))
        gap = float(np.abs(found.astype(np.float64) - self.expected)[self.brain].mean())
        if self.age is None or self.years is None:
            return Deviation(gap, None)
        return Deviation(gap, spread_of_years(answers(self.age, found, self.engine), self.years))

    @property
    def _has_years(self) -> bool:
        return self.expected.ndim == 1 or self.years is not None


class _NotFinite(HzError):
    """A network gave values that are not finite."""


def answers(model: ModelProto, grids: F32, engine: str = ENGINE) -> F32:
    """A network over prepared scans, one at a time, on the CPU: (n, D, H, W) volumes, or (n,) years.

    Raises BackendError where the engine cannot open or run it.
    """
    backend = open_backend(engine, model.SerializeToString(), device="cpu")
    try:
        found = [next(iter(_run(backend.run, grid).values())) for grid in grids]
    finally:
        backend.close()
    joined: F32 = np.concatenate(found)
    return joined.reshape(len(grids), *joined.shape[-3:]) if joined.ndim == 5 else joined.reshape(-1)


def _run(run: Any, grid: F32) -> Mapping[str, F32]:
    try:
        found: Mapping[str, F32] = run(grid[None, None])
    except BackendError as error:
        if "non-finite" in error.message:
            raise _NotFinite(error.message) from None
        raise
    return found


def spread_of_years(found: F32, expected: F32) -> float:
    """Absolute difference, in years, that 95 % of the scans keep to: of few scans, the largest."""
    gaps = np.abs(found.astype(np.float64) - expected)
    return float(np.percentile(gaps, YEARS_PERCENT, method="inverted_cdf"))
