"""Simulated changes of scanner, drawn anew for every step: contrast, bias field, noise, sharpness, pose.

They act on volumes in model space and every draw depends only on the generator given, so that a run
that is resumed sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, zoom

from hz_runtime.model_space.intensity import RULES
from hz_runtime.model_space.recipe import Recipe

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How far a simulated scanner may be from the real one.

    gamma : largest |log| of the exponent of the tone curve.
    bend : largest departure of the tone curve's inner knots from that power law, in intensity units.
    bias : largest |log| of the multiplicative field.
    noise : largest standard deviation, in intensity units.
    blur : largest Gaussian sigma in voxels.
    scale : largest |log| of the isotropic change of size in `pose`; each axis adds a third of it.
    mixing : how often a head is averaged with another one.
    unchanged : how often no scanner is simulated at all. A network that has met only changed scans changes
        those that need none: it moves the reference site's own.
    gain : largest |log| of a change of all intensities behind the rule: a brain's median follows how much
        fluid was left around it when it was stripped.
    intensity : the recipe's rule, which scales what a simulated scanner made as it scales a real scan.
    """

    gamma: float = 0.7
    bend: float = 0.08
    bias: float = 0.5
    noise: float = 0.015
    blur: float = 0.8
    scale: float = 0.2
    mixing: float = 0.3
    unchanged: float = 0.0
    gain: float = 0.0
    intensity: str = "min-max"

    @classmethod
    def strong(cls) -> Augmentation:
        """For a harmonizer that must meet scanners nobody has shown it."""
        return cls()

    @classmethod
    def mild(cls) -> Augmentation:
        """For the age network, which sees harmonized scans."""
        return cls(gamma=0.15, bend=0.02, bias=0.1, noise=0.01, blur=0.4, scale=0.0, mixing=0.0)


def scaled_as(recipe: Recipe, augmentation: Augmentation | None) -> Augmentation | None:
    """Simulated scanners whose scans are scaled by the recipe's rule where that follows a brain's median.

    Under other rules they end in min-max with a varied brightest voxel, which is what those make of scans.
    """
    if augmentation is None or recipe.intensity != "median":
        return augmentation
    return replace(augmentation, intensity=recipe.intensity)


def tone_curve(volume: F32, gamma: float, bends: NDArray[np.float64]) -> F32:
    """Monotone map of [0, 1] to itself: x**gamma with its inner knots moved by `bends`."""
    knots = np.linspace(0, 1, bends.size + 2)
    values = knots**gamma
    values[1:-1] += bends
    values = np.maximum.accumulate(np.clip(values, 0, 1))
    curved: F32 = np.interp(volume, knots, values).astype(np.float32)
    return curved


def bias_field(brain: NDArray[np.bool_], amplitude: float, rng: np.random.Generator) -> F32:
    """Smooth multiplicative field over the grid of `brain`: exp of noise interpolated from a coarse lattice.

    From two to five points an axis: a plain tilt from one end to the other, as a surface coil makes, up to
    several patches. Its log is at most `amplitude` either way inside the brain.
    """
    points = int(rng.integers(2, 6))
    coarse = rng.standard_normal((points,) * 3)
    field = zoom(coarse, [n / points for n in brain.shape], order=3, mode="nearest", grid_mode=True)
    inside = field[brain]
    low, high = float(inside.min()), float(inside.max())
    field = (field - (low + high) / 2) * (2 * amplitude / max(high - low, 1e-6))
    result: F32 = np.exp(field).astype(np.float32)
    return result


def scanner(volume: F32, rng: np.random.Generator, strength: Augmentation) -> F32:
    """The same anatomy through another, random scanner.

    volume : (D, H, W) float32 in [0, 1], zero outside the brain. Returns the same, scaled again by the rule.
    """
    if strength.unchanged and rng.random() < strength.unchanged:
        return volume
    brain = volume > 0.02
    out = tone_curve(
        volume,
        float(np.exp(rng.uniform(-strength.gamma, strength.gamma))),
        rng.uniform(-strength.bend, strength.bend, 4),
    )
    if rng.random() < 0.5:
        out = gaussian_filter(out, rng.uniform(0, strength.blur))
    out = out * bias_field(brain, rng.uniform(0, strength.bias), rng)
    out = out + rng.uniform(0, strength.noise) * rng.standard_normal(volume.shape).astype(np.float32) * brain
    # What min-max makes of a scan depends on its brightest voxel; real cohorts differ there by a third.
    out = np.minimum(out, np.float32(np.percentile(out[brain], rng.uniform(96, 100))))
    out = np.maximum(out, 0)
    if strength.intensity != "min-max":
        out = RULES[strength.intensity](out)[0]
        if strength.gain:
            out = np.clip(out * np.float32(np.exp(rng.uniform(-strength.gain, strength.gain))), 0, 1)
        return out
    return (out / max(float(out.max()), 1e-6)).astype(np.float32)


def mixture(volume: F32, other: F32, rng: np.random.Generator) -> F32:
    """`volume` averaged with another head where both have brain; the outline stays.

    Smooth, soft-edged folds as in a template or a blurred scan, which no single head of a cohort shows.
    """
    share = np.float32(rng.uniform(0.3, 0.7))
    mixed: F32 = np.where((volume > 0) & (other > 0.02), share * volume + (1 - share) * other, volume)
    return mixed


def pose(
    volume: F32, rng: np.random.Generator, degrees: float = 8.0, shift: float = 0.03, scale: float = 0.0
) -> F32:
    """A small random rotation, shift (share of the grid) and change of size; half the time a left-right flip.

    The way to model space undoes neither rotation nor size, so that training must see some.
    scale : largest |log| of the change of size; every axis has a third of it to itself.
    """
    angles = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    size = np.exp(rng.uniform(-scale, scale) + rng.uniform(-scale, scale, 3) / 3)
    matrix = rotation / size
    centre = (np.asarray(volume.shape) - 1) / 2
    offset = centre - matrix @ centre + rng.uniform(-shift, shift, 3) * volume.shape
    moved = affine_transform(volume, matrix, offset, order=1)
    if rng.random() < 0.5:
        moved = moved[::-1]
    return np.ascontiguousarray(moved, np.float32)
