"""The field of view: where the data end, and whether the brain was cut off there."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.preparation import gates
from hz_runtime.preparation.template import mni152
from hz_runtime.preparation.view import view_of
from small_heads import as_volume, made_head


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return made_head()


def coverage(data: np.ndarray, affine: np.ndarray) -> gates.Verdict:
    """The gate's verdict on a head that lies where the template does."""
    template = mni152()
    verdicts = gates.of_registration(as_volume(data, affine), np.eye(4), 0.6, template.data, template)
    return next(verdict for verdict in verdicts if verdict.gate == "coverage")


@pytest.mark.parametrize("value", [0.0, 700.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_padding_after_a_cut_is_no_view(axis: int, value: float, made) -> None:
    """Cut through the middle and filled up with one value: half of the template's brain was not seen."""
    head, _, affine = made
    size = head.shape[axis]
    at = size // 2
    cut = head.copy()
    cut[(slice(None),) * axis + (slice(at, None),)] = value
    view = view_of(cut, affine)
    assert view[axis] == slice(0, at)
    assert [view[k] for k in range(3) if k != axis] == [
        slice(0, n) for k, n in enumerate(head.shape) if k != axis
    ]
    found = coverage(cut, affine)
    assert 0.3 < found.value < 0.75
    assert not found.passed


def test_air_around_a_head_was_seen_whatever_its_value(made) -> None:
    head, brain, affine = made
    masked = np.where(head > 100, head, 0)  # its true air, blanked
    whole = tuple(slice(0, n) for n in head.shape)
    assert view_of(head, affine) == whole
    for data in (masked, np.where(brain, head, 0), np.where(brain, head, 0) + np.float32(500)):
        assert view_of(data, affine)[:2] == whole[:2]  # the neck is cut by the box itself
        assert coverage(data, affine).value == 1


def test_a_conformed_head_with_its_neck_cut_passes(made) -> None:
    head, _, affine = made
    padded = np.pad(np.where(head > 100, head, 0), ((0, 0), (0, 0), (30, 0)))
    lower = affine.copy()
    lower[2, 3] -= 60
    assert view_of(padded, lower)[2].start == 30
    assert coverage(padded, lower).passed
