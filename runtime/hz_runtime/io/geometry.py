"""Where a voxel array sits in the head: affine, orientation, and what the file said about both.

World coordinates are NIfTI's: millimetres, x to the right, y to the front, z up (RAS).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hz_runtime.errors import GridMismatch

Array = npt.NDArray[np.float64]
MILLIMETRES = 2  # NIfTI xyzt_units
ALIGNED = 2  # NIfTI xform code: coordinates aligned to another scan
MOST_DEGREES, MOST_APART_MM = 2.0, 2.0  # between two poses that are one
MOST_SIZE = 0.02  # share of a voxel's size
_AXIS_LETTERS = ("LR", "PA", "IS")


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan as its file stores it: all that is needed to write another one like it.

    shape : (I, J, K) voxels in the stored order.
    affine : (4, 4) float64, stored voxel indices -> world mm, chosen by NIfTI's rule: sform where its
        code is positive, else qform where its code is positive, else voxel sizes alone (as nibabel).
    qform, sform : (4, 4) float64, or None where their code is 0.
    xyzt_units : the header's raw units byte.  version : 1 or 2, NIfTI version to write.
    quaternion : (qfac, b, c, d, x, y, z) and pixdim : (di, dj, dk) as stored, so that a qform survives
        a round trip bit for bit; it would not through its matrix. Kept where its code is 0, too: there are
        readers that do not look at the code. Zeros where it is none.
    guessed : an MGH that said nothing about its pose, so that the affine is FreeSurfer's default.
    """

    shape: tuple[int, int, int]
    affine: Array
    qform: Array | None
    sform: Array | None
    qform_code: int
    sform_code: int
    xyzt_units: int
    version: int
    quaternion: tuple[float, ...]
    pixdim: tuple[float, float, float]
    guessed: bool = False

    @classmethod
    def from_affine(
        cls, shape: tuple[int, ...], affine: npt.ArrayLike, *, code: int = ALIGNED, version: int = 1
    ) -> Geometry:
        """Geometry of an array that did not come from a NIfTI file.

        shape : (I, J, K).  affine : (4, 4), voxel -> world mm, any orientation.
        code : NIfTI sform code (1 scanner, 2 aligned, 3 Talairach, 4 MNI). The qform stays unset.
        Raises GridMismatch where shape or affine cannot describe a volume.
        """
        matrix = np.array(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or len(shape) != 3:
            raise GridMismatch(f"A volume needs 3 axes and a 4x4 affine, not {shape} and {matrix.shape}.")
        fault = affine_fault(matrix)
        if fault:
            raise GridMismatch(f"The affine cannot place a volume: {fault}.")
        i, j, k = (int(n) for n in shape)
        di, dj, dk = (float(s) for s in spacing_of(matrix))
        return cls(
            shape=(i, j, k), affine=matrix, qform=None, sform=matrix, qform_code=0, sform_code=code,
            xyzt_units=MILLIMETRES, version=version, quaternion=(1.0,) + (0.0,) * 6, pixdim=(di, dj, dk),
        )  # fmt: skip

    @property
    def placed(self) -> bool:
        """False where the file said nothing about orientation and the affine is the format's default."""
        return not self.guessed and (self.sform_code > 0 or self.qform_code > 0)

    @cached_property
    def conflict(self) -> str:
        """How the header's own statements about the pose differ, so that other readers may place the scan
        otherwise; "" where they agree.

        Compared are sform and qform where both have a code (SimpleITK takes the qform where that says
        scanner, nibabel the sform), and the voxel sizes beside the sform.
        """
        if self.sform is not None and self.qform is not None:
            if np.linalg.det(self.sform[:3, :3]) * np.linalg.det(self.qform[:3, :3]) < 0:
                return "sform and qform tell left from right otherwise"
            degrees = _angle(self.sform, self.qform)
            corners = np.array([[*at, 1] for at in np.ndindex(2, 2, 2)]) * [*np.subtract(self.shape, 1), 1]
            apart = np.linalg.norm(corners @ (self.sform - self.qform).T, axis=1).max()
            if degrees > MOST_DEGREES or apart > MOST_APART_MM:
                return f"sform and qform are {degrees:.0f} degrees and up to {apart:.0f} mm apart"
        if self.sform is not None:
            sizes = spacing_of(self.sform)
            if (np.abs(sizes - self.pixdim) > MOST_SIZE * sizes).any():
                written, placed = (" x ".join(f"{n:.3g}" for n in each) for each in (self.pixdim, sizes))
                return f"voxels are {written} mm by pixdim and {placed} mm by the sform"
        return ""

    @cached_property
    def ornt(self) -> npt.NDArray[np.int64]:
        """(3, 2) int: for each stored axis, the RAS axis it lies closest to and its sign (nibabel's)."""
        return orientation_of(self.affine)

    @cached_property
    def orientation(self) -> str:
        """Three letters, the direction in which each stored axis runs, such as "LAS"."""
        return "".join(_AXIS_LETTERS[axis][sign > 0] for axis, sign in self.ornt.tolist())

    @cached_property
    def ras_shape(self) -> tuple[int, int, int]:
        """The shape after `to_ras`."""
        x, y, z = (self.shape[axis] for axis in self._source_axes)
        return x, y, z

    @cached_property
    def ras_affine(self) -> Array:
        """(4, 4) float64, voxel indices of the RAS-ordered array -> world mm."""
        back = np.zeros((4, 4))
        back[3, 3] = 1.0
        for stored, (axis, sign) in enumerate(self.ornt.tolist()):
            back[stored, axis] = sign
            if sign < 0:
                back[stored, 3] = self.shape[stored] - 1
        return np.asarray(self.affine @ back)

    @cached_property
    def _source_axes(self) -> tuple[int, ...]:
        # For each RAS axis, the stored axis that becomes it.
        return tuple(int(n) for n in np.argsort(self.ornt[:, 0]))

    def to_ras(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """View of an (I, J, K) array in stored order, with its axes in RAS order and direction."""
        if stored.shape != self.shape:
            raise GridMismatch(f"The array is {stored.shape}; its geometry says {self.shape}.")
        return stored[self._flips].transpose(self._source_axes)

    def from_ras(self, ras: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """View of a RAS-ordered array in stored order: the inverse of `to_ras`."""
        if ras.shape != self.ras_shape:
            raise GridMismatch(f"The array is {ras.shape}; its RAS geometry says {self.ras_shape}.")
        return ras.transpose(tuple(int(axis) for axis in self.ornt[:, 0]))[self._flips]

    @property
    def _flips(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, int(sign)) for sign in self.ornt[:, 1])


def spacing_of(affine: Array) -> Array:
    """(3,) float64: voxel sizes in mm, the lengths of the affine's columns."""
    return np.asarray(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def _angle(one: Array, other: Array) -> float:
    """Degrees of the rotation between two affines, of their polar factors."""
    turns = []
    for affine in (one, other):
        left, _, right = np.linalg.svd(affine[:3, :3])
        turns.append(left @ right)
    cosine = (np.trace(turns[0].T @ turns[1]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def affine_fault(affine: Array) -> str:
    """Why an affine cannot place a volume in the world; "" where it can."""
    if not np.isfinite(affine).all():
        return "it holds numbers that are not finite"
    if np.abs(affine).max() > 1e12:
        return "it holds numbers far beyond any head"
    if not np.array_equal(affine[3], (0.0, 0.0, 0.0, 1.0)):
        return "its last row is not 0 0 0 1"
    sizes = spacing_of(affine)
    if sizes.min() <= 0.0:
        return "it is singular (a voxel axis has no length)"
    # Of unit columns, so that small voxels are not mistaken for flat ones.
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        return "it is singular (its voxel axes lie in one plane)"
    return ""


def orientation_of(affine: Array) -> npt.NDArray[np.int64]:
    """(3, 2) int: closest RAS axis and sign of each voxel axis, strongest first as nibabel does.

    The rotation is the polar factor of the unit-column affine, so that shear does not tip the choice.
    """
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing_of(affine))
    rotation = left @ right
    ornt = np.zeros((3, 2), dtype=np.int64)
    for stored in np.argsort(-(rotation**2).max(axis=0), kind="stable").tolist():
        axis = int(np.argmax(np.abs(rotation[:, stored])))
        ornt[stored] = axis, (1 if rotation[axis, stored] > 0 else -1)
        rotation[axis, :] = 0.0  # taken
    return ornt


def affine_from_quaternion(quaternion: tuple[float, ...], pixdim: tuple[float, float, float]) -> Array:
    """The NIfTI-1 qform ("method 2" of nifti1.h): rotation, voxel sizes, offset -> (4, 4) float64.

    quaternion : (qfac, b, c, d, x, y, z).  pixdim : voxel sizes in mm; their sign is ignored.
    """
    qfac, b, c, d, *offset = quaternion
    squared = b * b + c * c + d * d
    a2 = 1.0 - squared
    if a2 < 1e-7:  # half a turn, within float32 rounding: renormalise, as nifti1_io does
        scale = 1.0 / np.sqrt(squared)
        a, b, c, d = 0.0, b * scale, c * scale, d * scale
    else:
        a = float(np.sqrt(a2))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    sizes = np.abs(np.array(pixdim, dtype=np.float64))
    sizes[2] *= -1.0 if qfac < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes
    affine[:3, 3] = offset
    return affine


def affine_from_sizes(shape: tuple[int, int, int], pixdim: tuple[float, float, float]) -> Array:
    """The affine of a file that gives voxel sizes only: centred, x to the left (LAS), as nibabel."""
    sizes = np.abs(np.array(pixdim, dtype=np.float64)) * (-1.0, 1.0, 1.0)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(shape) - 1) / 2.0
    return affine
