"""Faults of a scan, simulated in a real brain: noise, blur, motion and a field, at five strengths each.

They show what a measure of image quality sees (`benchmarks/image_quality.py`); nothing is trained on them.
The outline of the brain stays, as if it had been stripped after the fault.

What this is not: a physical simulation. Motion is a swing and three moves during the scan, and turns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hz_train.augment import bias_field

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

WHITE = 85  # percentile of a brain's intensities that lies in white matter
TO_SD = 1 / 2.3548  # of a FWHM
PERIOD = (3.0, 12.0)  # lines of k-space in which the head swings to and fro
MOVES = 3
MOVE = 0.3  # standard deviation of a move, in swings
MOST_GAIN = 10.0  # of what took the head to its brain: its field, which is nowhere stronger


@dataclass(frozen=True)
class Subject:
    """A brain to spoil.

    brain : (I, J, K) float32, air 0.  spacing : (3,) mm.
    head : the whole head that it came from, of the same shape, air 0; None where there is none. Motion
        brings the scalp's ghosts into the brain.
    """

    brain: F32
    spacing: F64
    head: F32 | None = None

    @property
    def mask(self) -> Mask:
        found: Mask = self.brain > 0
        return found


def noisy(subject: Subject, strength: float, rng: np.random.Generator) -> F32:
    """Rician noise.  strength : standard deviation of both channels, in shares of white matter's level."""
    level = float(np.percentile(subject.brain[subject.mask], WHITE)) * strength
    real, imaginary = rng.standard_normal((2, *subject.brain.shape), dtype=np.float32) * np.float32(level)
    return _within(subject, np.hypot(subject.brain + real, imaginary))


def blurred(subject: Subject, strength: float, _: np.random.Generator) -> F32:
    """A Gaussian point spread, of the brain alone.  strength : FWHM, mm."""
    sigma = strength * TO_SD / subject.spacing
    weight = gaussian_filter(subject.mask.astype(np.float32), sigma)
    return _within(subject, gaussian_filter(subject.brain, sigma) / np.maximum(weight, np.float32(1e-3)))


def moved(subject: Subject, strength: float, rng: np.random.Generator) -> F32:
    """A head that swings along one way and moves three times, while k-space is filled line by line.

    strength : the swing's amplitude, mm. A shift is a phase ramp over each line.
    """
    source = subject.brain if subject.head is None else subject.head
    axis = int(rng.integers(3))
    line = np.arange(source.shape[axis])
    way = rng.standard_normal(3)
    swing = np.sin(2 * np.pi * (line / rng.uniform(*PERIOD) + rng.random()))
    shift = swing[:, None] * way / np.linalg.norm(way)  # (lines, 3), in swings
    for at in rng.choice(line.size, MOVES, replace=False):
        shift = shift + np.where(line[:, None] >= at, MOVE * rng.standard_normal(3), 0.0)
    shift = strength * (shift - shift[line.size // 2]) / subject.spacing  # in voxels; none at the centre
    shift = np.fft.ifftshift(shift, axes=0)  # from the order of the scan to that of the transform
    turns = 0.0
    for other, size in enumerate(source.shape):
        shape = [1, 1, 1]
        shape[other] = -1
        lines = [1, 1, 1]
        lines[axis] = -1
        turns = turns + np.fft.fftfreq(size).reshape(shape) * shift[:, other].reshape(lines)
    image = np.abs(np.fft.ifftn(np.fft.fftn(source) * np.exp(-2j * np.pi * turns)))
    if subject.head is not None:  # what took the head to the brain: its field, and its outline
        image *= np.clip(subject.brain / np.maximum(subject.head, np.float32(1e-3)), 0, MOST_GAIN)
    return _within(subject, image)


def shaded(subject: Subject, strength: float, rng: np.random.Generator) -> F32:
    """A smooth multiplicative field (`augment.bias_field`).  strength : largest |log| of it."""
    return _within(subject, subject.brain * bias_field(subject.mask, strength, rng))


Fault = Callable[[Subject, float, np.random.Generator], F32]
# By the measure of `hz_runtime.model_space.image_quality` that is to see it.
FAULTS: Mapping[str, tuple[Fault, tuple[float, ...]]] = {
    "noise": (noisy, (0.03, 0.06, 0.09, 0.12, 0.16)),
    "blur": (blurred, (2.0, 3.0, 4.0, 5.0, 6.0)),
    "ghosts": (moved, (0.25, 0.5, 1.0, 2.0, 3.0)),
    "field": (shaded, (0.1, 0.2, 0.4, 0.6, 0.8)),
}


def _within(subject: Subject, data: NDArray[np.floating]) -> F32:
    """In the brain's outline, where nothing is as dark as air."""
    tiny = np.finfo(np.float32).tiny
    inside = np.maximum(data, tiny).astype(np.float32)
    return np.asarray(np.where(subject.mask, inside, np.float32(0)), np.float32, order="F")
