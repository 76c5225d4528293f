"""The reader contract: what a scan's header must say before a byte of its voxels is touched.

NIfTI-1 and NIfTI-2 of either byte order and MGH are read by hand from fixed offsets (nifti1.h,
nifti2.h, FreeSurfer's mri.h). General readers let zero dimensions, a singular affine and an infinite
slope pass; here each is refused with its reason, and nothing is allocated on a header's word alone.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hz_runtime.errors import UnreadableScan, UnsupportedScan
from hz_runtime.io.geometry import (
    MILLIMETRES,
    Array,
    Geometry,
    affine_fault,
    affine_from_quaternion,
    affine_from_sizes,
    spacing_of,
)

HEAD_BYTES = 540  # enough for any of the three headers
MIN_DIM = 8  # voxels; below that an image is a slice, a strip or a test pattern, not a head
_MAX_OFFSET = 1 << 24  # header extensions of 16 MiB: far beyond any seen
_MGH_OFFSET, _MGH_FOOTER = 284, 1 << 22  # MGH keeps tags (history, colour tables) after the voxels
_VOXEL_MM = (0.02, 50.0)  # smaller or larger voxels mean a wrong unit or a damaged header
_FAR_MM = 1e6

_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_MGH_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_COLOUR = {128: "RGB", 2304: "RGBA"}
_COMPLEX = {32: "complex64", 1792: "complex128", 2048: "complex256"}
_OTHER_TYPES = {0: "no data type", 1: "1-bit", 1536: "float128"}


@dataclass(frozen=True)
class ReadLimits:
    """How much of a stranger's file hz is willing to take in.

    max_dim : voxels along one axis.  max_voxels : in the whole volume.
    max_file_bytes : on disk.
    """

    max_dim: int = 1024
    max_voxels: int = 2**28
    max_file_bytes: int = 2**30


@dataclass(frozen=True)
class ScanHeader:
    """A header that passed every check.

    dtype : of the stored voxels, byte order included.  value = stored * slope + inter.
    offset : bytes before the first voxel.  footer : bytes that may follow the last one.
    """

    geometry: Geometry
    dtype: np.dtype[Any]
    slope: float
    inter: float
    offset: int
    footer: int

    @property
    def voxels(self) -> int:
        return math.prod(self.geometry.shape)

    @property
    def data_bytes(self) -> int:
        return self.voxels * self.dtype.itemsize


def _layout(itemsize: int, fields: str) -> np.dtype[Any]:
    rows = [field.split(":") for field in fields.split()]
    offsets, names, formats = zip(*rows, strict=True)
    spec = {"names": names, "formats": formats, "offsets": [int(o) for o in offsets], "itemsize": itemsize}
    return np.dtype(spec)  # type: ignore[call-overload, no-any-return]


# offset:name:format, of nifti1.h and nifti2.h
_NIFTI1 = _layout(
    348,
    "0:sizeof_hdr:<i4 40:dim:8<i2 68:intent_code:<i2 70:datatype:<i2 72:bitpix:<i2 76:pixdim:8<f4 "
    "108:vox_offset:<f4 112:scl_slope:<f4 116:scl_inter:<f4 123:xyzt_units:u1 "
    "124:cal:2<f4 148:descrip:S80 252:qform_code:<i2 254:sform_code:<i2 256:quatern:3<f4 268:qoffset:3<f4 "
    "280:srow:(3,4)<f4 344:magic:S4",
)
_NIFTI2 = _layout(
    540,
    "0:sizeof_hdr:<i4 4:magic:S8 12:datatype:<i2 14:bitpix:<i2 16:dim:8<i8 104:pixdim:8<f8 "
    "168:vox_offset:<i8 176:scl_slope:<f8 184:scl_inter:<f8 192:cal:2<f8 240:descrip:S80 344:qform_code:<i4 "
    "348:sform_code:<i4 352:quatern:3<f8 376:qoffset:3<f8 400:srow:(3,4)<f8 500:xyzt_units:<i4 "
    "504:intent_code:<i4",
)


def parse_header(head: bytes, name: str, limits: ReadLimits) -> ScanHeader:
    """Read and check the header at the start of an (inflated) scan.

    head : its first HEAD_BYTES bytes, fewer where the file is shorter.  name : for messages.
    Raises UnreadableScan (not a scan, damaged, over the limits) or UnsupportedScan (a sound file that
    is not one real-valued 3-D volume).
    """
    with np.errstate(all="ignore"):  # damaged numbers are refused by checks, not by warnings
        return _parse(head, name, limits)


def _parse(head: bytes, name: str, limits: ReadLimits) -> ScanHeader:
    for layout, version in ((_NIFTI1, 1), (_NIFTI2, 2)):
        for order in _ORDERS:
            if len(head) >= 4 and struct.unpack(f"{order}i", head[:4])[0] == layout.itemsize:
                if len(head) < layout.itemsize:
                    raise _damaged(name, f"it ends inside its NIfTI-{version} header")
                record = np.frombuffer(head, layout.newbyteorder(order), count=1)[0]
                return _nifti(record, version, order, name, limits)
    if head[:4] == b"\0\0\0\1" and len(head) >= 6:
        return _mgh(head, name, limits)
    if head[344:347] in (b"n+1", b"ni1"):
        raise _damaged(name, "its header size field is not 348")
    raise UnreadableScan(
        f"{name}: not a NIfTI or MGZ volume{_guess(head)}.",
        "Convert it to .nii.gz:  dcm2niix (DICOM), mri_convert (others).",
    )


def _guess(head: bytes) -> str:
    known = {
        b"\x89HDF": "MINC-2 or HDF5", b"CDF": "MINC-1 or netCDF", b"NRRD": "NRRD",
        b"PK\x03\x04": "a zip archive", b"BZh": "bzip2-compressed", b"\x28\xb5\x2f\xfd": "zstd-compressed",
        b"\xfd7zXZ": "xz-compressed", b"\x1f\x8b": "compressed twice", b"\x89PNG": "a PNG picture",
        b"\xff\xd8\xff": "a JPEG picture",
        b"version https://git-lfs": "a Git LFS pointer: the scan itself was not downloaded",
    }  # fmt: skip
    if head[128:132] == b"DICM":
        return " (it is DICOM)"
    return next((f" (it is {what})" for magic, what in known.items() if head.startswith(magic)), "")


def _nifti(record: Any, version: int, order: Literal["<", ">"], name: str, limits: ReadLimits) -> ScanHeader:
    magic = bytes(record["magic"])[:3]
    _check_magic(magic, version, int(record["intent_code"]), name)
    dtype = _nifti_dtype(int(record["datatype"]), name).newbyteorder(order)
    shape = _checked_shape([int(n) for n in record["dim"]], name, limits)
    slope, inter = _checked_scaling(float(record["scl_slope"]), float(record["scl_inter"]), name)
    offset = _checked_offset(float(record["vox_offset"]), 352 if version == 1 else 544, name)
    return ScanHeader(_nifti_geometry(record, shape, version, name), dtype, slope, inter, offset, footer=0)


def _check_magic(magic: bytes, version: int, intent: int, name: str) -> None:
    if 3000 <= intent < 3100:
        raise UnsupportedScan(
            f"{name}: a CIFTI-2 file (surface or connectivity data), not a volume.",
            "Give hz the T1-weighted volume it was made from.",
        )
    if magic == b"n+%d" % version:
        return
    if magic == b"ni%d" % version:
        raise UnsupportedScan(
            f"{name}: the header half of a NIfTI .hdr/.img pair.",
            f"Merge the pair into one file:  fslchfiletype NIFTI_GZ {name}",
        )
    if version == 1 and magic in (b"", b"\0\0\0"):
        raise UnsupportedScan(
            f"{name}: Analyze 7.5, which does not say left from right.",
            "Convert it to NIfTI where the orientation is known:  mri_convert, fslchfiletype NIFTI_GZ",
        )
    raise _damaged(name, f"its NIfTI-{version} magic is {magic!r}")


def _checked_shape(dim: list[int], name: str, limits: ReadLimits) -> tuple[int, int, int]:
    """dim : NIfTI's eight, the number of axes first."""
    axes = dim[0]
    if not 1 <= axes <= 7:
        raise _damaged(name, f"it claims {axes} axes")
    used = dim[1 : axes + 1]
    text = "x".join(str(n) for n in used)
    if min(used) < 1:
        raise _damaged(name, f"it claims {text} voxels")
    if axes < 3:
        raise UnsupportedScan(f"{name}: a {axes}-D image of {text}; hz needs a 3-D head.", _PICK)
    frames, extra = [*used, 1][3], math.prod(used[4:])
    if extra > 1:
        raise UnsupportedScan(f"{name}: {axes} axes ({text}); hz needs one 3-D volume.", _PICK)
    if frames > 1:
        nifti = name.endswith((".nii", ".nii.gz"))
        bare = name.removesuffix(".gz").removesuffix(".nii")  # as FSL takes it
        command = f"fslroi {bare} frame 0 1" if nifti else f"mri_convert --frame 0 {name} frame.nii.gz"
        raise UnsupportedScan(
            f"{name}: {frames} frames; hz takes one T1-weighted volume at a time.",
            f"Pick the T1w file, or extract a frame:  {command}",
        )
    i, j, k = used[:3]
    if max(i, j, k) > limits.max_dim or i * j * k > limits.max_voxels:
        raise UnreadableScan(
            f"{name}: {i}x{j}x{k} voxels; the limit is {limits.max_dim} along an axis and "
            f"{limits.max_voxels} in all.",
            "Resample it to a coarser grid, or check that its header is sound.",
        )
    if min(i, j, k) < MIN_DIM:
        raise UnsupportedScan(
            f"{name}: {i}x{j}x{k} voxels; a head needs {MIN_DIM} or more along each axis.", _PICK
        )
    return i, j, k


