"""A cohort in memory with known site effects, and methods with known answers, for tests of whole studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hz_train.cohort import Scan
from hz_train.datasets import ModelInputs
from hz_train.studies.estimate import estimates
from hz_train.studies.presets import StudySettings, study_preset

SIZE = 32
SITES = {"bonn": 1.5, "oslo": 1.0, "rome": 0.6}  # exponent of each site's tone curve; oslo is the reference


def brain(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels uint8, volume float32 in [0, 1]), each (32, 32, 32): CSF around grey around white matter."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIZE)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    outer, middle, inner = 0.92, rng.uniform(0.74, 0.82), rng.uniform(0.46, 0.58)
    labels = (1 + (radius < middle) + (radius < inner)) * (radius < outer)
    levels = np.array([0.0, 0.25, 0.55, 0.9])
    volume = levels[labels] + 0.02 * rng.standard_normal(labels.shape)
    return labels.astype(np.uint8), np.where(labels > 0, np.clip(volume, 0.05, 1), 0).astype(np.float32)


def resample_less(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Intervals from 200 resamples, for tests that look at the numbers beside them."""
    for module in modules:
        patch.setattr(
            module, "estimates", lambda statistic, subjects, _=0: estimates(statistic, subjects, 200)
        )


def cohort(per_site: int = 12, rescans: int = 0, effect: bool = True) -> ModelInputs:
    """per_site subjects at each site, the first `rescans` of each scanned twice."""
    scans, grids = [], []
    for s, (site, exponent) in enumerate(SITES.items()):
        for n in range(per_site):
            for again in range(2 if n < rescans else 1):
                volume = brain(100 * s + n)[1]
                noise = 0.01 * np.random.default_rng([s, n, again]).standard_normal(volume.shape)
                seen = np.where(volume > 0, np.clip(volume + noise, 0.05, 1), 0)
                grids.append(seen ** (exponent if effect else 1.0))
                path = Path(f"/nowhere/{site}-{n}-{again}.nii.gz")
                scans.append(Scan(path, f"{site}/{n}", site, 30.0, "n/a", "control"))
    shas = tuple(f"sha-{s.path.name}" for s in scans)
    return ModelInputs(tuple(scans), np.stack(grids).astype(np.float32), tuple({} for _ in scans), shas)


def truths(inputs: ModelInputs) -> dict[Path, np.ndarray]:
    """Every scan without its site's tone curve."""
    return {
        s.path: (g.astype(np.float64) ** (1 / SITES[s.site])).astype(np.float32)
        for s, g in zip(inputs.scans, inputs.grids, strict=True)
    }


def label_maps(inputs: ModelInputs) -> dict[Path, np.ndarray]:
    names = list(SITES)
    return {s.path: brain(100 * names.index(s.site) + int(s.subject.split("/")[1]))[0] for s in inputs.scans}


class Perfect:
    """Knows the tone curves and takes them back."""

    name = "perfect CycleGAN"
    features = False
    seen: frozenset[str] = frozenset()

    def fit(self, training: ModelInputs, reference: str) -> None: ...

    def apply(self, volumes: np.ndarray, sites: Sequence[str]) -> np.ndarray:
        each = [v.astype(np.float64) ** (1 / SITES[s]) for v, s in zip(volumes, sites, strict=True)]
        return np.stack(each).astype(np.float32)


class Eroding(Perfect):
    """Takes the curves back, and the outer layer of the white matter with them."""

    name = "eroding CycleGAN"

    def apply(self, volumes: np.ndarray, sites: Sequence[str]) -> np.ndarray:
        from scipy.ndimage import grey_erosion

        back = super().apply(volumes, sites)
        thinner = np.stack([grey_erosion(v, 3) for v in back])
        return np.where(back > 0.72, np.maximum(thinner, np.float32(0.55)), back).astype(np.float32)


def settings(tmp_path: Path, **changes: object) -> StudySettings:
    made = StudySettings(
        reference="oslo",
        preset=study_preset("quick", "volume"),
        table=tmp_path / "participants.tsv",
        out=tmp_path / "out",
        held_out=0.5,
        device="cpu",
        changes={"preset": "quick"},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def table(result, name):
    return next(t for t in result.tables if t.name == name)


def value(result, name, method, site, metric, **columns):
    """One number of a study; the row must be the only one."""
    (row,) = (
        r
        for r in table(result, name).rows
        if (r.method, r.site) == (method, site) and all(r.columns[k] == v for k, v in columns.items())
    )
    return row.metrics[metric].value
