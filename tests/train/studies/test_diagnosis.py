"""Diagnosis: which splits are made, AUCs by counting pairs of the stored predictions, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw figures")

import torch

from hz_runtime.errors import UsageError
from hz_train.cohort import Cohort, Scan
from hz_train.datasets import ModelInputs
from hz_train.fit import Run, Schedule
from hz_train.studies import diagnosis as diagnosis_module
from hz_train.studies.baselines import Blocks, ComBat
from hz_train.studies.diagnosis import LEFT, check, diagnosis, splits
from hz_train.studies.predictors import DiagnosisTask
from hz_train.studies.presets import StudySettings, study_preset
from hz_train.studies.result import StudyResult

SITES = ("bonn", "oslo", "rome")


def inputs(sites: tuple[str, ...] = SITES, groups: tuple[str, ...] = ("patient", "control")) -> ModelInputs:
    """16^3 volumes; patients have a brighter half; each site has its own level."""
    scans, grids = [], []
    for k, site in enumerate(sites):
        rng = np.random.default_rng(k)
        for i in range(24):
            group = groups[i % len(groups)]
            volume = 0.5 + 0.02 * rng.random((16, 16, 16))
            volume += 0.1 * k
            volume[:8] += 0.05 * (group == "patient") + rng.normal(0, 0.01)
            scans.append(Scan(Path(f"{site}{i}.nii"), f"{site}{i}", site, None, "n/a", group))
            grids.append(volume.astype(np.float32))
    return ModelInputs(
        tuple(scans), np.stack(grids), ({},) * len(scans), tuple(s.subject + "#" for s in scans)
    )


def settings(out: Path, **changes: object) -> StudySettings:
    given = {
        "reference": "oslo",
        "preset": study_preset("quick", "volume"),
        "table": Path("t.tsv"),
        "out": out,
    }
    return StudySettings(**{**given, **changes})  # type: ignore[arg-type]


def run(cohort: ModelInputs, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> StudyResult:
    monkeypatch.setattr(diagnosis_module, "methods", lambda *_: [Blocks(), ComBat()])
    return diagnosis(cohort, settings(out, **changes))


def test_every_single_site_and_every_pair_trains() -> None:
    assert splits(SITES) == [
        *(("bonn",), ("oslo",), ("rome",)),
        *(("bonn", "oslo"), ("bonn", "rome"), ("oslo", "rome")),
    ]
    assert splits(("a", "b")) == [("a",), ("b",)]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyResult]:
    with pytest.MonkeyPatch.context() as patch:
        yield run(inputs(), tmp_path_factory.mktemp("diagnosis"), patch)


def test_areas_are_those_of_the_predictions(result: StudyResult) -> None:
    rows = result.tables[0].rows
    places = {(r.columns["trained on"], r.site) for r in rows}
    assert places == {
        *((one, LEFT) for one in SITES),
        *((one, two) for one in SITES for two in SITES if one != two),
        *(("bonn + oslo", "rome"), ("bonn + rome", "oslo"), ("oslo + rome", "bonn")),
    }
    for row in rows:
        chosen = row.columns["trained on"].split(" + ")
        wanted = set(SITES) - set(chosen) if row.site == LEFT else {row.site}
        those = [
            p
            for p in result.predictions
            if p.method == row.method
            and p.columns["trained on"] == row.columns["trained on"]
            and p.site in wanted
        ]
        assert not {p.site for p in those} & set(chosen)
        high = [p.predicted for p in those if p.truth == 1]
        low = [p.predicted for p in those if p.truth == 0]
        # 30 % of each site's 12 patients and 12 controls.
        assert len(high) == len(low) == 4 * len(wanted)
        area = np.mean([1.0 if h > n else 0.5 if h == n else 0.0 for h in high for n in low])
        assert row.metrics["auc"].value == pytest.approx(area)
        assert row.n == len(those)


def test_patients_are_the_positive_label(result: StudyResult) -> None:
    assert result.settings["labels"] == ["control", "patient"]
    positive = {p.subject for p in result.predictions if p.truth == 1}
    assert positive <= {s.subject for s in inputs().scans if s.group == "patient"}
    areas = [r.metrics["auc"].value for r in result.tables[0].rows if r.method == ComBat.name]
    assert np.mean(areas) > 0.85


def test_a_reference_without_patients_is_mapped_to_but_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = inputs()
    scans = tuple(
        Scan(s.path, s.subject, s.site, s.age, s.sex, "control" if s.site == "oslo" else s.group)
        for s in cohort.scans
    )
    cohort = ModelInputs(scans, cohort.grids, cohort.features, cohort.sha256)
    result = run(cohort, tmp_path, monkeypatch)
    assert {r.columns["trained on"] for r in result.tables[0].rows} == {"bonn", "rome"}
    assert {p.site for p in result.predictions} == {"bonn", "rome"}


@pytest.mark.parametrize(
    "groups, labels, message",
    [
        (("a", "b", "c"), None, "3 values here: a, b, c"),
        (("control",), None, "1 values here: control"),
        (("a", "b", "c"), ("a", "d"), "no scan is of group 'd'; the cohort has a, b, c"),
        (("a", "b"), ("a", "a"), "'a' is named twice"),
    ],
)
def test_groups_that_are_no_diagnosis(
    groups: tuple[str, ...], labels: tuple[str, str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        check(Cohort(inputs(groups=groups).scans), settings(tmp_path, labels=labels))


def test_two_of_three_labels_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = inputs(groups=("patient", "control", "carrier"))
    check(Cohort(cohort.scans), settings(tmp_path, labels=("control", "carrier")))
    result = run(cohort, tmp_path, monkeypatch, labels=("control", "carrier"))
    groups = {s.subject: s.group for s in cohort.scans}
    assert {groups[p.subject] for p in result.predictions} == {"control", "carrier"}


def test_patients_at_one_site_only(tmp_path: Path) -> None:
    scans = [
        Scan(s.path, s.subject, s.site, s.age, s.sex, s.group if s.site == "rome" else "control")
        for s in inputs().scans
    ]
    with pytest.raises(UsageError, match=r"fewer than two sites .*rome 12 and 12"):
        check(Cohort(tuple(scans)), settings(tmp_path))


def test_the_volume_classifier_learns_a_label_and_answers_probabilities() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(12) % 2).astype(np.float32)
    volumes = (0.3 + 0.4 * labels[:, None, None, None] + 0.05 * rng.random((12, 16, 16, 16))).astype(
        np.float32
    )
    schedule = Schedule(epochs=1, batch=6, lr=1e-2, milestones=(), betas=(0.9, 0.999))
    run = Run(schedule, torch.device("cpu"))
    task = DiagnosisTask(
        volumes, labels, volumes[:0], labels[:0], study_preset("quick", "volume").settings, run
    )
    for epoch in range(8):
        for index in range(task.steps(epoch)):
            task.step(epoch, [run.put(array) for array in task.arrays(epoch, index)], run)
    task.settle()
    said = task.predict(volumes)
    assert ((said > 0) & (said < 1)).all()
    assert said[labels == 1].min() > said[labels == 0].max()