_PICK = "Pick the T1-weighted 3-D volume of this subject."


def _nifti_dtype(code: int, name: str) -> np.dtype[Any]:
    if code in _NIFTI_TYPES:
        return np.dtype(_NIFTI_TYPES[code])
    if code in _COLOUR:
        raise UnsupportedScan(f"{name}: {_COLOUR[code]} colours, not intensities.", _PICK)
    if code in _COMPLEX:
        raise UnsupportedScan(
            f"{name}: {_COMPLEX[code]} values; hz needs magnitudes.",
            f"Take the magnitude:  fslcomplex -realabs {name} magnitude",
        )
    if code in _OTHER_TYPES:
        raise UnsupportedScan(f"{name}: {_OTHER_TYPES[code]} voxels, which hz does not read.", _AS_FLOAT)
    raise _damaged(name, f"its data type code {code} does not exist")


_AS_FLOAT = "Convert it to 32-bit floats:  mri_convert -odt float, or fslmaths IN OUT -odt float"


def _checked_scaling(slope: float, inter: float, name: str) -> tuple[float, float]:
    """(slope, intercept) to apply.

    nifti1.h: a slope of 0 means unscaled, whatever the intercept says. So does one that is not finite, as
    fMRIPrep writes it, to nibabel, SimpleITK and niimath. A slope that counts beside an intercept that is no
    number is damage, to nibabel, too.
    """
    if slope == 0.0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise _damaged(name, f"its intensity scaling is not finite (slope {slope:g}, intercept {inter})")
    return slope, inter


