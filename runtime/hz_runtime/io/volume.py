"""Scans: read and checked, oriented to RAS, and written back on the grid they came from.

Reading goes slab by slab from the (gzip) stream into the final float32 array, so that the peak is that
array plus one slab, whatever type the file stores. Writing quantizes where the voxels lie and turns only
the result, half as large, to the order of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hz_runtime.errors import NoBrain, UnreadableScan, UnsupportedScan, UsageError
from hz_runtime.io.atomic import atomic_write_bytes, gzipped, sha256_bytes, shown
from hz_runtime.io.geometry import Array, Geometry, spacing_of
from hz_runtime.io.nifti_header import HEAD_BYTES, ReadLimits, ScanHeader, encode_header, parse_header
from hz_runtime.io.verified_stream import ScanStream

__all__ = [
    "SUFFIXES",
    "Geometry",
    "ReadLimits",
    "Volume",
    "is_scan_name",
    "read_volume",
    "stem",
    "volume_bytes",
    "write_volume",
]

SUFFIXES = (".nii", ".nii.gz", ".mgz")
Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_SLAB = 1 << 20  # bytes read at a time: fits a core's cache
_SLICES = 8  # quantized at a time
_INT16_MAX = 32767

_OTHER_FORMATS = {
    ".hdr": "one half of an Analyze or NIfTI .hdr/.img pair",
    ".img": "one half of an Analyze or NIfTI .hdr/.img pair",
    ".mnc": "a MINC volume",
    ".dcm": "a DICOM slice",
    ".nrrd": "an NRRD volume",
    ".mif": "an MRtrix volume",
    ".head": "one half of an AFNI pair",
    ".brik": "one half of an AFNI pair",
}
_CONVERSIONS = {
    ".hdr": "Merge the pair into one file:  fslchfiletype NIFTI_GZ {0}",
    ".img": "Merge the pair into one file:  fslchfiletype NIFTI_GZ {0}",
    ".mnc": "Convert it:  mri_convert {0} {1}.nii.gz",
    ".dcm": "Convert the series:  hz-dicom convert FOLDER --out DIR",
    ".nrrd": "Convert it:  c3d {0} -o {1}.nii.gz",
    ".mif": "Convert it:  mrconvert {0} {1}.nii.gz",
    ".head": "Convert it:  3dAFNItoNIFTI {0}",
    ".brik": "Convert it:  3dAFNItoNIFTI {0}",
}


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan in canonical orientation.

    data : (I, J, K) float32, Fortran order, axes in RAS order, finite: 0 where the file holds no number.
    affine : (4, 4) float64, indices of `data` -> world mm.
    geometry : the grid of the file, to write results back on.
    sha256 : of the file's bytes as on disk.  source_dtype : as stored, such as "int16".
    missing : (I, J, K) bool, the voxels that are NaN or infinite in the file; None where there are none.
    """

    data: Float32
    affine: Array
    geometry: Geometry
    sha256: str
    source_dtype: str
    missing: Mask | None = None

    @property
    def spacing(self) -> Array:
        """(3,) float64, voxel sizes of `data` in mm."""
        return spacing_of(self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.data.shape
        return i, j, k


def is_scan_name(path: str | os.PathLike[str]) -> bool:
    """True for a name hz would pick up in a folder: SUFFIXES in any case, hidden files excluded."""
    name = os.path.basename(os.fspath(path))
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and name.lower() not in SUFFIXES


def stem(path: str | os.PathLike[str]) -> str:
    """File name without folder and without one of SUFFIXES."""
    name = os.path.basename(os.fspath(path))
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_volume(path: str | os.PathLike[str], limits: ReadLimits | None = None) -> Volume:
    """Read one 3-D scan: NIfTI-1 or -2, plain or gzip, either byte order, or MGH/MGZ.

    4-D files of one frame are read as 3-D. Nothing of the header's size is allocated before every check
    of `hz_runtime.io.nifti_header` has passed; the stream must then hold exactly what the header declares,
    with a correct gzip CRC and length. Gzip members may follow one another (bgzip); other junk may not.
    Raises UnreadableScan (missing, damaged, over `limits`), UnsupportedScan (4-D, colour, complex, 2-D,
    another format), NoBrain (one value everywhere, or no number anywhere).
    """
    limits = limits or ReadLimits()
    with ScanStream(path, limits.max_file_bytes) as stream:
        _check_name(stream.name)
        header = parse_header(stream.head(HEAD_BYTES), stream.name, limits)
        stream.check_declared(header.offset + header.data_bytes)
        stream.skip(header.offset)
        data, missing, constant = _read_voxels(stream, header)
        digest = stream.finish(header.footer)
    _check_content(data, missing, constant, stream.name)
    geometry = header.geometry
    return Volume(data, geometry.ras_affine, geometry, digest, header.dtype.name, missing)


def _check_name(name: str) -> None:
    bare = name.lower().removesuffix(".gz").removesuffix(".bz2")
    suffix = os.path.splitext(bare)[1]
    if suffix in _OTHER_FORMATS:
        remedy = _CONVERSIONS[suffix].format(name, name[: len(bare) - len(suffix)])
        raise UnsupportedScan(f"{name}: {_OTHER_FORMATS[suffix]}; hz reads .nii, .nii.gz and .mgz.", remedy)


def _read_voxels(stream: ScanStream, header: ScanHeader) -> tuple[Float32, Mask | None, bool]:
    """The RAS array, which of its voxels were set to 0 for not being finite, whether all are equal."""
    geometry, dtype = header.geometry, header.dtype
    plane_bytes = geometry.shape[0] * geometry.shape[1] * dtype.itemsize
    try:
        data = np.empty(geometry.ras_shape, dtype=np.float32, order="F")
        scratch = bytearray(_planes(geometry.shape, dtype) * plane_bytes)
    except MemoryError as error:
        raise UnreadableScan(
            f"{stream.name}: its {header.voxels} voxels do not fit in memory.",
            "Run on a machine with more memory.",
        ) from error
    stored = geometry.from_ras(data)
    missing: Mask | None = None
    constant, first = True, None
    for start, stop in _slabs(geometry.shape, dtype):
        raw = memoryview(scratch)[: (stop - start) * plane_bytes]
        stream.fill(raw)
        slab = np.frombuffer(raw, dtype).reshape((*geometry.shape[:2], stop - start), order="F")
        first = slab[0, 0, 0] if first is None else first
        constant = constant and bool((slab == first).all())
        values = _scaled(slab, header.slope, header.inter)
        if _may_be_nonfinite(header):
            bad = ~np.isfinite(values)
            if bad.any():
                if missing is None:  # most scans have none, and need no room for them
                    missing = np.zeros_like(data, np.bool_)
                geometry.from_ras(missing)[..., start:stop] = bad
                values[bad] = 0.0
        stored[..., start:stop] = values
    return data, missing, constant


def _planes(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> int:
    return min(shape[2], max(1, _SLAB // (shape[0] * shape[1] * dtype.itemsize)))


def _slabs(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    step = _planes(shape, dtype)
    for start in range(0, shape[2], step):
        yield start, min(start + step, shape[2])


def _scaled(slab: npt.NDArray[Any], slope: float, inter: float) -> npt.NDArray[Any]:
    """stored * slope + inter, to be assigned to float32; a plain slab comes back as it is."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinite results are counted by the caller
        if slope == 1.0 and inter == 0.0:
            return slab if slab.dtype.kind in "iu" else slab.astype(np.float32)
        if inter == 0.0 and (slab.dtype.itemsize <= 2 or slab.dtype == np.float32):
            narrow: Float32 = np.multiply(slab, np.float32(slope), dtype=np.float32)
            return narrow
        # Wide integers and offsets: float32 would round before the offset cancels.
        wide: npt.NDArray[np.float64] = slab.astype(np.float64) * slope + inter
        return wide.astype(np.float32)


def _may_be_nonfinite(header: ScanHeader) -> bool:
    if header.dtype.kind == "f":
        return True
    largest = float(np.iinfo(header.dtype).max) + 1.0
    return not largest * abs(header.slope) + abs(header.inter) < float(np.finfo(np.float32).max)


def _check_content(data: Float32, missing: Mask | None, constant: bool, name: str) -> None:
    if missing is not None and missing.all():
        raise NoBrain(
            f"{name}: none of its voxels holds a number: all are NaN or infinite.",
            "The scan was damaged by an earlier step: run that step again.",
        )
    if constant:
        raise NoBrain(
            f"{name}: every voxel has the same value ({data.flat[0]:g}).", "Pick a scan with a head in it."
        )


def write_volume(
    path: str | os.PathLike[str],
    data: npt.NDArray[Any],
    geometry: Geometry,
    *,
    dtype: Literal["int16", "float32", "uint8"] = "int16",
) -> str:
    """Write a RAS-ordered array on the grid of `geometry`, as NIfTI; SHA-256 of the bytes written.

    path : .nii or .nii.gz.  data, dtype : as for `volume_bytes`.
    The bytes are those of `volume_bytes`, and the file appears whole or not at all.
    Raises UsageError for another suffix, HzError where the disk refuses, and what `volume_bytes` raises.
    """
    name = shown(path)
    lower = name.lower()
    if not lower.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{name}: hz writes .nii and .nii.gz.", f"Name it {stem(name)}.nii.gz")
    content = volume_bytes(data, geometry, dtype=dtype, zipped=lower.endswith(".gz"))
    atomic_write_bytes(Path(path), content)
    return sha256_bytes(content)


def volume_bytes(
    data: npt.NDArray[Any],
    geometry: Geometry,
    *,
    dtype: Literal["int16", "float32", "uint8"] = "int16",
    zipped: bool = True,
) -> bytes:
    """A RAS-ordered array on the grid of `geometry` as the bytes of a NIfTI file.

    data : (I, J, K) of geometry.ras_shape, finite.  zipped : for a .nii.gz.
    int16 stores round(data / slope) with slope = max|data| / 32767 and intercept 0: 0 stays exactly 0 and
    the error is slope / 2 at most (0.4 % more for float32 rounding). uint8 is for masks and labels: whole
    numbers from 0 to 255, or bool, stored as they are. The same input gives the same bytes
    (gzip without name or time). Affine, q/sform codes and units are those of `geometry`.
    Raises GridMismatch where the shapes differ, ValueError for values that are not finite or that uint8
    cannot hold.
    """
    data = np.asarray(data)
    slope = _slope(data, dtype)
    coded = _quantized(data, slope) if dtype == "int16" else _as_stored(data, dtype)
    stored = np.asfortranarray(geometry.from_ras(coded))
    pieces: list[bytes | memoryview] = [encode_header(geometry, stored.dtype, slope), stored.T.data]
    return gzipped(pieces) if zipped else b"".join(pieces)


def _slope(data: npt.NDArray[Any], dtype: str) -> float:
    if dtype not in ("int16", "float32", "uint8"):
        raise ValueError(f"write_volume: dtype is int16, float32 or uint8, not {dtype!r}.")
    largest = max(abs(float(data.max())), abs(float(data.min())))  # a NaN anywhere makes both NaN
    if not np.isfinite(np.float32(largest)):
        raise ValueError("write_volume: the data hold NaN, infinite or too large values.")
    if dtype != "int16" or largest == 0.0:
        return 1.0
    # As the header stores it, so that what is divided by here is what a reader multiplies with; rounded
    # up where float32 rounded down, so that the largest value still fits.
    slope = np.float32(max(largest / _INT16_MAX, float(np.finfo(np.float32).tiny)))
    return float(slope if float(slope) * _INT16_MAX >= largest else np.nextafter(slope, np.float32(np.inf)))


def _as_stored(data: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "float32":
        return data.astype("<f4", copy=False)
    if not (data.min() >= 0 and data.max() <= 255 and np.array_equal(coded := data.astype("u1"), data)):
        raise ValueError("write_volume: uint8 holds whole numbers from 0 to 255.")
    return coded


def _quantized(data: npt.NDArray[Any], slope: float) -> npt.NDArray[np.int16]:
    """round(data / slope), a few slices at a time: int16, in the memory order of `data`."""
    coded = np.empty_like(data, "<i2")
    inverse = np.float32(1.0 / slope)
    for start in range(0, data.shape[-1], _SLICES):
        part = data[..., start : start + _SLICES] * inverse
        coded[..., start : start + _SLICES] = np.rint(part, out=part)
    return coded
