"""How far apart sites lie: neighbours and distances of coarse volumes, as numbers beside a t-SNE picture.

A t-SNE map (van der Maaten & Hinton 2008) is for the eye: its distances mean nothing, and two clouds that
touch in it may be far apart. The numbers are taken on the 8 x 8 x 8 block means that it is drawn from
(Komandur 2023, Figure 2). Both are free of scale, so that a method gains nothing by flattening every scan.

What they do not know: sites also differ in who was scanned there. Where ages or diagnoses differ between
sites, a perfect harmonizer does not reach the value of mixed sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError

F64 = NDArray[np.float64]

NEIGHBOURS = 5
COMPONENTS = 10


def principal(features: F64, components: int = COMPONENTS) -> F64:
    """Scores of the first principal components, (n, components) float64, in the features' unit.

    The basis is that of the features given: one fitted to raw scans would look past the directions in
    which harmonized scans differ.
    """
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(u[:, :components] * s[:components])


def distances(features: F64) -> F64:
    """(n, n) Euclidean distances between rows."""
    centred = features - features.mean(axis=0)  # far from the origin, squares would lose the digits
    squares = np.square(centred).sum(axis=1)
    out = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * centred @ centred.T, 0.0))
    np.fill_diagonal(out, 0.0)
    return np.asarray(out)


def _apart(subjects: Sequence[str]) -> F64:
    people = np.asarray(subjects, str)
    return np.asarray(people[:, None] != people[None], np.float64)


@dataclass(frozen=True)
class Neighbours:
    """Site purity among nearest neighbours, as a function of how often each scan was drawn.

    Leave one out: for every scan, the share of scans of its own site among its k nearest scans of other
    subjects (the statistic of Schilling 1986). A rescan is its subject's twin and says nothing about sites,
    so that scans of the same subject are never neighbours. With P a site's mean share and C the share that
    mixing by chance gives, (n_site - 1) / (n - 1) where nobody was scanned twice, a site's purity is
    (P - C) / (1 - C), and that of a cohort the mean over sites: 1 for sites apart, 0 for mixed ones. That
    is an expectation: single cohorts of mixed sites lie on both sides of it.

    order : (n, n) everyone by distance.  apart : (n, n) 1 where two scans are of different subjects.
    same : (n, n) 1 where two scans are of one site.  members : (sites, n) 1 where a scan is of a site.
    """

    order: NDArray[np.intp]
    apart: F64
    same: F64
    members: F64
    k: int

    @classmethod
    def of(
        cls,
        spread: F64,
        sites: Sequence[str],
        subjects: Sequence[str],
        names: Sequence[str],
        k: int = NEIGHBOURS,
    ) -> Neighbours:
        """spread : (n, n) distances. k is lowered to what the smallest site has in other subjects."""
        where, people = np.asarray(sites, str), np.asarray(subjects, str)
        members = np.stack([where == name for name in names]).astype(np.float64)
        smallest = min(len(set(people[where == name])) for name in names)
        same = np.asarray(where[:, None] == where[None], np.float64)
        return cls(
            np.argsort(spread, axis=1, kind="stable"),
            _apart(subjects),
            same,
            members,
            max(1, min(k, smallest - 1)),
        )

    def __call__(self, weights: F64) -> F64:
        """(1 + sites,): the mean over sites, then each site; nan where nobody of a site was drawn."""
        usable = self.apart * weights[None]
        near = np.take_along_axis(usable, self.order, axis=1)
        taken = np.diff(np.minimum(np.cumsum(near, axis=1), self.k), axis=1, prepend=0.0)
        own = (taken * np.take_along_axis(self.same, self.order, axis=1)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = own / taken.sum(axis=1)
            chance = (usable * self.same).sum(axis=1) / usable.sum(axis=1)
            counted = np.where(np.isfinite(share), weights, 0.0) * self.members
            p, c = (counted @ np.nan_to_num(v) / counted.sum(axis=1) for v in (share, chance))
            purity = np.where(c < 1, (p - c) / (1 - c), np.nan)
        known = purity[np.isfinite(purity)]
        return np.concatenate([[known.mean() if known.size else np.nan], purity])


@dataclass(frozen=True)
class Energy:
    """Energy distance between sites as a coefficient, as a function of how often each scan was drawn.

    Szekely & Rizzo 2013: H = (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|), with X, X' from one site and Y,
    Y' from another; 0 for equal distributions, at most 1. The expectations are means over pairs of
    different subjects (the unbiased form), and so equal distributions may fall below 0.

    spread : (n, n) distances, of principal components.  members : (sites, n) 1 where a scan is of a site.
    pairs : of sites that are compared.
    """

    spread: F64
    apart: F64
    members: F64
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        spread: F64,
        sites: Sequence[str],
        subjects: Sequence[str],
        names: Sequence[str],
        reference: str | None = None,
    ) -> Energy:
        """reference : the site that every other one is compared with; None compares all pairs."""
        members = np.stack([[s == name for s in sites] for name in names]).astype(np.float64)
        pairs = list(combinations(range(len(names)), 2))
        if reference is not None:
            pairs = [pair for pair in pairs if names.index(reference) in pair]
        return cls(spread, _apart(subjects), members, tuple(pairs))

    def __call__(self, weights: F64) -> F64:
        """(1 + sites,): the mean over pairs, then over each site's pairs; nan where a site is missing."""
        drawn = self.members * weights
        counts = drawn @ self.apart @ drawn.T
        sums = drawn @ (self.apart * self.spread) @ drawn.T
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = sums / counts
        values = np.array([_coefficient(mean[a, b], mean[a, a], mean[b, b]) for a, b in self.pairs])
        rows = [np.ones(len(self.pairs), bool)]
        rows += [np.array([site in pair for pair in self.pairs]) for site in range(len(self.members))]
        kept = [values[row & np.isfinite(values)] for row in rows]
        return np.array([v.mean() if v.size else np.nan for v in kept])


def _coefficient(cross: float, left: float, right: float) -> float:
    if cross == 0:
        return 0.0
    return float((2 * cross - left - right) / (2 * cross))


def embed(features: F64, seed: int, perplexity: float = 30.0) -> F64:
    """(n, features) to (n, 2) t-SNE coordinates, for a picture only.

    Starts from the first two principal components, so that one seed gives one picture; perplexity is
    lowered to (n - 1) / 3 for small cohorts. Raises UsageError without scikit-learn.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UsageError(
            "scikit-learn is not installed; the t-SNE map needs it.", "pip install 'hz-mri[evaluate]'"
        ) from error
    perplexity = min(perplexity, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return np.asarray(tsne.fit_transform(features.astype(np.float32)), np.float64)