def _checked_offset(value: float, first: int, name: str) -> int:
    if value == 0:
        return first  # some writers leave it; the exact length of the file settles it
    if not (first <= value <= _MAX_OFFSET and value == int(value)):
        raise _damaged(name, f"its voxels are said to start at byte {value:g}")
    return int(value)


def _nifti_geometry(record: Any, shape: tuple[int, int, int], version: int, name: str) -> Geometry:
    qform_code, sform_code = max(int(record["qform_code"]), 0), max(int(record["sform_code"]), 0)
    units, mm = _millimetres(record)
    di, dj, dk = (abs(float(v)) * mm for v in record["pixdim"][1:4])
    qfac = -1.0 if record["pixdim"][0] < 0 else 1.0  # nifti1.h: 0 means 1
    quaternion = (qfac, *record["quatern"].tolist(), *(record["qoffset"].astype(np.float64) * mm).tolist())
    srow = record["srow"].astype(np.float64) * mm
    sform = np.vstack([srow, (0.0, 0.0, 0.0, 1.0)]) if sform_code else None
    turned = _qform(quaternion, (di, dj, dk))
    qform = turned if qform_code else None
    if sform is not None:
        affine, source = sform, "sform"
    elif qform is not None:
        affine, source = qform, "qform"
    else:
        affine, source = affine_from_sizes(shape, (di, dj, dk)), "voxel sizes alone"
    _check_affine(affine, source, name)
    if affine_fault(turned):  # unused, and not worth passing on
        qform, qform_code, quaternion = None, 0, (1.0,) + (0.0,) * 6
    if not 0.0 < min(di, dj, dk) <= max(di, dj, dk) < math.inf:
        di, dj, dk = spacing_of(affine).tolist()
    return Geometry(
        shape, affine, qform, sform, qform_code, sform_code, units, version, quaternion, (di, dj, dk)
    )  # fmt: skip


def _millimetres(record: Any) -> tuple[int, float]:
    """The units byte of the geometry, and by what the header's lengths are multiplied to be in mm.

    nifti1.h: pixdim, offsets and srow are in the unit of xyzt_units. Most readers
    never look (findings/nifti_units.sh), so that wrong units go unseen: one is believed where the voxels
    would else be no head's.
    """
    units = int(record["xyzt_units"]) & 0xFF
    to_mm = {1: 1000.0, 3: 0.001}.get(units & 7, 1.0)  # metres, micrometres; bits 3 to 5 are the unit of time
    sizes = np.abs(record["pixdim"][1:4].astype(np.float64))
    low, high = _VOXEL_MM
    as_they_are, converted = (low <= n.min() <= n.max() <= high for n in (sizes, sizes * to_mm))
    return (units & ~7 | MILLIMETRES, to_mm) if converted and not as_they_are else (units, 1.0)


