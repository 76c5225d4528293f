"""A cohort in model space, in memory: the paper's volumes are 1 MB each, so that whole cohorts fit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.air import with_air_zero
from hz_runtime.model_space.anatomy import anatomy
from hz_runtime.model_space.recipe import ModelInput, Recipe, to_model_space
from hz_runtime.preparation.n4 import corrected
from hz_train.cohort import Cohort, Scan
from hz_train.progress import counted

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class ModelInputs:
    """Scans and their grids, (n, D, H, W) float32 in [0, 1], in the same order.

    features, features_n4 : of the scans as they are, and without their fields; the last is empty where those
        were left in.
    """

    scans: tuple[Scan, ...]
    grids: F32
    features: tuple[dict[str, float], ...]
    sha256: tuple[str, ...]
    features_n4: tuple[dict[str, float], ...] = ()

    def __len__(self) -> int:
        return len(self.scans)

    def of(self, cohort: Cohort) -> ModelInputs:
        """Those scans that are in `cohort`, in this order."""
        wanted = {scan.path for scan in cohort.scans}
        keep = [i for i, scan in enumerate(self.scans) if scan.path in wanted]
        return ModelInputs(
            tuple(self.scans[i] for i in keep),
            self.grids[keep],
            tuple(self.features[i] for i in keep),
            tuple(self.sha256[i] for i in keep),
            tuple(self.features_n4[i] for i in keep if self.features_n4),
        )

    @property
    def ages(self) -> F32:
        """(n,) float32 years; nan where unknown."""
        return np.array([np.nan if s.age is None else s.age for s in self.scans], np.float32)


def load(cohort: Cohort, recipe: Recipe, n4: bool = False) -> ModelInputs:
    """Read every scan and bring it to model space with the runtime's own code.

    Raises ScanError naming the first bad file.

    n4 : take the receive field out first (`hz_runtime.preparation.n4`). The features stay those of the
        scans as they are, because that is how hz-run will meet scans.
    """

    def one(scan: Scan) -> tuple[ModelInput, str, dict[str, float]]:
        volume = read_volume(scan.path)
        made = to_model_space(volume, recipe)
        features_n4: dict[str, float] = {}
        if n4:
            sound = with_air_zero(volume)
            flat = replace(sound, data=corrected(sound.data, sound.affine))
            without_field = to_model_space(flat, recipe)
            features_n4 = without_field.features
            made = replace(made, grid=without_field.grid)
        return made, volume.sha256, features_n4

    with ThreadPoolExecutor(2) as pool:
        done = list(counted(pool.map(one, cohort.scans), len(cohort.scans), "scans to model space"))
    return ModelInputs(
        cohort.scans,
        np.stack([made.grid for made, _, _ in done]),
        tuple(made.features for made, _, _ in done),
        tuple(sha for _, sha, _ in done),
        tuple(features for _, _, features in done if features),
    )


def with_anatomy(inputs: ModelInputs, harmonized: F32, recipe: Recipe) -> ModelInputs:
    """The scans with their harmonized grids (n, D, H, W), and what these show of the anatomy among their
    features: of whom an age network has learned (`hz_runtime.model_space.anatomy`)."""
    found = tuple(
        {**features, **anatomy(after, before, recipe)}
        for features, after, before in zip(inputs.features, harmonized, inputs.grids, strict=True)
    )
    return replace(inputs, grids=harmonized, features=found)


def statistics(features: tuple[Mapping[str, float], ...]) -> dict[str, dict[str, float]]:
    """min, max, mean and sd of every feature: what a bundle compares new scans with."""
    table: dict[str, dict[str, float]] = {}
    for name in features[0]:
        values = np.array([f[name] for f in features], np.float64)
        table[name] = {
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        }
    return table


def describe(inputs: ModelInputs | Cohort) -> dict[str, object]:
    """The cohort in numbers, for checkpoints and model cards; no file names, no subject names."""
    known = np.array([s.age for s in inputs.scans if s.age is not None], np.float32)
    sites: dict[str, object] = {}
    for site in sorted({s.site for s in inputs.scans}):
        rows = [s for s in inputs.scans if s.site == site]
        ages = [s.age for s in rows if s.age is not None]
        sites[site] = {
            "scans": len(rows),
            "subjects": len({s.subject for s in rows}),
            "age_range": [min(ages), max(ages)] if ages else None,
        }
    return {
        "n_scans": len(inputs.scans),
        "n_subjects": len({s.subject for s in inputs.scans}),
        "sites": sites,
        "age_range": [float(known.min()), float(known.max())] if known.size else None,
        "age_mean": float(known.mean()) if known.size else None,
        "age_sd": float(known.std()) if known.size else None,
    }
