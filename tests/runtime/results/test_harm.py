"""Flags by harm: every flag that hz makes has its place, and the worst comes first."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.batch import stages
from hz_runtime.bundle.age_calibration import AgeInterval, IntervalWidth, age_flags, known_age_flags
from hz_runtime.io.contrast_agent import contrast_flags
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space import recipe
from hz_runtime.model_space.anatomy import MEASURES, no_age_reasons
from hz_runtime.model_space.feature_distance import FeatureReference
from hz_runtime.model_space.missing import missing_flags
from hz_runtime.model_space.outliers import LEAST_SCANS, reference_of, score
from hz_runtime.results.harm import Harm, by_harm, harm_of, harm_of_scan, known_harm

RANGE = (19.0, 55.0)
NO_DIAGNOSIS = "the diagnosis network gave no number"


def header(affine: np.ndarray, **changed: object) -> list[str]:
    geometry = replace(Geometry.from_affine((20, 20, 20), affine), **changed)
    data = np.zeros((20, 20, 20), np.float32)
    return recipe.header_flags(Volume(data, affine, geometry, "", "int16"))


def holes() -> tuple[str, ...]:
    brain = np.ones((20, 20, 20), bool)
    missing = np.zeros_like(brain)
    missing[3, 3, 3] = True
    return missing_flags(missing, brain, np.eye(4))


def outliers() -> tuple[str, ...]:
    grids = np.random.default_rng(0).uniform(0.4, 0.6, (LEAST_SCANS, 64, 64, 64)).astype(np.float32)
    reference = reference_of(grids, [{"brain_cm3": 1200.0 + n} for n in range(LEAST_SCANS)])
    return score({"brain_cm3": 2000.0}, grids[0], reference).reasons


def interval() -> AgeInterval:
    return AgeInterval(0.9, 50, "", "", IntervalWidth(10.0, 0.9, (0.8, 0.95)), None)


FLAGS = [
    (Harm.NO_NUMBER, age_flags(None, RANGE)),
    (Harm.NO_NUMBER, [NO_DIAGNOSIS]),
    (Harm.NO_NUMBER, [r for name in MEASURES for r in no_age_reasons(
        {name: 9e9}, {name: {"min": 0.0, "max": 1.0, "sd": 0.1}})]),
    (Harm.NO_NUMBER, FeatureReference(np.zeros(2), np.eye(2), np.ones(2), 1.0, 3.0).no_age_reasons(4.0)),
    (Harm.AGE, age_flags(70.0, RANGE)),
    (Harm.AGE, known_age_flags(82.0, 40.0, (30.0, 50.0), RANGE)),
    (Harm.AGE, known_age_flags(25.0, 40.0, (30.0, 50.0), RANGE)),
    (Harm.SCAN, holes()),
    (Harm.SCAN, recipe._placement_flags({"coverage": 0.9})),
    (Harm.SCAN, header(np.eye(4), sform_code=0, qform_code=0)),
    (Harm.SCAN, header(np.eye(4), guessed=True)),
    (Harm.SCAN, header(np.diag([1.0, 1.0, 5.0, 1.0]))),
    (Harm.SCAN, header(np.eye(4), pixdim=(2.0, 2.0, 2.0))),
    (Harm.SCAN, recipe.unregistered_flags(recipe.Recipe(dof=12))),
    (Harm.SCAN, contrast_flags(Path("sub-01_ce-gd_T1w.nii"))),
    (Harm.SHIFT, recipe.outside(dict.fromkeys((*recipe.WORDS, "centre_x"), 9000000000.0), {
        n: {"min": 0.0, "max": 1.0, "sd": 0.1} for n in (*recipe.WORDS, "centre_x")})),
    (Harm.SHIFT, outliers()),
    (Harm.CAVEAT, interval().caveat(["a flag"])),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "flags"), FLAGS)
def test_every_flag_that_is_made_has_a_place(harm: Harm, flags: list[str]) -> None:
    assert flags
    assert [known_harm(flag) for flag in flags] == [harm] * len(flags)


def test_the_diagnosis_flag_is_the_one_that_is_made() -> None:
    assert f'"{NO_DIAGNOSIS}"' in inspect.getsource(stages.Stages._flags)


def test_the_worst_comes_first_and_the_caveat_is_no_reason() -> None:
    flags = [flag for _, made in reversed(FLAGS) for flag in made]
    found = by_harm(flags)
    assert [harm_of(flag) for flag in found] == sorted(harm_of(flag) for flag in found)
    assert len(found) == len(flags) - 1 and not any("interval was not made" in flag for flag in found)
    equal = ["b of another version", "its header is old"]
    assert by_harm(equal) == equal


@pytest.mark.parametrize(
    ("scan", "harm"),
    [
        ({"status": "ok"}, None),
        ({"status": "failed"}, Harm.FAILED),
        ({"status": "flagged", "flags": ["known age 80 is outside"]}, Harm.AGE),
        ({"status": "skipped", "recorded": "flagged", "flags": ["slices of 5 mm", "no age: much fluid"]},
         Harm.NO_NUMBER),
        ({"status": "skipped", "recorded": "ok"}, None),
        ({"status": "flagged", "flags": 3}, Harm.SHIFT),
    ],
)  # fmt: skip
def test_a_scan_is_as_bad_as_its_worst_flag(scan: dict[str, object], harm: Harm | None) -> None:
    assert harm_of_scan(scan) == harm
