"""The same scans as every method shows them, one method at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.model_space.foreground import block_means
from hz_train.cohort import Cohort
from hz_train.datasets import ModelInputs
from hz_train.studies.baselines import Blocks, Raw
from hz_train.studies.method import Method, methods
from hz_train.studies.presets import LEAST_SUBJECTS, StudySettings, check_cohort, refuse_leak

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ALL = "all sites"
OTHERS = "all other sites"
LEAST_HELD_OUT = 2


@dataclass(frozen=True)
class View:
    """Scans of both sides after one method, in the cohort's order.

    features : the arrays are (n, 8, 8, 8) block means and not (n, D, H, W) volumes.
    """

    name: str
    features: bool
    training: F32
    test: F32

    @property
    def raw(self) -> bool:
        return self.name == Raw.name


def flat_blocks(volumes: F32) -> F64:
    """(n, D, H, W) to (n, 512) block means; what is block means already stays as it is."""
    return block_means(volumes).reshape(len(volumes), -1).astype(np.float64)


def compared(settings: StudySettings, seed: int) -> list[Method]:
    """Every method, raw first; not block means of raw scans, since here all are compared on block means."""
    return [m for m in methods(settings, seed) if not isinstance(m, Blocks)]


def views(
    found: Sequence[Method], training: ModelInputs, test: ModelInputs, reference: str
) -> Iterator[View]:
    """Fit each method on the training side and show both sides through it.

    Raises Leak where a method was fitted on a scored scan.
    """
    for method in found:
        method.fit(training, reference)
        refuse_leak(method.name, method.seen, test)
        sides = [method.apply(part.grids, [s.site for s in part.scans]) for part in (training, test)]
        yield View(method.name, method.features, *sides)


def divisible(cohort: Cohort, settings: StudySettings) -> Cohort:
    """The scans that can be held out of something, where a --harmonizer is judged; else all of them.

    What is written of scans needs no division of the sites they are from: a few scans of a scanner are enough
    to be scored there, and are left out of the rest.
    """
    if settings.harmonizer is None:
        return cohort
    people = {site: len(cohort.at([site]).subjects) for site in cohort.sites}
    enough = [
        site
        for site, n in people.items()
        if site == settings.reference
        or (n >= LEAST_SUBJECTS and round(settings.held_out * n) >= LEAST_HELD_OUT)
    ]
    return cohort.at(enough)


def check_sites(cohort: Cohort, settings: StudySettings) -> None:
    """Raise UsageError where sites cannot be compared: one site, no reference, too few to hold out."""
    check_cohort(cohort, settings)
    for site in cohort.sites:
        n = len(cohort.at([site]).subjects)
        if round(settings.held_out * n) < LEAST_HELD_OUT:
            raise UsageError(
                f"site {site} has {n} subjects, of which {settings.held_out:.0%} are no two to be scored.",
                "Raise --held-out, add scans, or leave the site out of the cohort table.",
            )
