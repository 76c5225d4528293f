"""The picture of a scan, judged by an independent PNG decoder and by a phantom of known sides."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hz_runtime.errors import GridMismatch, HzError
from hz_runtime.report.drawing import figure_data, histogram
from hz_runtime.report.figure import BINS, MAX_PIXELS, Figure
from hz_runtime.report.png import encode_png, png_size
from hz_runtime.report.row_picture import row_picture
from hz_runtime.report.strips import difference_colours
from small_pages import decode_png


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (31, 40), (6, 9, 3)])
def test_png_decodes_to_the_same_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(pixels)
    np.testing.assert_array_equal(decode_png(data), pixels)
    assert png_size(data) == (shape[1], shape[0])
    assert data == encode_png(pixels)


def test_png_with_palette():
    rng = np.random.default_rng(1)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    index = rng.integers(0, 256, (12, 17), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(index, palette)), palette[index])


def test_png_agrees_with_pillow():
    image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.random.default_rng(2).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    with image.open(io.BytesIO(encode_png(pixels))) as opened:
        np.testing.assert_array_equal(np.asarray(opened), pixels)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((3, 3)), np.zeros(3, np.uint8), np.zeros((0, 3), np.uint8), np.zeros((3, 3, 4), np.uint8)],
)
def test_png_refuses_other_arrays(bad):
    with pytest.raises(ValueError, match="PNG"):
        encode_png(bad)


def test_histogram_is_numpys():
    values = np.random.default_rng(3).random(5000, dtype=np.float32)
    expected, _ = np.histogram(values.astype(np.float64), bins=64, range=(0, 1))
    assert histogram(values) == tuple(expected)
    assert histogram(np.array([-1, 0, 1, 2], np.float32)) == (2, *[0] * 62, 2)
    assert sum(histogram(np.zeros(0, np.float32))) == 0


# A box of 0.5 with one bright mark on each of three sides: right, front, top.
SHAPE, SPACING = (60, 40, 36), (2.0, 4.0, 3.0)


def phantom(mark: str = "") -> np.ndarray:
    data = np.zeros(SHAPE, np.float32, order="F")
    data[6:54, 4:36, 4:32] = 0.5
    if mark == "right":
        data[44:54, 4:36, 4:32] = 1.0
    if mark == "front":
        data[6:54, 28:36, 4:32] = 1.0
    if mark == "top":
        data[6:54, 4:36, 25:32] = 1.0
    return data


def draw(raw, after, low=0.0, high=1.0, grid=None, grid_affine=None, before=None):
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-60, -80, -54)
    volume = SimpleNamespace(data=raw, affine=affine)
    grid = np.zeros((8, 8, 8), np.float32) if grid is None else grid
    before = grid if before is None else before
    grid_affine = affine if grid_affine is None else grid_affine
    prepared = SimpleNamespace(grid=before, grid_affine=grid_affine, low=low, high=high)
    return figure_data(volume, prepared, after, grid)


def tiles(png: bytes) -> list[np.ndarray]:
    """The three slices of a strip, without their letters: split where whole columns are black."""
    pixels = decode_png(png).astype(int)
    if pixels.ndim == 3:
        pixels = pixels.sum(2)
    tall = (pixels > 0).sum(0) > 10  # letters are 7 pixels high
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tall.astype(int), [0]])))
    cut = [pixels[:, a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [tile[(tile > 0).sum(1) > 10] for tile in cut]


@pytest.mark.parametrize(
    ("mark", "where"),
    [
        # per plane (sagittal, coronal, axial): the side of the picture that is brighter, or "" for none
        ("right", ("", "right", "right")),
        ("front", ("left", "", "top")),
        ("top", ("top", "top", "")),
    ],
)
def test_sides_of_the_phantom(mark, where):
    data = phantom(mark)
    data[25:35, 12:28, 11:25] = 0.05  # dark core: the window of the raw strip starts at it
    figure = draw(data, data)
    for tile, side in zip([*tiles(figure.before), *tiles(figure.after)], where * 2, strict=True):
        h, w = tile.shape
        means = {
            "left": tile[:, : w // 8].mean(),
            "right": tile[:, -(w // 8) :].mean(),
            "top": tile[: h // 8].mean(),
            "bottom": tile[-(h // 8) :].mean(),
        }
        brightest = max(means, key=means.get)
        if side:
            opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
            assert brightest == side
            assert means[side] > means[opposite] + 50
        else:
            assert max(means.values()) - min(means.values()) < 30


def test_pixels_are_square_millimetres():
    sizes = [tile.shape for tile in tiles(draw(phantom(), phantom()).after)]
    x, y, z = 48 * SPACING[0], 32 * SPACING[1], 28 * SPACING[2]
    pixel = y / sizes[0][1]
    expected = [(z, y), (z, x), (y, x)]
    for (h, w), (tall, wide) in zip(sizes, expected, strict=True):
        assert h * pixel == pytest.approx(tall, abs=4 * pixel)
        assert w * pixel == pytest.approx(wide, abs=4 * pixel)
    assert max(max(size) for size in sizes) <= MAX_PIXELS


def test_centre_in_world_mm():
    # Box 6..53, 4..35, 4..31: its middle voxel is (29.5, 19.5, 17.5), rounded to a slice.
    x, y, z = draw(phantom(), phantom()).centre_mm
    assert abs(x - (29.5 * 2 - 60)) <= 1.1
    assert abs(y - (19.5 * 4 - 80)) <= 2.1
    assert abs(z - (17.5 * 3 - 54)) <= 1.6


def test_numbers_and_colours_of_the_difference():
    raw = phantom() * 200  # brain at 100 of 0..200: 0.5 when scaled
    brighter, darker = phantom() * np.float32(1.5), phantom() * np.float32(0.5)
    up, down = draw(raw, brighter, high=200.0), draw(raw, darker, high=200.0)
    brain = int((raw > 0).sum())
    assert up.histogram_before[32] == up.histogram_after[48] == down.histogram_after[16] == brain
    assert up.mean_change == down.mean_change == 0.25
    assert up.space == "native"
    red, _, blue = np.median(decode_png(up.difference)[60:100, 30:100].reshape(-1, 3), axis=0)
    assert red > blue + 40
    red, _, blue = np.median(decode_png(down.difference)[60:100, 30:100].reshape(-1, 3), axis=0)
    assert blue > red + 40
    colours = difference_colours(3)
    assert colours[1] == "#f7f7f7" and len(set(colours)) == 3


def test_window_is_the_robust_range_of_the_brain():
    raw = phantom()
    inside = raw > 0
    raw[inside] = np.random.default_rng(4).uniform(100, 900, int(inside.sum())).astype(np.float32)
    raw[30, 20, 20] = 1e6
    after = np.where(inside, np.float32(0.3) + raw / np.float32(4e3), np.float32(0))
    figure = draw(raw, after, high=1000.0)
    np.testing.assert_allclose(figure.window, np.percentile(raw[inside], [1, 99.5]), rtol=1e-5)
    np.testing.assert_allclose(figure.window_after, np.percentile(after[inside], [1, 99.5]), rtol=1e-5)
    brains = [decode_png(side).astype(int) for side in (figure.before, figure.after)]
    apart = np.abs(brains[0] - brains[1])  # a straight line of the values changes no picture but its edges
    assert (apart > 4).mean() < 0.05 and np.median(brains[0][brains[0] > 0]) > 80
    flat = tiles(draw(raw, inside.astype(np.float32) * np.float32(0.5)).after)[0]
    assert 100 < np.median(flat) < 155  # neither black nor white


def test_model_grid_when_there_is_no_native_output():
    grid = np.zeros((16, 16, 16), np.float32)
    grid[4:12, 4:12, 4:12] = 0.5
    figure = draw(phantom(), None, grid=grid)
    assert figure.space == "model"
    assert sum(figure.histogram_after) == 8**3


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_a_mirrored_model_grid_is_drawn_as_the_same_volume_in_ras_order(axes):
    """Strips, small volumes and the row's picture; a grid that the scan's pose turns a little, too."""
    before, after = phantom("right") + phantom("front") + phantom("top"), phantom("right")
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    affine = turn @ np.diag([*SPACING, 1.0])
    mirror = np.eye(4)
    for axis in axes:
        mirror[axis, axis], mirror[axis, 3] = -1, SHAPE[axis] - 1
    straight = draw(after, None, grid=after, before=before, grid_affine=affine)
    stored = [np.flip(side, axes) for side in (after, before)]
    drawn = draw(after, None, grid=stored[0], before=stored[1], grid_affine=affine @ mirror)
    for name in ("before", "after", "difference", "small_before", "small_after", "centre_mm", "window"):
        assert getattr(drawn, name) == getattr(straight, name), name
    assert row_picture(drawn) == row_picture(straight) != b""


def test_json_round_trip_is_exact_and_small():
    rng = np.random.default_rng(5)
    after = phantom() * rng.uniform(0.5, 1.5, SHAPE).astype(np.float32)
    figure = draw(phantom(), after)
    data = figure.to_bytes()
    assert Figure.from_bytes(data) == figure
    assert Figure.from_bytes(data).to_bytes() == data == draw(phantom(), after).to_bytes()
    assert len(data) < 150_000
    assert len(figure.histogram_before) == BINS


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "other"},
        {"version": 1},
        {"small_after": "AAAA"},
        {"blocks_before": "AAAA"},
        {"before": "AAAA"},
        {"before": "<script>"},
        {"histogram_after": [1, 2]},
        {"histogram_after": [-1] * 64},
        {"centre_mm": [0, 0]},
        {"mean_change": "much"},
        {"space": "<b>"},
        {"window": None},
    ],
)
def test_damaged_figures_are_refused(damage):
    record = json.loads(draw(phantom(), phantom()).to_bytes())
    with pytest.raises(HzError, match="figure"):
        Figure.from_bytes(json.dumps({**record, **damage}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_figure_is_refused(data):
    with pytest.raises(HzError, match="figure"):
        Figure.from_bytes(data)


def test_empty_constant_and_nan_volumes_still_draw():
    empty = np.zeros(SHAPE, np.float32)
    assert sum(draw(empty, empty, high=0.0).histogram_after) == 0
    broken = phantom()
    broken[20:25] = np.nan
    figure = draw(phantom(), broken)
    assert sum(figure.histogram_after) == int((broken > 0).sum())
    thin = np.ones((3, 40, 1), np.float32)
    assert draw(thin, thin).size[1] >= 1


def test_shapes_must_agree():
    with pytest.raises(GridMismatch):
        draw(phantom(), phantom()[1:])


def test_flipped_views_are_read_as_they_are():
    data = phantom("right")
    flipped = np.asfortranarray(data[::-1])[::-1]
    assert draw(flipped, flipped) == draw(data, data)
