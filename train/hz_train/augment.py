"""Simulated changes of scanner, drawn anew for every step: contrast, bias field, noise, sharpness, pose.

They act on prepared volumes in [0, 1] and every draw depends only on the generator given, so that a run
that is resumed sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, zoom

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How far a simulated scanner may be from the real one.

    gamma : largest |log| of the exponent of the tone curve.
    bend : largest departure of the tone curve's inner knots from that power law, in intensity units.
    bias : largest |log| of the multiplicative field.
    noise : largest standard deviation, in intensity units.
    blur : largest Gaussian sigma in voxels.
    """

    gamma: float = 0.6
    bend: float = 0.08
    bias: float = 0.5
    noise: float = 0.015
    blur: float = 0.6

    @classmethod
    def strong(cls) -> Augmentation:
        """For a harmonizer that must meet scanners nobody has shown it."""
        return cls()

    @classmethod
    def mild(cls) -> Augmentation:
        """For the age network, which sees harmonized scans."""
        return cls(gamma=0.15, bend=0.02, bias=0.1, noise=0.01, blur=0.4)


def tone_curve(volume: F32, gamma: float, bends: NDArray[np.float64]) -> F32:
    """Monotone map of [0, 1] to itself: x**gamma with its inner knots moved by `bends`."""
    knots = np.linspace(0, 1, bends.size + 2)
    values = knots**gamma
    values[1:-1] += bends
    values = np.maximum.accumulate(np.clip(values, 0, 1))
    curved: F32 = np.interp(volume, knots, values).astype(np.float32)
    return curved


def bias_field(shape: tuple[int, ...], amplitude: float, rng: np.random.Generator) -> F32:
    """Smooth multiplicative field: exp of noise interpolated from a coarse lattice, within +-amplitude."""
    points = int(rng.integers(3, 6))
    coarse = rng.standard_normal((points,) * 3)
    field = zoom(coarse, [n / points for n in shape], order=3, mode="nearest", grid_mode=True)
    field -= field.mean()
    field *= amplitude / max(float(np.abs(field).max()), 1e-6)
    result: F32 = np.exp(field).astype(np.float32)
    return result


def scanner(volume: F32, rng: np.random.Generator, strength: Augmentation) -> F32:
    """The same anatomy through another, random scanner.

    volume : (D, H, W) float32 in [0, 1], zero outside the brain. Returns the same, min-max scaled again.
    """
    brain = volume > 0.02
    out = tone_curve(
        volume,
        float(np.exp(rng.uniform(-strength.gamma, strength.gamma))),
        rng.uniform(-strength.bend, strength.bend, 4),
    )
    if rng.random() < 0.5:
        out = gaussian_filter(out, rng.uniform(0, strength.blur))
    out = out * bias_field(volume.shape, rng.uniform(0, strength.bias), rng)
    out = out + rng.uniform(0, strength.noise) * rng.standard_normal(volume.shape).astype(np.float32) * brain
    # What min-max makes of a scan depends on its brightest voxel; real cohorts differ there by a third.
    out = np.minimum(out, np.float32(np.percentile(out[brain], rng.uniform(97, 100))))
    out = np.maximum(out, 0)
    return (out / max(float(out.max()), 1e-6)).astype(np.float32)


def pose(volume: F32, rng: np.random.Generator, degrees: float = 8.0, voxels: float = 2.0) -> F32:
    """A small random rotation and shift, and half the time a left-right flip.

    Preparation undoes no rotation, so that training must see some.
    """
    angles = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    centre = (np.asarray(volume.shape) - 1) / 2
    offset = centre - rotation @ centre + rng.uniform(-voxels, voxels, 3)
    moved = affine_transform(volume, rotation, offset, order=1)
    if rng.random() < 0.5:
        moved = moved[::-1]
    return np.ascontiguousarray(moved, np.float32)
