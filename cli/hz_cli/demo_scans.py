"""One head through simulated scanners: real anatomy for the demo and the benchmarks, without a download.

The head is the MNI152 T1 template (ICBM 2009a symmetric, skull-stripped, 1 mm) that ships with hz.
A scanner is a tone curve, a smooth receive field, Rician noise, and its own way of storing the
result: intensity scale, dtype, orientation and field of view. The three scanners of the demo were chosen
once, from ordinary figures (a field of 20-30 %, noise of about 1 %), and are not tuned to any harmonizer.

What this is not: a physical simulation. Resolution, pose, distortion and anatomy stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Head:
    """A clean head: data (I, J, K) float32 in [0, 1], zero outside the brain; affine (4, 4) RAS mm;
    brain (I, J, K) bool, where scans of it are compared."""

    data: F32
    affine: F64
    brain: Mask


@dataclass(frozen=True)
class Scanner:
    """How one scanner shows a head.

    gamma : exponent of the tone curve; below 1 flattens the contrast of white and grey matter.
    shoulder : saturation of the bright end, 0 for none.
    field : largest departure of the receive field from 1, as a share (0.25 is +-25 %, in log).
    noise : standard deviation of the two channels of Rician noise, as a share of the brain's mean.
    peak : stored intensity of the brightest tissue.  dtype, orientation : of the file.
    margin : voxels of air cut (negative) or added around the head on every side.
    """

    name: str
    gamma: float
    shoulder: float
    field: float
    noise: float
    peak: float
    dtype: str
    orientation: str
    margin: int
    seed: int


DEMO_SCANNERS = (
    Scanner("scanner-a", 0.65, 1.0, 0.25, 0.010, 900.0, "int16", "LAS", 0, 1),
    Scanner("scanner-b", 1.00, 0.0, 0.30, 0.012, 4000.0, "uint16", "PSR", 4, 2),
    Scanner("scanner-c", 1.50, 0.0, 0.30, 0.010, 1.0, "float32", "LIA", -4, 3),
)


def random_scanner(seed: int) -> Scanner:
    """A scanner drawn within the range of the demo's three, for as many as a benchmark needs."""
    rng = np.random.default_rng(seed)
    dtype, peak = [("int16", 1000.0), ("uint16", 4000.0), ("float32", 1.0)][int(rng.integers(3))]
    return Scanner(
        name=f"scanner-{seed:02d}",
        gamma=float(np.exp(rng.uniform(np.log(0.65), np.log(1.5)))),
        shoulder=float(rng.uniform(0, 1.2)),
        field=float(rng.uniform(0.15, 0.30)),
        noise=float(rng.uniform(0.008, 0.015)),
        peak=peak,
        dtype=dtype,
        orientation=str(rng.choice(["RAS", "LAS", "PSR", "LIA"])),
        margin=int(rng.integers(-4, 5)),
        seed=seed,
    )


def mni152_head() -> Head:
    """The MNI152 T1 brain at 1 mm, 197 x 233 x 189 voxels."""
    from hz_runtime.preparation.template import mni152_volume

    template = mni152_volume()
    data = template.data / template.data.max()
    brain = data > 0.2
    # The template fades out in a faint halo; what a skull-stripping tool keeps ends where tissue does.
    data[data < 0.05] = 0
    return Head(data / data.max(), template.affine, brain)


def tone(data: F32, gamma: float, shoulder: float) -> F32:
    """Monotone curve from [0, 1] to [0, 1]: a power, then a soft saturation of the bright end."""
    curved = data**gamma
    if shoulder:
        curved = np.expm1(-shoulder * curved) / np.expm1(-shoulder)
    return np.asarray(curved, np.float32)


