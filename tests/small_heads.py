"""A whole head made of the MNI152 template: its brain, a dark skull, a bright scalp, a neck; and a fruit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume, write_volume
from hz_runtime.model_space.morphology import dilated
from hz_runtime.model_space.resample import resample
from hz_runtime.preparation.template import mni152

SHAPE = (100, 124, 116)  # of 2 mm
ORIGIN = (-99.0, -138.0, -116.0)


def grid() -> np.ndarray:
    """(4, 4) voxel to world mm of the made-up heads."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = ORIGIN
    return affine


def moved(degrees=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4): rotations about x, y, z through the template's centre, then a shift in mm."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    matrix, centre = np.eye(4), mni152().centre_mm
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + shift
    return matrix


def made_head(move=None, seed=0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(head (I, J, K) float32, its brain (I, J, K) bool, affine (4, 4)), moved by `move` (4, 4) mm."""
    template, affine = mni152(), grid()
    move = np.eye(4) if move is None else move
    onto = (move @ template.affine, SHAPE, affine)
    brain = resample(template.data, *onto)
    inside = resample(template.mask.astype(np.float32), *onto) > 0.5
    skull = dilated(inside, 4)
    scalp = dilated(skull, 3)
    upright = np.linalg.inv(move) @ affine
    index = np.indices(SHAPE).reshape(3, -1)
    x, y, z = (upright[:3, :3] @ index + upright[:3, 3:]).reshape(3, *SHAPE)
    neck = (np.hypot(x, y + 30) < 55) & (z < -50) & ~skull
    head = np.where(inside, np.maximum(brain, 0.2), 0.08 * skull + 0.9 * (scalp & ~skull))
    head = np.where(neck & ~scalp, 0.5, head)
    noise = np.random.default_rng(seed).normal(0, 0.02, (2, *SHAPE))
    return np.hypot(head + noise[0], noise[1]).astype(np.float32) * 1000, inside, affine


def as_volume(data: np.ndarray, affine: np.ndarray) -> Volume:
    """The scan that a file of this array would be read as; `data` in RAS order."""
    data = np.asfortranarray(data, np.float32)
    return Volume(data, affine, Geometry.from_affine(data.shape, affine), "0" * 64, "float32")


def write_head(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, data, Geometry.from_affine(data.shape, affine))
    return path


def fruit(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(data, affine): a melon of a head's size in noisy air, with a rind, flesh and chambers of seeds."""
    affine = grid()
    index = np.indices(SHAPE).reshape(3, -1)
    at = (affine[:3, :3] @ index + affine[:3, 3:] - np.array([[0.0], [-14.0], [0.0]])).reshape(3, *SHAPE)
    radius = np.linalg.norm(at / np.array([80.0, 88.0, 82.0])[:, None, None, None], axis=0)
    data = np.where(radius < 1, 0.35, 0.0) + np.where(radius < 0.92, 0.4, 0)
    data += np.where((radius < 0.5) & (np.cos(6 * np.arctan2(at[1], at[0])) > 0.3), -0.45, 0)
    noise = np.random.default_rng(seed).normal(0, 0.02, (2, *SHAPE))
    return np.hypot(data + noise[0], noise[1]).astype(np.float32) * 800, affine
