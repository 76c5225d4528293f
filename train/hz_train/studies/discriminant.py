"""Whether the site can be told from a few numbers of a scan: linear discriminants of other people.

A weak classifier on purpose: it reads what a table shows, not the volume. `predictability` asks networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hz_train.scores import Estimate, estimates

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_PEOPLE = 3  # of a site that is to be told: one is left out, and two make a class


def told_sites(features: F64, sites: Sequence[str], subjects: Sequence[str]) -> tuple[list[int], F64]:
    """(rows, 1 or 0 for each of them: whether its site was named rightly), one person left out at a time.

    features : (n, p), finite.  Rows of sites with fewer than 3 people are left out; there are none where
    fewer than two sites are left. All sites are held equally probable beforehand.
    Of sites that nothing tells apart it is right less often than guesses are: a person who is left out takes
    the own site's mean away from itself.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    people = {site: {p for p, s in zip(subjects, sites, strict=True) if s == site} for site in set(sites)}
    rows = [i for i, site in enumerate(sites) if len(people[site]) >= LEAST_PEOPLE]
    named = np.array([sites[i] for i in rows])
    known = sorted(set(named))
    if len(known) < 2:
        return [], np.zeros(0)
    scaled, who = _scaled(features[rows]), np.array([subjects[i] for i in rows])
    right = np.zeros(len(rows))
    for person in np.unique(who):
        out = who == person
        model = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(len(known), 1 / len(known)))
        right[out] = model.fit(scaled[~out], named[~out]).predict(scaled[out]) == named[out]
    return rows, right


def target_auc(features: F64, of_target: Mask, subjects: Sequence[str], resamples: int) -> Estimate | None:
    """AUC of a linear discriminant that tells the target's people from the rest, its 95 % interval.

    features : (n, p), finite; a person's scans are averaged.  of_target : (n,).
    Every person of the target is compared with every one of the rest by a discriminant of all the others
    (leave-pair-out, Airola et al. 2011). One person at a time would not do: answers of different fits are
    not on one scale, and the area of what cannot be told is then far below one half. Intervals resample
    people of both. None where either has fewer than 3 people.
    """
    ours, rest = (_by_person(_scaled(features), subjects, part) for part in (of_target, ~of_target))
    if min(len(ours), len(rest)) < LEAST_PEOPLE:
        return None
    above = pairs_told(ours, rest)
    first = len(ours)

    def statistic(weights: F64) -> F64:
        mine, others = weights[:first], weights[first:]
        return np.array([mine @ above @ others / (mine.sum() * others.sum())])

    everybody = [f"person-{k}" for k in range(first + len(rest))]
    labels = np.arange(len(everybody)) < first
    return estimates(statistic, everybody, labels, resamples)[0]


def pairs_told(ours: F64, rest: F64) -> F64:
    """(n, m): 1 where row i of `ours` (n, p) is put above row j of `rest` (m, p), ties count half.

    By the discriminant of all rows but those two, in closed form: a row that is left out takes a rank-one
    part out of the scatter within its class.
    """
    own, other = ours - ours.mean(axis=0), rest - rest.mean(axis=0)
    n, m = len(ours), len(rest)
    scatter = own.T @ own + other.T @ other
    ridge = 1e-9 * np.trace(scatter) * np.eye(ours.shape[1])
    less = [k / (k - 1) * v[:, :, None] * v[:, None, :] for k, v in ((n, own), (m, other))]
    within = scatter + ridge - less[0][:, None] - less[1][None, :]
    gap = (ours.mean(axis=0) - own / (n - 1))[:, None] - (rest.mean(axis=0) - other / (m - 1))[None, :]
    direction = np.linalg.solve(within, gap[..., None])[..., 0]
    apart = np.einsum("ijk,ijk->ij", direction, ours[:, None] - rest[None, :])
    return np.asarray((np.sign(apart) + 1) / 2)


def _scaled(features: F64) -> F64:
    return np.asarray((features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12))


def _by_person(features: F64, subjects: Sequence[str], part: Mask) -> F64:
    who, code = np.unique(np.asarray(subjects)[part], return_inverse=True)
    sums = np.zeros((who.size, features.shape[1]))
    np.add.at(sums, code, features[part])
    return sums / np.bincount(code, minlength=who.size)[:, None]
