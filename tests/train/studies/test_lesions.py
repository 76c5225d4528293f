"""Planted lesions and atrophy: geometry, and what is measured of them after maps whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")
pytest.importorskip("scipy", reason="distances are scipy's")

from hz_train.studies import atrophy
from hz_train.studies.lesions import RADII_MM, Ball, measure, place, planted

SPACING = np.array([2.0, 2.0, 2.0])
SHAPE = (80, 70, 60)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def radius_mm() -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * 2 for n in SHAPE]
    return np.sqrt(sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")))


def head() -> tuple[np.ndarray, np.ndarray]:
    """(volume, white matter): a ball of 45 mm white in a rim of grey matter of 10 mm."""
    radius = radius_mm()
    volume = np.where(radius < 45, 1.0, np.where(radius < 55, 0.7, 0)).astype(np.float32)
    return volume, radius < 45


@pytest.mark.parametrize("radius", RADII_MM)
def test_balls_have_the_volume_of_balls(radius: float) -> None:
    ball = Ball.around((40, 35, 30), radius, SHAPE, SPACING)
    wanted = 4 / 3 * np.pi * radius**3
    assert float(ball.coverage.sum()) * 8 == pytest.approx(wanted, rel=0.01 if radius > 3 else 0.03)


def test_places_lie_in_white_matter_and_apart() -> None:
    _, white = head()
    balls = place(white, SPACING)
    assert [ball.radius for ball in balls] == list(RADII_MM)
    taken = np.zeros(SHAPE)
    for ball in balls:
        assert white[ball.box][ball.coverage > 0].all()
        taken[ball.box] += ball.coverage > 0
    assert taken.max() == 1
    assert place(np.zeros(SHAPE, bool), SPACING) == []


@pytest.mark.parametrize("kind, contrast", [("dark", -0.4), ("bright", 0.3)])
def test_what_was_planted_is_measured(kind: str, contrast: float) -> None:
    volume, white = head()
    balls = place(white, SPACING)
    made = planted(volume, balls, white, kind)
    assert made is not volume and (made != volume).any()
    for ball in balls:
        found = measure(made, volume, ball, white)
        assert found.contrast == pytest.approx(contrast, abs=1e-5)
        wanted, within = 4 / 3 * np.pi * ball.radius**3 / 1000, {10: 0.04, 6: 0.12, 3: 0.4}
        assert found.cm3 == pytest.approx(wanted, rel=within[ball.radius])  # voxels of 2 mm


def test_gain_and_offset_cost_no_volume_and_compression_costs_contrast() -> None:
    volume, white = head()
    (ball, *_) = balls = place(white, SPACING)
    made = planted(volume, balls, white, "dark")
    raw = measure(made, volume, ball, white)
    # As where the range of a scan moves with a lesion: all of it is darker by a constant.
    moved = measure(0.5 * made - 0.05, 0.5 * volume, ball, white)
    assert moved.cm3 == pytest.approx(raw.cm3, rel=1e-6)
    half = measure(1 + 0.5 * (made - 1), volume, ball, white)
    assert half.cm3 == pytest.approx(raw.cm3, rel=1e-6)
    assert half.contrast == pytest.approx(raw.contrast / 2, rel=1e-5)
    gone = measure(volume, volume, ball, white)
    assert (gone.cm3, gone.contrast) == (0, pytest.approx(0))


def test_a_lesion_that_is_filled_from_its_rim_has_lost_volume() -> None:
    volume, white = head()
    ball = place(white, SPACING)[0]
    made = planted(volume, [ball], white, "dark")
    smaller = Ball.around([s.start + n // 2 for s, n in zip(ball.box, ball.coverage.shape, strict=True)],
                          8.0, SHAPE, SPACING)  # fmt: skip
    eaten = planted(volume, [smaller], white, "dark")
    ratio = measure(eaten, volume, ball, white).cm3 / measure(made, volume, ball, white).cm3
    assert ratio == pytest.approx((8 / 10) ** 3, rel=0.06)


def test_atrophy_is_of_the_stated_size_and_leaves_the_outline() -> None:
    radius = radius_mm()
    smooth = (1 / (1 + np.exp((radius - 40) / 1.5))).astype(np.float32)  # tissue in fluid of 0.2
    data = (0.2 + 0.8 * smooth) * (radius < 52)
    first, second, outline = atrophy.atrophied(data.astype(np.float32), AFFINE, radius < 52, 0.2)
    tissue = [((v - 0.2) / 0.8)[outline].clip(0).sum() for v in (first, second)]
    assert 100 * (tissue[1] / tissue[0] - 1) == pytest.approx(atrophy.PLANTED, abs=0.12)
    inner = radius < 50
    assert second[inner].min() == pytest.approx(0.2, abs=1e-3)  # fluid, and no air, where the brain was
    grown = np.count_nonzero(outline) / np.count_nonzero(radius < 52)
    assert grown == pytest.approx(1.005**3, abs=0.02)  # half of the difference lies before, half behind


def test_drawing_together_about_a_point_leaves_the_point() -> None:
    radius = radius_mm()
    data = np.exp(-np.square(radius / 12)).astype(np.float32)
    centre = AFFINE[:3, :3] @ (np.array(SHAPE) - 1) / 2
    made = atrophy.scaled(data, AFFINE, centre, 0.9)
    np.testing.assert_allclose(made, np.exp(-np.square(radius / 10.8)), atol=0.03)
