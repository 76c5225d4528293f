"""Heads with large ventricles and much fluid: judged by their folds, and found where registration is lost."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.morphology import dilated, eroded
from hz_runtime.model_space.resample import resample
from hz_runtime.preparation import gates, registration
from hz_runtime.preparation.folds import around_ventricles, folds
from hz_runtime.preparation.search import coarse_values, fine_values, pose_of
from hz_runtime.preparation.steps import prepare_head
from hz_runtime.preparation.template import mni152, points
from small_heads import SHAPE, as_volume, fruit, grid, made_head, moved

FLUID = 0.15
VENTRICLES = (4, 49, 50, 51, 52)  # labels of ixi_hh/labels.tsv
INTO = (35, 36, 37, 47, 48, 57, 58, 59, 60, *range(81, 96))  # deep grey and white matter


def with_large_ventricles() -> np.ndarray:
    """The template with a blurred cortex, as one person's in an affine pose is, and fluid around its core."""
    template = mni152()
    data = (template.data + np.roll(template.data, 3, 0) + np.roll(template.data, -3, 1)) / 3
    return np.asarray(np.where(around_ventricles(template), FLUID, data) * template.mask, np.float32)


def old_head(move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(head (I, J, K), affine): a brain 0.88 times as large in its skull, in fluid, under thick scalp."""
    template, affine = mni152(), grid()
    inside = resample(template.mask.astype(np.float32), move @ template.affine, SHAPE, affine) > 0.5
    onto = (np.linalg.inv(brain_pose(move)) @ template.affine, SHAPE, affine)
    brain = resample(with_large_ventricles(), *onto)
    drawn = resample(template.mask.astype(np.float32), *onto) > 0.5
    skull = dilated(inside, 3)
    scalp = dilated(skull, 6)
    head = np.where(scalp & ~skull, 0.9, 0.05) * scalp
    head = np.where(inside, FLUID, head)
    head = np.where(drawn, brain, head)
    noise = np.random.default_rng(0).normal(0, 0.02, (2, *SHAPE))
    return np.asarray(1000 * np.hypot(head + noise[0], noise[1]), np.float32), affine


def objects() -> dict[str, Callable[[], np.ndarray]]:
    """What is no brain, in template space, each with the template's outline."""
    template = mni152()
    rng = np.random.default_rng(1)
    shape = template.mask.shape
    coarse = np.kron(rng.normal(0, 1, [n // 6 + 1 for n in shape]), np.ones((6, 6, 6)))
    flesh = 600 + 120 * coarse[: shape[0], : shape[1], : shape[2]]
    soft = resample(template.mask.astype(np.float32), template.affine, shape, template.affine)
    return {
        "one material": lambda: soft + rng.normal(0, 0.02, shape),
        "flesh": lambda: np.where(template.mask, flesh, 0),
        "fruit": lambda: resample(fruit()[0], fruit()[1], shape, template.affine),
        "opposite contrast": lambda: np.where(template.mask, 1.2 - template.data, 0),
        "another place": lambda: np.roll(template.data, (8, 8, 8), (0, 1, 2)),
    }


@pytest.mark.parametrize("name", objects())
def test_what_is_no_brain_has_no_folds(name: str) -> None:
    seen = np.asarray(objects()[name](), np.float32)
    assert folds(seen, mni152()) < 0.6 * gates.LEAST_FOLDS
    # Similar by its outline alone, it is no brain for that.
    scan = as_volume(np.ones((100, 120, 110)), grid())
    verdicts = gates.of_registration(scan, np.eye(4), 0.42, seen, mni152())
    assert "folds" in {verdict.gate for verdict in verdicts if not verdict.passed}


def test_large_ventricles_spoil_similarity_and_not_folds() -> None:
    template, seen = mni152(), with_large_ventricles()
    found = registration.similarity(seen, template)
    assert gates.SPOILED_SIMILARITY < found < gates.LEAST_SIMILARITY
    assert folds(seen, template) > 2 * gates.LEAST_FOLDS
    scan = as_volume(np.ones((100, 120, 110)), grid())
    verdicts = gates.of_registration(scan, np.eye(4), found, seen, template)
    assert {"similarity", "folds", "contrast"} <= {v.gate for v in verdicts if v.passed}


def test_a_good_head_is_not_asked_for_its_folds() -> None:
    template = mni152()
    verdicts = gates.of_registration(
        as_volume(made_head()[0], grid()), np.eye(4), 0.5, template.data, template
    )
    assert [v.gate for v in verdicts] == ["similarity", "size", "coverage", "contrast"]
    assert verdicts[0].low == gates.LEAST_SIMILARITY


def brain_pose(move: np.ndarray) -> np.ndarray:
    """(4, 4): from the world of `old_head` to the template's."""
    small = np.diag([0.88, 0.88, 0.88, 1.0])
    small[:3, 3] = 0.12 * mni152().centre_mm
    return np.asarray(np.linalg.inv(move @ small))


@pytest.mark.parametrize(("degrees", "away"), [((14, 6, -10), (0, 0, 0)), ((-15, 0, 8), (-60, 70, 40))])
def test_the_search_finds_the_brain_and_not_the_skull(
    degrees: tuple[float, ...], away: tuple[float, ...]
) -> None:
    template, shift = mni152(), np.eye(4)
    shift[:3, 3] = away
    head, affine = old_head(moved(degrees, (5, -6, 4)))
    affine, truth = shift @ affine, brain_pose(shift @ moved(degrees, (5, -6, 4)))
    start = registration.placed(head, affine, template)
    values = coarse_values(head, affine, start, template)
    pose = pose_of(fine_values(head, affine, start, template, values), start, template)
    world = points(template.mask, np.linalg.inv(truth) @ template.affine)
    assert registration.mean_distance(pose, truth, world) < 4


def test_a_lost_registration_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refinement does not reach the brain from the coarse search, and niimath fits the scalp to its outline:
    the head is found all the same."""
    monkeypatch.setattr(registration, "FROM_COARSE_MM", 0.0)
    template = mni152()
    move = moved((8, 0, 5), (5, -5, 5))
    head, affine = old_head(move)
    lost = np.diag([0.9, 0.9, 0.9, 1.0])
    monkeypatch.setattr(registration, "affine_pose", lambda *_: lost)
    pose, found, *_ = registration.registered(head, affine, template)
    there, seen = (resample(head, way @ affine, template.mask.shape, template.affine) for way in (lost, pose))
    assert registration.similarity(there, template) < gates.LEAST_SIMILARITY
    assert found == registration.similarity(seen, template)
    assert folds(there, template) < gates.LEAST_FOLDS < folds(seen, template)
    world = points(template.mask, np.linalg.inv(brain_pose(move)) @ template.affine)
    assert registration.mean_distance(pose, brain_pose(move), world) < 4


@pytest.mark.slow
@pytest.mark.parametrize("times", [3.5, 6.0])
def test_a_real_head_with_grown_ventricles_is_prepared(times: float, scans: Path) -> None:
    pytest.importorskip("niimath")
    folder = scans / "ixi_hh"
    with (folder / "participants.tsv").open(newline="") as file:
        (row,) = (r for r in csv.DictReader(file, delimiter="\t") if r["participant_id"] == "IXI518")
    scan, labels = read_volume(folder / row["file"]), read_volume(folder / row["labels"]).data
    ventricles, into = np.isin(labels, VENTRICLES), np.isin(labels, VENTRICLES + INTO)
    fluid = float(np.median(scan.data[eroded(np.isin(labels, VENTRICLES[3:]), 1)]))
    grown = ventricles
    while grown.sum() < times * ventricles.sum():
        grown = dilated(grown, 1) & into
    noise = np.random.default_rng(0).normal(0, 3, scan.shape)
    head = prepare_head(
        as_volume(np.where(grown, fluid + noise, scan.data), scan.affine), mni152(), brain_mask="template"
    )
    brain = dilated(labels > 0, 3)
    brain = eroded(brain, 3)
    assert 2 * (head.mask & brain).sum() / (head.mask.sum() + brain.sum()) > 0.93
