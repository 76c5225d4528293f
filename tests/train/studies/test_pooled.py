"""Pooled training with a harmonizer that undoes the site exactly, both ways; tables 2 and 3 by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw figures")

from hz_runtime.errors import UsageError
from hz_train.cohort import Cohort, Scan
from hz_train.datasets import ModelInputs
from hz_train.studies import pooled as pooled_module
from hz_train.studies.baselines import Raw
from hz_train.studies.method import CycleGAN
from hz_train.studies.pooled import check, pooled
from hz_train.studies.predictors import Fitted, Predictors, ridge
from hz_train.studies.presets import StudySettings, study_preset, whom
from hz_train.studies.result import Row, StudyResult

F32 = NDArray[np.float32]
SHIFT = np.float32(0.25)


class Exact(CycleGAN):
    """Knows that the other sites are darker by SHIFT."""

    def fit(self, training: ModelInputs, reference: str) -> None:
        self.reference, self.seen = reference, whom(training)

    def apply(self, volumes: F32, sites: Sequence[str]) -> F32:
        moved = np.array([site != self.reference for site in sites])
        return volumes + SHIFT * moved[:, None, None, None].astype(np.float32)

    def reverse(self, volumes: F32, site: str) -> F32:
        return volumes - SHIFT


def inputs() -> ModelInputs:
    """Ages show as brightness, and so does the site: oslo is brighter, and its people older."""
    scans, grids = [], []
    for k, site in enumerate(("oslo", "rome", "bonn")):
        for i in range(10):
            age = 30.0 + 3 * i + (10 if site == "oslo" else 0)
            level = 0.3 + 0.005 * age + (SHIFT if site == "oslo" else 0)
            noise = np.random.default_rng([k, i]).normal(0, 0.002, (16, 16, 16))
            scans.append(Scan(Path(f"{site}{i}.nii"), f"{site}{i}", site, age, "n/a", "control"))
            grids.append((level + noise).astype(np.float32))
    return ModelInputs(
        tuple(scans), np.stack(grids), ({},) * len(scans), tuple(s.subject + "#" for s in scans)
    )


class Fast(Predictors):
    """Ridge on the mean of all voxels, in place of a network."""

    def fit(self, volumes: F32, training: ModelInputs, targets: F32, features: bool = False) -> Fitted:
        predict = ridge(_means(volumes), targets.astype(float))
        return Fitted("ridge", lambda made: predict(_means(made)), whom(training))


def _means(volumes: F32) -> F32:
    return volumes.mean((1, 2, 3), dtype=np.float64)[:, None]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    out = tmp_path_factory.mktemp("pooled")
    settings = StudySettings("oslo", study_preset("quick", "volume"), Path("t.tsv"), out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled_module, "methods", lambda s, seed: [Raw(), Exact(s, seed, "pairs")])
        patch.setattr(pooled_module, "Predictors", Fast)
        return pooled(inputs(), settings)


def row(result: StudyResult, table: int, method: str, site: str, target: str) -> Row:
    (found,) = [
        r
        for r in result.tables[table].rows
        if r.method.endswith(method) and r.site == site and r.columns["target"] == target
    ]
    return found


def test_harmonized_beats_the_baseline_in_both_directions(result: StudyResult) -> None:
    for target in ("rome", "bonn"):
        both = f"oslo + {target}"
        baseline = row(result, 0, "raw", both, target).metrics["mae"].value
        assert baseline > 2
        for direction in ("to source", "to target"):
            found = row(result, 0, direction, both, target).metrics
            assert found["mae"].value < 0.5
            assert found["change"].value == pytest.approx(found["mae"].value - baseline)


def test_table_2_is_that_of_the_predictions(result: StudyResult) -> None:
    # 30 % of each site's 10 subjects.
    assert row(result, 0, "raw", "oslo + rome", "rome").n == 6
    for method in ("raw", "to source", "to target"):
        those = [
            p
            for p in result.predictions
            if p.method.endswith(method) and p.columns["target"] == "rome" and "scans" not in p.columns
        ]
        assert {p.site for p in those} == {"oslo", "rome"}
        for site, sites in (("oslo + rome", ("oslo", "rome")), ("rome", ("rome",))):
            gap = np.array([p.predicted - p.truth for p in those if p.site in sites])
            found = row(result, 0, method, site, "rome")
            assert found.n == len(gap)
            assert found.metrics["mae"].value == pytest.approx(np.abs(gap).mean())
            assert found.metrics["mse"].value == pytest.approx((gap**2).mean())


def test_table_3_scores_the_side_that_is_harmonized_before_and_after(result: StudyResult) -> None:
    for method, site in (("to source", "rome"), ("to target", "oslo")):
        found = row(result, 1, method, site, "rome").metrics
        before = [
            abs(p.predicted - p.truth)
            for p in result.predictions
            if p.method.endswith(method) and p.columns.get("scans") and p.columns["target"] == "rome"
        ]
        assert len(before) == 3
        assert found["before"].value == pytest.approx(np.mean(before))
        # A shift of 0.25 at 0.005 a year.
        assert found["before"].value == pytest.approx(50, abs=2)
        assert found["after"].value < 0.5
        assert found["change"].value == pytest.approx(found["after"].value - found["before"].value)
    sides = {(r.columns["target"], r.site, r.method[-9:]) for r in result.tables[1].rows}
    assert sides == {
        (t, s, d) for t in ("rome", "bonn") for s, d in ((t, "to source"), ("oslo", "to target"))
    }


def test_a_checkpoint_has_one_direction_only(tmp_path: Path) -> None:
    settings = StudySettings(
        "oslo",
        study_preset("quick", "volume"),
        Path("t.tsv"),
        tmp_path,
        harmonizer=tmp_path / "h.safetensors",
    )
    with pytest.raises(UsageError, match="both directions"):
        check(Cohort(inputs().scans), settings)
