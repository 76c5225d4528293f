"""Pictures: drawn without warnings, the same twice, and showing what they were given."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw with matplotlib")

from matplotlib import image

from hz_train.studies import figures
from hz_train.studies.result import Metric, Row

NAMES = ["bonn", "oslo"]
SITES = ["bonn"] * 4 + ["oslo"] * 4


def pixels(figure):
    return image.imread(io.BytesIO(figure.data), format="png")[..., :3]


def coloured(picture, hexadecimal, tolerance=0.04):
    wanted = np.array([int(hexadecimal[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return int((np.abs(picture - wanted) < tolerance).all(axis=-1).sum())


def test_histograms_leave_out_what_is_missing_and_repeat():
    shares = np.random.default_rng(0).dirichlet(np.ones(50), 8)
    shares[0] = np.nan
    given = {"raw": [shares] * 2, "3D CycleGAN, many to one": [shares] * 2}
    first = figures.histograms(given, ("CSF", "grey matter"), SITES, NAMES, "oslo")
    assert first.data == figures.histograms(given, ("CSF", "grey matter"), SITES, NAMES, "oslo").data


@pytest.mark.parametrize("mirrored", [(), (0, 1)])
def test_maps_are_upright(mirrored):
    """Anterior up and the subject's right on the right, also of mirrored grids: a bright corner."""
    brain = np.ones((16, 20, 8), bool)
    sd = np.zeros((2, 16, 20, 8), np.float32)
    sd[:, 12:, 16:, :] = 1  # right, anterior
    stored = np.flip(sd, [1 + axis for axis in mirrored])
    picture = pixels(figures.maps({"raw": (np.ones_like(sd), stored)}, NAMES, brain, "oslo", mirrored))
    top = picture[: picture.shape[0] // 2]  # the first site's row
    low, high = np.array([0.0015, 0.0005, 0.0139]), np.array([0.988, 0.998, 0.645])  # both ends of inferno
    panel = [np.nonzero((np.abs(top - c) < 0.006).all(axis=-1)) for c in (low, high)]
    (rows, columns), (bright_rows, bright_columns) = panel
    assert bright_rows.size > 100
    assert bright_rows.mean() < rows.min() + 0.3 * np.ptp(rows)
    assert bright_columns.mean() > columns.min() + 0.7 * np.ptp(columns)


def test_embeddings_colour_every_site():
    points = np.random.default_rng(1).standard_normal((8, 2))
    picture = pixels(figures.embeddings({"raw": points}, SITES, NAMES, "oslo", 0))
    from hz_train.studies.charts import site_colours

    assert all(coloured(picture, c, 0.25) > 30 for c in site_colours(NAMES).values())


def test_accuracies_mark_chance_and_skip_what_is_not_there():
    rows = [
        Row("raw", "all sites", {"a": Metric(0.9, (0.8, 1.0)), "b": Metric(0.5, (0.4, 0.6))}, 10, 0),
        Row("ComBat", "all sites", {"b": Metric(0.4)}, 10, 0),
        Row("none", "all sites", {}),
    ]
    found = figures.accuracies(rows, {"a": "A", "b": "B"}, 0.5, {"a": "#0b66c3", "b": "#d1660b"})
    assert found is not None and coloured(pixels(found), "#0b66c3") and coloured(pixels(found), "#d1660b")
    assert figures.accuracies(rows[2:], {"a": "A"}, 0.5, {"a": "#0b66c3"}) is None


def test_examples_outline_white_matter():
    volumes = np.zeros((2, 16, 20, 8), np.float32)
    white = np.zeros(volumes.shape, bool)
    white[:, 5:10, 5:14] = True
    found = figures.examples({"raw": volumes, "Nyul": volumes}, NAMES, white, np.ones((16, 20, 8), bool))
    assert coloured(pixels(found), "#e8a13a", 0.15) > 50
    plain = figures.examples({"raw": volumes}, NAMES, white & False, np.ones((16, 20, 8), bool))
    assert coloured(pixels(plain), "#e8a13a", 0.15) == 0
    sides = [
        {"raw": np.flip(white, 1).astype(np.float32)},
        NAMES,
        np.flip(white, 1),
        np.ones((16, 20, 8), bool),
    ]
    straight = figures.examples({"raw": white.astype(np.float32)}, NAMES, white, sides[3])
    assert figures.examples(*sides, (0,)).data == straight.data != figures.examples(*sides).data
