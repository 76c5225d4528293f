"""The smooth multiplicative field in a brain, as far as the bright end of its intensities shows it.

A quadratic surface through the logarithm of white matter's level in cells of 16 mm. Nothing is corrected by
it: it says how much field there is, and lets white matter be told by one threshold. N4 (`preparation.n4`) is
what takes fields out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

CELL_MM = 16.0  # holds white matter wherever it lies deep enough in the brain
LEAST_FULL = 0.6  # share of a cell that is brain
BRIGHT = 0.85  # quantile of a cell's brain: white matter, where a cell has some
LEAST_LEVEL = 0.3  # of the median cell's: a darker one has no white matter
LEAST_CELLS = 30
ROUNDS = 5  # of reweighting by Cauchy's weights; the fit moves no further
SCALE_MM = 80.0  # half a brain, so that the surface's terms are of one size
TERMS = [(), *((axis,) for axis in range(3)), *combinations_with_replacement(range(3), 2)]


@dataclass(frozen=True, eq=False)
class SmoothField:
    """A field whose median over the brain's cells is 1.

    weights : (10,) of TERMS in its logarithm.  centre_mm : (3,) that they count from.
    spread : of its logarithm, from the 5th to the 95th percentile of the cells.
    """

    weights: F64
    centre_mm: F64
    spread: float

    @classmethod
    def fitted(cls, data: F32, brain: Mask, spacing: F64) -> SmoothField | None:
        """Of an (I, J, K) brain, air 0; None where it has too few cells.

        spacing : (3,) mm.
        """
        at, level = _levels_of_cells(data, brain, spacing)  # (n, 3) mm from the corner of the grid, (n,)
        seen = level > LEAST_LEVEL * np.median(level) if len(level) else np.zeros(0, bool)
        if seen.sum() < LEAST_CELLS:
            return None
        centre = at[seen].mean(axis=0)
        terms, wanted = _terms((at[seen] - centre) / SCALE_MM), np.log(level[seen])
        trust = np.ones(len(wanted))
        for _ in range(ROUNDS):
            weights = np.linalg.lstsq(terms * trust[:, None], wanted * trust, rcond=None)[0]
            apart = wanted - terms @ weights
            scale = max(3.0 * float(np.median(np.abs(apart))), 1e-3)
            trust = 1 / np.sqrt(1 + (apart / scale) ** 2)
        field = terms @ weights
        weights[0] -= np.median(field)
        low, high = np.percentile(field, [5, 95])
        return cls(weights, centre, float(high - low))

    def at(self, points: F64) -> F32:
        """(n,) float32 of the field at points (n, 3), mm from the corner of the grid it was fitted on."""
        found: F32 = np.exp(_terms((points - self.centre_mm) / SCALE_MM) @ self.weights).astype(np.float32)
        return found

    def on(self, shape: tuple[int, ...], spacing: F64) -> F32:
        """The field on the grid that it was fitted on, float32."""
        axes = [
            ((np.arange(size) + 0.5) * step - centre) / SCALE_MM
            for size, step, centre in zip(shape, spacing, self.centre_mm, strict=True)
        ]
        x, y, z = np.ix_(*(axis.astype(np.float32) for axis in axes))
        w = self.weights.astype(np.float32)
        found = w[0] + x * (w[1] + w[4] * x) + y * (w[2] + w[5] * x + w[7] * y)
        found = found + z * (w[3] + w[9] * z) + z * (w[6] * x + w[8] * y)
        field: F32 = np.exp(found)
        return field


def _terms(points: F64) -> F64:
    """(n, 10): TERMS of points (n, 3)."""
    return np.stack([np.prod(points[:, term], axis=1) for term in TERMS], axis=1)


def _levels_of_cells(data: F32, brain: Mask, spacing: F64) -> tuple[F64, F64]:
    """(centres (n, 3) in mm from the grid's corner, bright ends (n,)) of the cells that are full enough."""
    sizes = [max(1, round(CELL_MM / step)) for step in spacing]
    counts = [n // size for n, size in zip(data.shape, sizes, strict=True)]
    if 0 in counts:  # thinner than a cell
        return np.zeros((0, 3)), np.zeros(0)
    starts = [(n - c * s) // 2 for n, c, s in zip(data.shape, counts, sizes, strict=True)]
    box = tuple(slice(a, a + c * s) for a, c, s in zip(starts, counts, sizes, strict=True))

    def cells(array: NDArray[np.generic]) -> NDArray[np.generic]:
        split = [n for pair in zip(counts, sizes, strict=True) for n in pair]
        return array[box].reshape(split).transpose(0, 2, 4, 1, 3, 5).reshape(*counts, -1)

    inside = cells(brain)
    full = inside.mean(axis=-1) > LEAST_FULL
    inside = inside[full]
    ordered = np.sort(np.where(inside, cells(data)[full], 0), axis=-1)
    rank = ordered.shape[-1] - 1 - np.rint((1 - BRIGHT) * (inside.sum(axis=-1) - 1)).astype(np.intp)
    level = ordered[np.arange(len(ordered)), rank].astype(np.float64)
    at = ((np.argwhere(full) + 0.5) * sizes + starts) * spacing
    return at, level