def _qform(quaternion: tuple[float, ...], pixdim: tuple[float, float, float]) -> Array:
    # Not a rotation: NaN, which _check_affine names where the qform is the affine in use.
    if not all(map(math.isfinite, (*quaternion, *pixdim))) or math.hypot(*quaternion[1:4]) > 1.01:
        return np.full((4, 4), np.nan)
    return affine_from_quaternion(quaternion, pixdim)


def _check_affine(affine: Array, source: str, name: str) -> None:
    fault = affine_fault(affine)
    if fault:
        raise UnreadableScan(
            f"{name}: its affine ({source}) cannot place the volume: {fault}.",
            "Repair the header from the original DICOM, or copy a sound qform:  fslorient -qform2sform",
        )
    sizes = spacing_of(affine)
    if sizes.min() < _VOXEL_MM[0] or sizes.max() > _VOXEL_MM[1]:
        text = " x ".join(f"{s:.4g}" for s in sizes)
        raise UnreadableScan(
            f"{name}: voxels of {text} mm; a head scan has {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm.",
            "Check the unit (xyzt_units) of the program that wrote it.",
        )
    if np.abs(affine[:3, 3]).max() > _FAR_MM:
        raise _damaged(name, f"its first voxel lies {np.abs(affine[:3, 3]).max():.3g} mm from the origin")


def _mgh(head: bytes, name: str, limits: ReadLimits) -> ScanHeader:
    if len(head) < _MGH_OFFSET:
        raise _damaged(name, "it ends inside its MGH header")
    _, i, j, k, frames, code, _, good, *numbers = struct.unpack(">7ih15f", head[:90])
    shape = _checked_shape([4, i, j, k, frames], name, limits)
    if code not in _MGH_TYPES:
        raise UnsupportedScan(f"{name}: MGH data type {code}, which hz does not read.", _AS_FLOAT)
    delta, centre = np.array(numbers[:3]), np.array(numbers[12:])
    cosines = np.array(numbers[3:12]).reshape(3, 3).T
    if not good:  # FreeSurfer's default: coronal (left, down, front), 1 mm, centred; nibabel's is another
        delta, centre = np.ones(3), np.zeros(3)
        cosines = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    affine = np.eye(4)
    affine[:3, :3] = cosines * delta
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2.0)
    _check_affine(affine, "MGH direction cosines", name)
    geometry = replace(Geometry.from_affine(shape, affine, code=1), guessed=not good)
    return ScanHeader(geometry, np.dtype(">" + _MGH_TYPES[code]), 1.0, 0.0, _MGH_OFFSET, _MGH_FOOTER)


def encode_header(
    geometry: Geometry, dtype: npt.DTypeLike, slope: float, window: tuple[float, float] = (0.0, 0.0)
) -> bytes:
    """The little-endian NIfTI header (352 or 544 bytes) of a volume on `geometry`.

    dtype : of the voxels that follow, one hz also reads.  slope : value = stored * slope.
    window : values that viewers show as black and as white (cal_min, cal_max); equal for none.
    Codes, units, srow and quaternion are those of the geometry, bit for bit.
    """
    kind = np.dtype(dtype)
    layout, first = (_NIFTI1, 352) if geometry.version == 1 else (_NIFTI2, 544)
    record = np.zeros((), layout)
    record["sizeof_hdr"] = layout.itemsize
    record["magic"] = b"n+1" if geometry.version == 1 else b"n+2\0\r\n\x1a\n"
    record["dim"] = (3, *geometry.shape, 1, 1, 1, 1)
    record["datatype"] = next(c for c, t in _NIFTI_TYPES.items() if np.dtype(t) == kind)
    record["bitpix"] = kind.itemsize * 8
    record["pixdim"] = (geometry.quaternion[0], *geometry.pixdim, 0, 0, 0, 0)
    record["vox_offset"], record["scl_slope"] = first, slope
    record["xyzt_units"], record["descrip"] = geometry.xyzt_units, b"hz"
    record["cal"] = window[::-1]  # cal_max comes first
    record["qform_code"], record["sform_code"] = geometry.qform_code, geometry.sform_code
    record["quatern"], record["qoffset"] = geometry.quaternion[1:4], geometry.quaternion[4:]
    if geometry.sform is not None:
        record["srow"] = geometry.sform[:3]
    return record.tobytes().ljust(first, b"\0")  # four zero bytes: no extensions


def _damaged(name: str, what: str) -> UnreadableScan:
    return UnreadableScan(f"{name}: the header is damaged: {what}.", "Copy or export the scan again.")
