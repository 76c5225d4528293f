"""Things that are not whole T1-weighted heads, through hz-prepare: each refused for what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from processes import finished
from small_heads import SHAPE, grid, made_head, write_head

pytest.importorskip("niimath")


def ellipsoid(x: float, y: float, z: float) -> np.ndarray:
    """(I, J, K): distance from the middle of a head, 1 on the ellipsoid of these half axes in mm."""
    affine = grid()
    at = affine[:3, :3] @ np.indices(SHAPE).reshape(3, -1) + affine[:3, 3:] - [[0.0], [-18.0], [8.0]]
    return np.asarray(np.linalg.norm(at / np.array([[x], [y], [z]]), axis=0).reshape(SHAPE))


def brain_sized_fruit() -> np.ndarray:
    """A rind, and flesh with a texture of a few mm, in an ellipsoid of 1500 cm3."""
    radius, random = ellipsoid(68, 86, 61), np.random.default_rng(3)
    coarse = np.kron(random.normal(0, 1, (25, 31, 29)), np.ones((4, 4, 4)))
    flesh = 600 + 120 * coarse + random.normal(0, 30, SHAPE)
    data = np.where(radius < 1, 250 + random.normal(0, 20, SHAPE), 0)
    return np.asarray(np.where(radius < 0.94, np.maximum(flesh, 50), data))


def uniform_phantom() -> np.ndarray:
    """A sphere of one material, in noisy air."""
    noise = np.random.default_rng(4).normal(0, 15, (2, *SHAPE))
    return np.asarray(np.hypot(np.where(ellipsoid(85, 85, 85) < 1, 800, 0) + noise[0], noise[1]))


def tomography() -> np.ndarray:
    """A head in Hounsfield units: air -1000, soft tissue 40, skull 900."""
    head, brain, _ = made_head()
    return np.asarray(np.where(brain, 40.0, np.where(head > 400, 900.0, -1000.0)) + head / 50)


def thick() -> tuple[np.ndarray, np.ndarray]:
    """A head of 6 mm slices."""
    head, _, affine = made_head()
    return head[:, :, ::3], affine @ np.diag([1.0, 1.0, 3.0, 1.0])


# name -> (what it is, words of the reason)
THINGS: dict[str, tuple[Callable[[], np.ndarray | tuple[np.ndarray, np.ndarray]], tuple[str, ...]]] = {
    "fruit": (brain_sized_fruit, ("another object", "not a brain")),
    "phantom": (uniform_phantom, ("another object", "not a brain")),
    "ct": (tomography, ("a CT in Hounsfield units",)),
    "thick": (thick, ("slice thickness: 6 mm", "give the 3D T1-weighted series")),
    "empty": (lambda: np.zeros(SHAPE), ("every voxel has the same value (0)",)),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """(exit code, output, output folder) of hz-prepare on all of them."""
    folder, out = tmp_path_factory.mktemp("things"), tmp_path_factory.mktemp("out")
    for name, (make, _) in THINGS.items():
        made = make()
        data, affine = made if isinstance(made, tuple) else (made, grid())
        write_head(folder / f"{name}.nii.gz", np.asarray(data, np.float32), affine)
    code, said, told = finished("prepare", folder, "--out", out, "--plain", "--workers", 2)
    return code, said + told, out


@pytest.mark.parametrize("name", THINGS)
def test_it_is_refused_for_the_right_reason(refused: tuple[int, str, Path], name: str) -> None:
    code, output, out = refused
    assert code == 3
    (line,) = [line for line in output.splitlines() if f" {name}.nii.gz  " in line]
    assert "  failed  " in line
    assert any(words in line for words in THINGS[name][1]), line
    record = json.loads((out / f"{name}_desc-preparation.json").read_text())
    assert record["hz"]["status"] == "failed" and record["hz"]["outputs"] == {}
    assert name == "empty" or not all(gate["passed"] for gate in record["gates"])
    assert not list(out.glob(f"{name}*.nii.gz"))


def test_nothing_is_a_traceback(refused: tuple[int, str, Path]) -> None:
    assert "Traceback" not in refused[1] and "internal" not in refused[1]
    assert f"{len(THINGS)} scans: {len(THINGS)} failed" in refused[1]
