"""Held-out predictions of ages: which subjects each network saw travels with them, under pseudonyms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from hz_train import age_training
from hz_train.cohort import Cohort, Scan, pseudonym

SCANS = tuple(
    Scan(Path(f"{k}.nii"), subject=f"sub-{k // 2}", site="oslo", age=30.0 + k, sex="F", group="control")
    for k in range(16)  # two scans of each of eight subjects
)


@dataclass(frozen=True)
class Inputs:
    """A cohort in model space without its volumes' contents."""

    scans: tuple[Scan, ...]

    @property
    def grids(self) -> np.ndarray:
        return np.zeros((len(self.scans), 2, 2, 2), np.float32)

    @property
    def ages(self) -> list[float]:
        return [float(scan.age or 0) for scan in self.scans]

    def of(self, cohort: Cohort) -> Inputs:
        return Inputs(tuple(scan for scan in self.scans if scan in cohort.scans))


@pytest.mark.parametrize(("folds", "networks"), [(4, 4), (0, 1)])
def test_every_fold_says_whom_it_predicted_and_whom_it_saw(
    monkeypatch: pytest.MonkeyPatch, folds: int, networks: int
) -> None:
    fitted: list[Any] = []

    def features(grids: np.ndarray) -> np.ndarray:
        return np.arange(4.0 * len(grids)).reshape(-1, 4) ** 2 % 7

    def fit(training: Inputs, *_: object) -> Any:
        fitted.append(training)
        return SimpleNamespace(predict=lambda grids: np.zeros(len(grids)), features=features)

    monkeypatch.setattr(age_training, "_fit_one", fit)
    preset: Any = SimpleNamespace(folds=folds, held_out=0.3, schedule=SimpleNamespace(seed=1))
    (_, _, subjects, kept), distances, _ = age_training._held_out_predictions(
        Cohort(SCANS), Inputs(SCANS), preset, None, Path("out"), {}  # type: ignore[arg-type]
    )  # fmt: skip
    assert len(kept) == networks
    for fold, training in zip(kept, fitted, strict=True):
        assert set(fold["subjects"]).isdisjoint(fold["trained_on"])
        assert len(fold["trained_on"]) == len({scan.subject for scan in training.scans})
    assert sum(len(fold["subjects"]) for fold in kept) == len(set(subjects))
    assert "sub-" not in str(kept)
    assert len(distances) == len(subjects) and np.isfinite(distances).all()
    predicted = {pseudonym(subject) for subject in subjects}  # as the checkpoint names them beside the ages
    assert predicted == {name for fold in kept for name in fold["subjects"]}
