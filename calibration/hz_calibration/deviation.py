"""How far a network of reduced precision strays from the float32 one, on real scans, in the user's units."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto

from hz_runtime.backends.registry import open_backend
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.inference.slice_wise import of_volumes

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

BRAIN_ABOVE = 0.02  # of a prepared volume in [0, 1], zero outside the brain
ENGINE = "onnxruntime"
PERCENT = 95.0  # share of the scans that must keep to the budget
DEFAULT_SHARE = 0.015  # of a scan's mean inside the brain: 2 % is asked of unseen scans, and these are seen
DEFAULT_YEARS = 0.4  # likewise for half a year


@dataclass(frozen=True)
class Deviation:
    """From float32, as 95 % of the scans keep to (of fewer than 20 scans: the worst). A network that gives
    values which are not finite is infinitely far.

    Not the mean over scans: int8 errors of the reference harmonizer spread sevenfold between scans, and it is
    the worst ones that decide whether a network may ship.

    intensity : mean absolute difference inside a scan's brain, of volumes in [0, 1]; None for an age network.
    years : absolute difference of a scan's age; None where there are no ages.
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
class DeviationMeasure:
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
        """What is asked where nothing else is said: 1.5 % of the mean intensity inside the dimmest scan's
        brain, so that no scan strays further from its own mean; 0.4 years."""
        if self.expected.ndim == 1:
            return Budget(years=DEFAULT_YEARS)
        dimmest = min(
            float(np.abs(volume[brain]).mean(dtype=np.float64))
            for volume, brain in zip(self.expected, self.brain, strict=True)
        )
        return Budget(DEFAULT_SHARE * dimmest, DEFAULT_YEARS if self.years is not None else None)

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
            return Deviation(None, most(found.astype(np.float64) - self.expected))
        gaps = [
            np.abs(volume.astype(np.float64) - expected)[brain].mean()
            for volume, expected, brain in zip(found, self.expected, self.brain, strict=True)
        ]
        if self.age is None or self.years is None:
            return Deviation(most(gaps), None)
        ages = answers(self.age, found, self.engine).astype(np.float64)
        return Deviation(most(gaps), most(ages - self.years))

    @property
    def _has_years(self) -> bool:
        return self.expected.ndim == 1 or self.years is not None


class _NotFinite(HzError):
    """A network gave values that are not finite."""


def answers(model: ModelProto, grids: F32, engine: str = ENGINE, middle_slices: int = 0) -> F32:
    """A network over prepared scans, one at a time, on the CPU: (n, D, H, W) volumes, or (n,) numbers.

    middle_slices : of the recipe, for a slice-wise network that gives numbers.
    Raises BackendError where the engine cannot open or run it.
    """
    backend = open_backend(engine, model.SerializeToString(), device="cpu")
    try:
        ask = of_volumes(backend, middle_slices)
        return np.concatenate([ask(grid[None]) for grid in grids])
    except BackendError as error:
        if "non-finite" in error.message:
            raise _NotFinite(error.message) from None
        raise
    finally:
        backend.close()


def most(gaps: ArrayLike) -> float:
    """The absolute size that 95 % of these differences, one a scan, keep to: of few scans, the largest."""
    return float(np.percentile(np.abs(gaps), PERCENT, method="inverted_cdf"))
