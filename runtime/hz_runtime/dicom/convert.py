"""A series becomes NIfTI, through dcm2niix, without anything that says whose it is.

dcm2niix knows the vendors' private scaling, so it converts; but it sees neutral file names, its own sidecar
and its messages are thrown away, and of its file only voxels and geometry are copied, after the geometry was
compared with the one computed here from the slices' positions. The sidecar is written from the lists of
`deidentify`. The voxels are those of the scanner: a face can be rendered from them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hz_runtime.dicom import deidentify as de
from hz_runtime.dicom.frames import write_in_order
from hz_runtime.dicom.intake import no_room, private_folder
from hz_runtime.dicom.selection import judge
from hz_runtime.dicom.series import Series
from hz_runtime.errors import HzError, UnreadableScan, UsageError
from hz_runtime.io.atomic import atomic_write_bytes, gzipped
from hz_runtime.io.geometry import Array
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.io.nifti_header import HEAD_BYTES, ReadLimits, ScanHeader, encode_header, parse_header
from hz_runtime.io.programs import run_program

_MAX_SECONDS = 600
_SAME_MM = 0.05  # of every corner: dcm2niix works in float32
_DATATYPE, _SCL_INTER = 70, 116  # offsets in a NIfTI-1 header
# A hyphen may follow: hz-run makes names unique as NAME-<hash>.
_DIGITS = re.compile(rf"(?:sub|ses)-([0-9a-f]{{{de.NAME_DIGITS}}})(?:_run-(\d+))?(?![0-9A-Za-z])")


@dataclass(frozen=True)
class Converted:
    """Files written for a series.

    volume : .nii.gz.  sidecar : .json.  reference : .json that identifies the source, or None.
    """

    volume: Path
    sidecar: Path
    reference: Path | None


def output_name(series: Series, salt: str = de.SALT, keep_ids: bool = False) -> str:
    """sub-<12 hex digits>[_run-NN]_T1w, `_MR` in place of `_T1w` where the rules do not see a T1 weighting.

    keep_ids puts the letters and digits of the PatientID before them.
    """
    subject = de.pseudonym(series.uid, salt)
    if keep_ids:
        patient = re.sub(r"[^A-Za-z0-9]+", "", str(series.get("PatientID") or ""))[:40]
        subject = f"{patient}_ses-{subject}" if patient else subject
    run = f"_run-{series.part:02}" if series.part else ""
    return f"sub-{subject}{run}_{'T1w' if judge(series).weighting else 'MR'}"


def source_of(series: Sequence[Series], stem: str, salt: str = de.SALT) -> Series | None:
    """The series that a file was converted from, by the digits in its name, or None.

    stem : of a name of `convert`, or of a result, whatever hz-run put before and after it."""
    digits, part = digits_in(stem)
    for one in series:
        if digits == de.pseudonym(one.uid, salt) and one.part in (0, part):
            return one
    return None


def digits_in(stem: str) -> tuple[str, int]:
    """(a series' digits as `output_name` writes them, its part) in a name; ("", 0) where there are none.

    The last ones count: folders, and with keep_ids a PatientID that looks alike, come before them."""
    found = _DIGITS.findall(stem)
    digits, part = found[-1] if found else ("", "")
    return digits, int(part or 0)


def referenced(series: Sequence[Series], path: str | os.PathLike[str]) -> Series:
    """The series that a NAME_source.json, as `convert` writes it, is about.

    Raises UsageError where it is not such a file, or none of `series` is meant."""
    try:
        meant = json.loads(Path(path).read_text("utf-8"))
        uid, part = str(meant["SeriesInstanceUID"]), int(meant["Part"])
    except (OSError, *OTHER_FORM) as error:
        raise UsageError(
            "the reference is not a _source.json of hz-dicom convert --reference.",
            "Name the series by --series N.",
        ) from error
    found = next((s for s in series if s.uid == uid and s.part == part), None)
    if found is None:
        raise UsageError("the series of the reference is not there.", "Give the folder that was converted.")
    return found


def convert(
    series: Series,
    out: str | os.PathLike[str],
    *,
    salt: str = de.SALT,
    keep_ids: bool = False,
    keep_reference: bool = False,
) -> Converted:
    """Write `series` to the folder `out`, which is made.

    keep_ids : keep dcm2niix's header texts and whole sidecar, and name the file for the patient.
    keep_reference : also write NAME_source.json with the UIDs that writing back needs: it identifies.
    Same series and options, same bytes. Raises UnsupportedScan (not one volume), UnreadableScan (dcm2niix
    fails, or disagrees about geometry), UsageError (extra not installed), HzError (disk).
    """
    de.need("pydicom", "dcm2niix")
    series.placed()
    if keep_ids:
        series = _with_patient(series)
    folder, name = Path(out), output_name(series, salt, keep_ids)
    with private_folder() as temporary:
        try:
            converted, written_beside = _dcm2niix(series, temporary, keep_ids)
            content = _nifti(converted, series, keep_ids)
        except OSError as error:
            raise no_room(error) from error
    make_folder(folder)
    written = Converted(
        folder / f"{name}.nii.gz",
        folder / f"{name}.json",
        folder / f"{name}_source.json" if keep_reference else None,
    )
    facts = {**(written_beside if keep_ids else {}), **sidecar(series, keep_ids)}
    atomic_write_bytes(written.volume, gzipped([content]))
    atomic_write_bytes(written.sidecar, _json(facts))
    if written.reference is not None:
        atomic_write_bytes(written.reference, _json(source_reference(series)))
    return written


def sidecar(series: Series, keep_ids: bool = False) -> dict[str, Any]:
    """BIDS sidecar of a series: numbers (times in seconds) and known words only."""
    import dcm2niix

    from hz_runtime import __version__

    verdict = judge(series)

    def seconds(keyword: str) -> float | None:
        value = de.number(series.get(keyword))
        return None if value is None else round(value / 1000, 9)

    facts: dict[str, Any] = {
        "Modality": "MR",
        "MagneticFieldStrength": de.number(series.get("MagneticFieldStrength")),
        "Manufacturer": de.vendor(series.get("Manufacturer")),
        "ManufacturersModelName": de.model(series.get("ManufacturerModelName")),
        "ImageType": list(de.words(series.get("ImageType"), de.IMAGE_TYPES)),
        "MRAcquisitionType": "".join(de.words(series.get("MRAcquisitionType"), de.ACQUISITION_TYPES)),
        "ScanningSequence": "_".join(de.words(series.get("ScanningSequence"), de.SCANNING_SEQUENCES)),
        "SequenceVariant": "_".join(de.words(series.get("SequenceVariant"), de.SEQUENCE_VARIANTS)),
        "RepetitionTime": seconds("RepetitionTime"),
        "EchoTime": seconds("EchoTime"),
        "InversionTime": seconds("InversionTime"),
        "FlipAngle": de.number(series.get("FlipAngle")),
        "SliceThickness": de.number(series.get("SliceThickness")),
        "ContrastBolusAgent": "given" if verdict.contrast_agent else None,  # which one is text of the header
        "Weighting": verdict.reason,
        "Identity": "kept on request" if keep_ids else "not copied",
        "ConversionSoftware": "dcm2niix, hz",
        "ConversionSoftwareVersion": f"{dcm2niix.__version__}, {__version__}",
    }
    return {key: value for key, value in facts.items() if value not in (None, "", [])}


def source_reference(series: Series) -> dict[str, Any]:
    """What writing results back needs to find the source: UIDs, in slice order. It identifies the patient to
    whoever can ask the archive."""
    return {
        "StudyInstanceUID": series.study_uid,
        "SeriesInstanceUID": series.uid,
        "Part": series.part,
        "SOPInstanceUIDs": list(dict.fromkeys(s.sop_uid for s in series.slices)),
    }


def _with_patient(series: Series) -> Series:
    from dataclasses import replace

    from pydicom import dcmread

    with de.quiet():
        whole = dcmread(series.files[0], force=True, stop_before_pixels=True)
        whole.update({e.tag: e for e in series.head})
    return replace(series, head=whole)


def _dcm2niix(series: Series, folder: Path, keep_ids: bool) -> tuple[Path, dict[str, Any]]:
    """(NIfTI file, its sidecar) made in `folder`."""
    import dcm2niix

    source, target = folder / "in", folder / "out"
    source.mkdir()
    target.mkdir()
    for number, path in enumerate(series.files, 1):
        _staged(path, series, source / f"{number:06}.dcm")
    command = [dcm2niix.bin, "-b", "y" if keep_ids else "n", "-ba", "n", "-f", "scan", "-z", "n", "-i", "n"]
    command += ["-l", "o", "-x", "n", "-g", "i", "-w", "2", "-m", "y", "-o", str(target), str(source)]
    given = 4 * math.prod(series.shape)
    for path in series.files:
        with suppress(OSError):
            given += path.stat().st_size
    try:
        done = run_program(command, target, seconds=_MAX_SECONDS, given=given)
    except OSError as error:
        raise HzError(f"dcm2niix cannot be started ({error.strerror}).", "Install it again.") from error
    if done.code is None:
        raise UnreadableScan(f"dcm2niix took more than {_MAX_SECONDS:g} s.", "Export the series again.")
    if done.crashed:
        raise UnreadableScan(
            f"series {series.number}: dcm2niix crashed (signal {-done.code}).", "Export the series again."
        )
    if done.code < 0:
        raise HzError(
            f"series {series.number}: dcm2niix was ended from outside (signal {-done.code}).",
            "Most often memory ran out: run the same command again.",
        )
    # Its messages quote the header: they are not shown.
    found = sorted(p for p in target.iterdir() if p.suffix == ".nii")
    if len(found) != 1:
        what = (
            f"made {len(found)} volumes of it, so that something it splits by differs between the images "
            "(StudyTime, or a slice that is missing or doubled)"
            if found
            else f"could not convert it (exit {done.code})"
        )
        raise UnreadableScan(
            f"series {series.number}: dcm2niix {what}.", "Export the series again, or pick another one."
        )
    beside = found[0].with_suffix(".json")
    written_beside: dict[str, Any] = {}
    if beside.is_file():
        with suppress(ValueError):  # it copies texts of the header into it, whatever they are
            written_beside = dict(json.loads(beside.read_text("utf-8", "replace")))
    return found[0], written_beside


def _staged(path: Path, series: Series, target: Path) -> None:
    frames = [s for s in series.slices if s.path == path]
    if frames[0].frame is not None:
        write_in_order(path, frames, target)
        return
    try:
        target.symlink_to(os.path.abspath(path))
    except OSError:  # a system without links
        shutil.copyfile(path, target)


def _nifti(path: Path, series: Series, keep_ids: bool) -> bytes:
    """The content of the .nii to write: checked, with a header that hz filled."""
    data = path.read_bytes()
    name = f"series {series.number}"
    header = parse_header(data[:HEAD_BYTES], name, ReadLimits())
    voxels = data[header.offset : header.offset + header.data_bytes]
    if len(voxels) < header.data_bytes:
        raise UnreadableScan(f"{name}: dcm2niix wrote too little.", "Make room on the disk.")
    if header.voxels != math.prod(series.shape):
        raise UnreadableScan(
            f"{name}: dcm2niix put {' x '.join(map(str, header.geometry.shape))} voxels into its volume; the "
            f"series has {' x '.join(map(str, series.shape))}.",
            "Export the series again, whole and not resorted.",
        )
    difference = geometry_difference(
        header.geometry.affine, header.geometry.shape, series.placed(), series.shape
    )
    if not difference <= _SAME_MM:
        raise UnreadableScan(
            f"{name}: dcm2niix and the slices' own positions disagree about where it lies "
            f"(by {difference:.3g} mm).",
            "Export the series again, whole and not resorted.",
        )
    stored = np.frombuffer(voxels, header.dtype)
    scaled = _scaled_by_slice(stored, header, series)
    if keep_ids and scaled is None:
        return data
    if scaled is not None:
        values: bytes = scaled.astype("<f4").tobytes("F")
        return _float_header(data[: header.offset], header, keep_ids) + values
    clean = bytearray(encode_header(header.geometry, header.dtype, header.slope))
    struct.pack_into("<f", clean, _SCL_INTER, header.inter)
    return bytes(clean) + stored.astype(header.dtype.newbyteorder("<")).tobytes()


def _float_header(head: bytes, header: ScanHeader, keep_ids: bool) -> bytes:
    """The header of the same volume in float32, unscaled; with the texts of dcm2niix where they stay."""
    if not keep_ids:
        return encode_header(header.geometry, np.float32, 1.0)
    kept = bytearray(head)
    struct.pack_into("<hh", kept, _DATATYPE, 16, 32)
    struct.pack_into("<ff", kept, _SCL_INTER - 4, 1.0, 0.0)
    return bytes(kept)


def _scaled_by_slice(stored: Any, header: ScanHeader, series: Series) -> Any:
    """The volume, (I, J, K) float32, where slices have slopes of their own and dcm2niix left their integers
    alone; else None.

    It makes them floats itself, but not in multi-frame files of Siemens and GE: there 1.0.20260724 takes one
    slope for all (findings/dcm2niix_frame_slopes.sh).
    """
    scalings = {s.scaling for s in series.slices}
    mapped = index_map(header.geometry.affine, series.placed())
    if len(scalings) < 2 or header.dtype.kind == "f" or mapped is None:
        return None
    axes, signs = mapped
    slopes, intercepts = np.array([s.scaling for s in series.slices], np.float32)[:: signs[2]].T
    along = tuple(-1 if axis == axes[2] else 1 for axis in range(3))
    volume = stored.reshape(header.geometry.shape, order="F").astype(np.float32)
    return volume * slopes.reshape(along) + intercepts.reshape(along)


def geometry_difference(
    volume: Array, volume_shape: tuple[int, ...], stack: Array, stack_shape: tuple[int, ...]
) -> float:
    """Largest distance in mm between the voxel centres of two arrays whose axes may run otherwise;
    infinite where no order and direction of axes makes them meet.
    volume, stack : (4, 4), indices -> the same world."""
    mapped = index_map(volume, stack)
    if mapped is None:
        return float("inf")
    axes, signs = mapped
    if tuple(volume_shape[a] for a in axes) != tuple(stack_shape):
        return float("inf")
    corners = np.array(np.meshgrid(*((0, n - 1) for n in stack_shape), indexing="ij")).reshape(3, -1)
    there = np.empty_like(corners)
    for source, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        there[axis] = corners[source] if sign > 0 else stack_shape[source] - 1 - corners[source]
    one = stack[:3, :3] @ corners + stack[:3, 3:]
    other = volume[:3, :3] @ there + volume[:3, 3:]
    return float(np.linalg.norm(one - other, axis=0).max())


def index_map(volume: Array, stack: Array) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """For each axis of `stack` the axis of `volume` that runs along it, and its sign; None where they do not
    run along each other. Both (4, 4), indices -> the same world."""
    turn = np.linalg.solve(volume[:3, :3], stack[:3, :3])
    axes = np.argmax(abs(turn), axis=0).tolist()
    if sorted(axes) != [0, 1, 2]:
        return None
    signs = [1 if turn[a, n] > 0 else -1 for n, a in enumerate(axes)]
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def make_folder(folder: Path) -> None:
    """Make a folder for results where there is none. Raises UsageError, also where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is read-only, or you have no permission to write")
    except OSError as error:
        raise UsageError(
            f"the output folder cannot be made or written ({error.strerror}).", "Name another one:  --out DIR"
        ) from error