def receive_field(shape: tuple[int, ...], brain: Mask, size: float, rng: np.random.Generator) -> F32:
    """Smooth multiplicative field (I, J, K): exp of a random quadratic, from 1 / (1 + size) to 1 + size in
    the brain."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = (x, y, z, x * x, y * y, z * z, x * y, y * z, x * z)
    log = np.zeros(shape, np.float32)
    weights = rng.standard_normal(len(terms))
    for term, weight in zip(terms, weights, strict=True):
        log += np.float32(weight) * term
    inside = log[brain]
    middle, half = (inside.max() + inside.min()) / 2, (inside.max() - inside.min()) / 2
    return np.exp((log - middle) / half * np.float32(np.log1p(size)))


def scan(head: Head, scanner: Scanner) -> F32:
    """What `scanner` makes of `head`, on the head's own voxels: (I, J, K) float32, zero outside the head."""
    rng = np.random.default_rng(scanner.seed)
    seen = tone(head.data, scanner.gamma, scanner.shoulder)
    seen = seen * receive_field(seen.shape, head.brain, scanner.field, rng)
    sigma = np.float32(scanner.noise * seen[head.brain].mean())
    real = seen + sigma * rng.standard_normal(seen.shape, dtype=np.float32)
    seen = np.hypot(real, sigma * rng.standard_normal(seen.shape, dtype=np.float32))
    seen[head.data == 0] = 0  # stripped after the scan, as a hospital's pipeline would
    return np.asarray(seen * np.float32(scanner.peak / np.percentile(seen[head.brain], 99.5)), np.float32)


def stored(data: F32, affine: F64, scanner: Scanner) -> Any:
    """The nibabel image that `scanner` would write: its field of view, orientation and dtype."""
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    framed, framed_affine = _reframed(data, affine, scanner.margin)
    if np.issubdtype(np.dtype(scanner.dtype), np.integer):
        framed = np.rint(framed)
    image = nib.Nifti1Image(framed.astype(scanner.dtype), framed_affine)
    turn = ornt_transform(io_orientation(framed_affine), axcodes2ornt(tuple(scanner.orientation)))
    image = image.as_reoriented(turn)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def write_scans(folder: Path, head: Head, scanners: tuple[Scanner, ...] = DEMO_SCANNERS) -> list[Path]:
    """Write one `sub-mni152_acq-NAME_T1w.nii.gz` a scanner into `folder`; returns the paths."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for scanner in scanners:
        path = folder / f"sub-mni152_acq-{scanner.name.replace('-', '')}_T1w.nii.gz"
        nib.save(stored(scan(head, scanner), head.affine, scanner), path)
        paths.append(path)
    return paths


def on_head_grid(image: Any, head: Head) -> F32:
    """A scan of `head`, in any orientation and field of view, back on the head's voxels; no interpolation.

    Returns (I, J, K) float32, zero where the scan did not reach. Raises ValueError where the voxels of
    the two do not coincide.
    """
    import nibabel as nib

    image = nib.as_closest_canonical(image)
    shift = np.linalg.inv(head.affine) @ image.affine
    if not np.allclose(shift[:3, :3], np.eye(3), atol=1e-3):
        raise ValueError(f"the scan's voxels are not the head's: {np.round(shift[:3, :3], 3).tolist()}")
    start = np.rint(shift[:3, 3]).astype(int)
    if not np.allclose(shift[:3, 3], start, atol=1e-2):
        raise ValueError(f"the scan lies between the head's voxels: {shift[:3, 3].tolist()}")
    out = np.zeros(head.data.shape, np.float32)
    data = np.asarray(image.dataobj, np.float32)
    overlaps = [_overlap(int(start[k]), data.shape[k], out.shape[k]) for k in range(3)]
    out[tuple(into for into, _ in overlaps)] = data[tuple(taken for _, taken in overlaps)]
    return out


def _overlap(start: int, length: int, room: int) -> tuple[slice, slice]:
    """Where [start, start + length) meets [0, room): in the room, and in the piece."""
    low, high = max(start, 0), min(start + length, room)
    return slice(low, high), slice(low - start, high - start)


def _reframed(data: F32, affine: F64, margin: int) -> tuple[F32, F64]:
    """Add (or cut, when negative) `margin` voxels on every side; every other voxel keeps its place."""
    framed = np.pad(data, margin) if margin >= 0 else data[(slice(-margin, margin),) * 3]
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ np.full(3, float(margin))
    return framed, moved
