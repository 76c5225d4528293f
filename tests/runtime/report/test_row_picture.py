"""The small picture in a row of the table of scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hz_runtime.report.row_picture import HEIGHT, row_picture
from small_pages import decode_png, make_figure


@pytest.fixture(scope="module")
def figure():
    return make_figure()


def test_the_picture_of_a_row_is_the_axial_slice_on_both_sides():
    """A box that is brighter on the right, and a fifth brighter afterwards."""
    pixels = decode_png(row_picture(make_figure(tilt=0.4)))
    half = (pixels.shape[1] - 2) // 2
    before, after = pixels[:, :half].astype(float), pixels[:, half + 2 :].astype(float)
    assert pixels.shape[0] == HEIGHT and before.shape == after.shape
    middle = slice(HEIGHT // 2 - 5, HEIGHT // 2 + 5)
    for side in (before, after):
        columns = side[middle].mean(0)
        seen = np.flatnonzero(columns > 0.3 * columns.max())
        assert columns[seen[-8]] > columns[seen[8]] + 10
        assert (np.unique(side) % 8 == 0).all()


def test_a_damaged_small_volume_gives_no_picture_of_a_row(figure):
    for volume in (b"", b"\x1f\x8bnonsense", figure.small_after[:60]):
        assert row_picture(replace(figure, small_after=volume)) == b""


def test_the_picture_of_a_row_outlives_the_small_volumes(figure):
    picture = row_picture(figure)
    assert row_picture(replace(figure, small_before=b"", small_after=b"", row=picture)) == picture
