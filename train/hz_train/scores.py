"""Scores with confidence intervals: bootstrap over subjects, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
RESAMPLES = 2000


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int = 0) -> list[float]:
    """95 % percentile interval of a statistic of subject indices, each (n,) drawn with replacement."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def score(values: Sequence[float], how: str, seed: int = 0) -> dict[str, Any]:
    """Mean of one value a subject with its interval, count and provenance, as checkpoints store scores."""
    array = np.asarray(values, np.float64)
    return {
        "value": float(array.mean()),
        "ci95": bootstrap(lambda i: float(array[i].mean()), len(array), seed),
        "n": len(array),
        "how": how,
    }
