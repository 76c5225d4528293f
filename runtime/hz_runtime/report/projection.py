"""Scans as points in a plane, and how much of what tells them apart is their site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """Points of the same scans before and after, on the same two axes.

    before, after : (N, 2), each around its own mean.
    variance_shares : share of the pooled variance along each axis.
    """

    before: F64
    after: F64
    variance_shares: tuple[float, float]


def project(before: F64, after: F64) -> Projection:
    """Principal components (Pearson 1901) of features (N, P) before and after.

    Each side is centred on its own mean, so that what all scans have in common (how harmonized differs from
    raw) moves nothing; the axes are those of both sides pooled, so that distances compare.
    Raises ValueError where the shapes differ or N < 3.
    """
    if before.shape != after.shape or before.ndim != 2 or len(before) < 3:
        raise ValueError(
            f"need two (N, P) of one shape and N of 3 or more, got {before.shape}, {after.shape}"
        )
    sides = [side - side.mean(axis=0) for side in (before, after)]
    _, lengths, axes = np.linalg.svd(np.concatenate(sides), full_matrices=False)
    axes = axes[:2]
    # The sign of a component means nothing: fixed, so that a page is the same every time.
    axes = axes * np.where(axes[np.arange(2), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    total = float((lengths**2).sum()) or 1.0
    shares = (float(lengths[0] ** 2) / total, float(lengths[1] ** 2) / total)
    return Projection(sides[0] @ axes.T, sides[1] @ axes.T, shares)


def site_share(features: F64, sites: Sequence[str]) -> tuple[float, float] | None:
    """Share of the variance of features (N, P) that lies between sites, and what chance alone would give.

    R2 of Anderson 2001 ("A new method for non-parametric multivariate analysis of variance") with Euclidean
    distances: sum of squares between groups over all; its mean over random relabellings is (K - 1) / (N - 1)
    for K sites. None where there are not two sites, or no more scans than sites.
    """
    names = sorted(set(sites))
    if len(names) < 2 or len(features) <= len(names):
        return None
    centred = features - features.mean(axis=0)
    total = float((centred**2).sum())
    if total <= 0:
        return None
    labels = np.asarray(sites)
    between = 0.0
    for name in names:
        rows = centred[labels == name]
        between += len(rows) * float((rows.mean(axis=0) ** 2).sum())
    return between / total, (len(names) - 1) / (len(features) - 1)
