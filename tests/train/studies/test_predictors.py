"""Predictors: who decides when training ends, and trainings that are not mistaken for one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")

from hz_train.age_task import AgeSettings
from hz_train.cohort import Scan
from hz_train.datasets import ModelInputs
from hz_train.studies.predictors import Predictors
from hz_train.studies.presets import StudySettings, study_preset


def inputs(n: int, patients: int) -> ModelInputs:
    """n scans of noise, 32^3, of as many subjects at one site; the first ones are patients."""
    groups = ["patient"] * patients + ["control"] * (n - patients)
    scans = tuple(Scan(Path(f"{i}"), f"s{i}", "oslo", 20.0 + i, "n/a", g) for i, g in enumerate(groups))
    grids = np.random.default_rng(0).random((n, 32, 32, 32)).astype(np.float32)
    return ModelInputs(scans, grids, ({},) * n, tuple(f"sha{i}" for i in range(n)))


def predictors(out: Path, system: str, task: str = "age", epochs: int = 1) -> Predictors:
    preset = study_preset("quick", system)
    preset = replace(preset, predictor=replace(preset.predictor, epochs=epochs))
    return Predictors(StudySettings("oslo", preset, Path("t.tsv"), out, system=system), 0, task)


def test_a_shorter_training_is_not_answered_with_a_longer_one(tmp_path: Path) -> None:
    """A report that says one epoch must not show what two have learned."""
    cohort = inputs(6, 0)
    grids = cohort.grids[:, ::2, ::2, ::2]
    said = {
        (folder, epochs): predictors(tmp_path / folder, "volume", epochs=epochs)
        .fit(grids, cohort, cohort.ages)
        .predict(grids)
        for folder, epochs in (("shared", 2), ("shared", 1), ("fresh", 1))
    }
    np.testing.assert_array_equal(said["shared", 1], said["fresh", 1])
    assert not np.array_equal(said["shared", 1], said["shared", 2])


def test_the_ensemble_answers_the_mean_of_a_network_and_a_ridge(tmp_path: Path) -> None:
    cohort = inputs(8, 0)
    preset = replace(
        study_preset("quick", "volume"), settings=AgeSettings(width=2, form="ensemble", averaging=0.5)
    )
    fitted = Predictors(StudySettings("oslo", preset, Path("t.tsv"), tmp_path), 0).fit(
        cohort.grids, cohort, cohort.ages
    )
    assert fitted.name == "3D CNN and ridge"
    # A network of two steps answers near the mean age; the ridge alone can tell 8 volumes of noise apart.
    assert np.corrcoef(fitted.predict(cohort.grids), cohort.ages)[0, 1] > 0.5


@pytest.mark.parametrize("patients", [3, 5, 10])
def test_both_labels_decide_when_a_diagnosis_is_learned(tmp_path: Path, patients: int) -> None:
    cohort = inputs(20, patients)
    labels = np.array([s.group == "patient" for s in cohort.scans], np.float32)
    aside = predictors(tmp_path, "slice", "diagnosis")._aside(cohort, labels)
    assert labels[aside].sum() == max(1, round(0.2 * patients))
    assert (1 - labels[aside]).sum() == round(0.2 * (20 - patients))


def test_too_few_to_spare(tmp_path: Path) -> None:
    cohort = inputs(20, 2)
    labels = np.array([s.group == "patient" for s in cohort.scans], np.float32)
    assert not predictors(tmp_path, "slice", "diagnosis")._aside(cohort, labels).any()
    ages = predictors(tmp_path, "slice")._aside(cohort, cohort.ages)
    assert ages.sum() == 4
