"""A harmonized volume as a derived MR series on the slices it came from.

Every source slice gets one new single-frame MR image of the same place, size and frame of reference,
marked as derived, with references to its source. Only on request does it carry the source's patient and
study, to go back into the record: it is then as identifying as the source. Else it has a study of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hz_runtime.dicom import deidentify as de
from hz_runtime.dicom.convert import geometry_difference, index_map
from hz_runtime.dicom.deidentify import listed
from hz_runtime.dicom.encoding import EncodedAlike
from hz_runtime.dicom.export_folder import replacing
from hz_runtime.dicom.intake import private_folder
from hz_runtime.dicom.planes import PLACE, Slice
from hz_runtime.dicom.series import Series
from hz_runtime.errors import GridMismatch
from hz_runtime.io.atomic import write_synced
from hz_runtime.io.nifti_header import HEAD_BYTES, ReadLimits, parse_header
from hz_runtime.io.verified_stream import ScanStream
from hz_runtime.io.volume import Volume, read_volume, write_volume

Int16 = npt.NDArray[np.int16]
RESEARCH = "Research use only. Not for diagnosis."
SERIES_NUMBER_ADDED = 9000  # keeps derived series behind the scanner's own in a viewer's list
_SAME_MM = 0.05
_WRITERS = 16
_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
# PS3.3 C.7.1.1, C.7.2.1, C.7.2.2: modules of patient and study, type 2 elements empty where unknown.
TYPE_2 = listed(
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber "
    "ReferringPhysicianName StudyID"
)
PATIENT_AND_STUDY = listed(
    "SpecificCharacterSet IssuerOfPatientID OtherPatientIDs PatientAge PatientSize "
    "PatientWeight PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence "
    "StudyDescription InstitutionName LossyImageCompression LossyImageCompressionRatio "
    "LossyImageCompressionMethod FrameOfReferenceUID PositionReferenceIndicator BodyPartExamined"
)
_ACQUISITION = listed(
    "ScanningSequence SequenceVariant ScanOptions MRAcquisitionType RepetitionTime EchoTime InversionTime "
    "EchoTrainLength FlipAngle MagneticFieldStrength AcquisitionDate AcquisitionTime AcquisitionNumber "
    "SliceThickness SpacingBetweenSlices PatientPosition"
)

_ACQUISITION_TYPE_2 = listed(
    "ScanOptions MRAcquisitionType RepetitionTime EchoTime EchoTrainLength SliceThickness PatientPosition "
    "PositionReferenceIndicator"
)


@dataclass(frozen=True)
class Origin:
    """Who made a result, and what was noted about it, for its records.

    version : of hz.  bundle, bundle_id : of the models; may be empty.  created : when, with a time zone; by
    default now, or $SOURCE_DATE_EPOCH (seconds since 1970) where objects are to be the same bytes again.
    flags : what hz-run found unusual about the scan, in words.
    options : fingerprint of the options that shaped the result; may be empty.
    """

    version: str
    bundle: str = ""
    bundle_id: str = ""
    created: datetime = field(default_factory=lambda: _now())
    flags: tuple[str, ...] = ()
    options: str = ""

    def key(self, series: Series) -> tuple[object, ...]:
        """What the UIDs of a result's objects are made of: its source, image by image, and what made it.

        No time, and nothing that another engine rounds otherwise: an archive that is sent the same result
        again finds the same objects, and half a series is another source than the whole."""
        images = sorted({plane.sop_uid for plane in series.slices})
        return (series.uid, series.part, *images, self.version, self.bundle_id, self.options)

    @property
    def comment(self) -> str:
        """The flags and the intended use, for people."""
        noted = f"Flagged by hz: {'; '.join(self.flags)}. " if self.flags else ""
        return f"{noted}{RESEARCH}".encode("ascii", "replace").decode()[:10240]

    @property
    def local(self) -> tuple[str, str]:
        """Date and time of `created` where hz runs, as DA and TM: no time zone is stated in the objects."""
        there = self.created.astimezone()
        return there.strftime("%Y%m%d"), there.strftime("%H%M%S")

    @property
    def software(self) -> list[str]:
        """SoftwareVersions: at most 64 characters each."""
        return [f"hz {self.version}"[:64], *([f"bundle {self.bundle}"[:64]] if self.bundle else [])]


def _now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)


def new_uid(*parts: object) -> str:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` alone."""
    digest = bytearray(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16])
    digest[6], digest[8] = (digest[6] & 0x0F) | 0x80, (digest[8] & 0x3F) | 0x80  # RFC 9562, version 8
    return f"2.25.{int.from_bytes(digest, 'big')}"


def study_of(series: Series, keep_ids: bool = True) -> str:
    """The source's StudyInstanceUID; a new one where it has none, or where its patient is left out."""
    own = series.study_uid or new_uid("study", series.uid)
    return own if keep_ids else new_uid("study without identity", own)


def taken_out(data: Any, series: Series, salt: str) -> None:
    """Make a Dataset, of what a derived object takes over from `series`, one without identity."""
    de.without_identity(data, f"sub-{de.pseudonym(series.uid, salt)}", (*TYPE_2, *PATIENT_AND_STUDY))


def write_derived(
    volume: str | os.PathLike[str],
    series: Series,
    out: str | os.PathLike[str],
    origin: Origin,
    keep_ids: bool = False,
    salt: str = de.SALT,
) -> list[Path]:
    """Write the scan file `volume` to `out` as MR_0001.dcm, ... in the order of the source's slices.

    keep_ids : carry the source's patient and study.  salt : see `deidentify.pseudonym`; for what else the
    patient is named.

    An integer file whose values fit int16 keeps them and its slope: value = stored * RescaleSlope +
    RescaleIntercept to the last bit. Anything else is first rounded as `write_volume` rounds to int16.
    An earlier export of the series to `out`, with its report, goes once all are written.
    Raises GridMismatch where the volume does not lie on the series' own voxels, UnsupportedScan for a series
    without geometry, what `read_volume` raises, UsageError (extra not installed, an export of another series
    in `out`), HzError (disk); `out` then holds what it held.
    """
    de.need("pydicom")
    with replacing(out, series) as folder:
        names = write_images(volume, read_volume(volume), series, folder, origin, keep_ids, salt)
    return [Path(out) / name for name in names]


def write_images(
    volume: str | os.PathLike[str],
    scan: Volume,
    series: Series,
    folder: Path,
    origin: Origin,
    keep_ids: bool,
    salt: str,
) -> list[str]:
    """`write_derived` to a folder of `replacing`; returns the files' names.  scan : what `volume` holds."""
    codes, slope, intercept = stored_values(volume, scan)
    planes = on_slices(codes, scan.affine, series)
    with de.quiet(), ThreadPoolExecutor(_WRITERS) as pool:
        common = _common(series, origin, keep_ids, salt)
        common.update(_scaling(codes, slope, intercept))
        names = [f"MR_{index + 1:04}.dcm" for index in range(len(series.slices))]
        alike = EncodedAlike(common)
        contents = (alike.encoded(_own(common, series, n, plane)) for n, plane in enumerate(planes))
        # A disk syncs several as fast as one.
        list(pool.map(write_synced, [folder / name for name in names], contents))
    return names


def stored_values(path: str | os.PathLike[str], scan: Volume) -> tuple[Int16, float, float]:
    """(codes, slope, intercept): int16 in the order of `scan.data`, with data = codes * slope + intercept."""
    limits = ReadLimits()
    with ScanStream(path, limits.max_file_bytes) as stream:
        header = parse_header(stream.head(HEAD_BYTES), stream.name, limits)
    if header.dtype.kind in "iu" and scan.missing is None:
        exact = np.rint((scan.data.astype(np.float64) - header.inter) / header.slope)
        again = (exact * header.slope + header.inter).astype(np.float32)
        fits = exact.min() >= -32768 and exact.max() <= 32767
        # float32 as read_volume computes it may differ in its last bit from the double product.
        if fits and np.allclose(again, scan.data, rtol=3e-7, atol=0):
            return exact.astype(np.int16), header.slope, header.inter
    with private_folder() as folder:
        rounded = folder / "rounded.nii"
        write_volume(rounded, scan.data, scan.geometry, dtype="int16")
        return stored_values(rounded, read_volume(rounded))


def on_slices(codes: Int16, affine: npt.NDArray[np.float64], series: Series) -> Int16:
    """(slices, rows, columns) view of an array that lies on the voxels of `series`, whatever its axes' order.

    affine : (4, 4), indices of `codes` -> RAS mm. Raises GridMismatch, UnsupportedScan.
    """
    stack = series.placed()
    apart = geometry_difference(affine, codes.shape, stack, series.shape)
    mapped = index_map(affine, stack)
    if mapped is None or not apart <= _SAME_MM:
        size = " x ".join(map(str, codes.shape))
        raise GridMismatch(
            f"the volume ({size}) does not lie on the voxels of series {series.number} "
            f"({' x '.join(map(str, series.shape))}).",
            "Give the series that was converted, and a volume of  hz-run --space native",
        )
    axes, signs = mapped
    turned = codes.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    return turned.transpose(2, 1, 0)


def code(value: str, scheme: str, meaning: str) -> Any:
    """A one-item code sequence."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return [item]


def _common(series: Series, origin: Origin, keep_ids: bool, salt: str) -> Any:
    """Everything that all images of the new series share."""
    from pydicom import dcmread

    source = dcmread(series.files[0], force=True, stop_before_pixels=True)
    image = _taken_over(source, series, keep_ids, salt)
    image.update(_provenance(source, origin, keep_ids))
    image.SeriesNumber = SERIES_NUMBER_ADDED + int(de.number(source.get("SeriesNumber")) or 0) % 10**6
    image.StudyInstanceUID = study_of(series, keep_ids)
    image.SeriesInstanceUID = new_uid("series", *origin.key(series))
    if not image.get("FrameOfReferenceUID"):
        image.FrameOfReferenceUID = new_uid("frame of reference", series.uid)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Columns, image.Rows = series.shape[:2]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    return image


def _taken_over(source: Any, series: Series, keep_ids: bool, salt: str) -> Any:
    """Patient, study and acquisition of the source; types 1 and 2 are there (PS3.3 C.8.3.1)."""
    from pydicom.dataset import Dataset

    image = Dataset()
    for keyword in (*TYPE_2, *PATIENT_AND_STUDY, *_ACQUISITION):
        if keyword in source:
            image[keyword] = source[keyword]
        elif series.get(keyword) is not None:  # of a multi-frame file
            _set(image, keyword, series.get(keyword))
    if not keep_ids:
        taken_out(image, series, salt)
    for keyword in (*TYPE_2, *_ACQUISITION_TYPE_2):
        if keyword not in image:
            setattr(image, keyword, None)
    image.BodyPartExamined = image.get("BodyPartExamined") or "BRAIN"  # or Laterality would be asked for
    image.ScanningSequence = image.get("ScanningSequence") or "RM"
    image.SequenceVariant = image.get("SequenceVariant") or "NONE"
    if "IR" in de.words(image.ScanningSequence, de.SCANNING_SEQUENCES) and "InversionTime" not in image:
        image.InversionTime = None
    return image


def _provenance(source: Any, origin: Origin, keep_ids: bool) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    made.SOPClassUID, made.Modality = _MR_IMAGE, "MR"
    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    made.BurnedInAnnotation = "NO"
    bundle = f" with bundle {origin.bundle} {origin.bundle_id}" if origin.bundle else ""
    made.DerivationDescription = f"Intensities harmonized by hz {origin.version}{bundle}. {RESEARCH}"[:1024]
    made.SeriesDescription = "hz harmonized, research use only"
    made.ImageComments = origin.comment
    day, time = origin.local
    made.InstanceCreationDate = made.SeriesDate = made.ContentDate = day
    made.InstanceCreationTime = made.SeriesTime = made.ContentTime = time
    made.Manufacturer, made.ManufacturerModelName = "hz", "hz"
    made.SoftwareVersions = origin.software
    scanner = Dataset()
    scanner.PurposeOfReferenceCodeSequence = code("109101", "DCM", "Acquisition Equipment")
    maker, model = source.get("Manufacturer"), source.get("ManufacturerModelName")
    if not keep_ids:
        maker, model = de.vendor(maker), de.model(model)
    scanner.Manufacturer = maker or "unknown"
    if model:
        scanner.ManufacturerModelName = model
    machine = Dataset()
    machine.PurposeOfReferenceCodeSequence = code("109102", "DCM", "Processing Equipment")
    machine.Manufacturer, machine.ManufacturerModelName = "hz", "hz"
    machine.SoftwareVersions = origin.software
    made.ContributingEquipmentSequence = [scanner, machine]
    return made


def _scaling(codes: Int16, slope: float, intercept: float) -> Any:
    """Rescale and window elements. A DS has 16 characters; nine digits hold any float32."""
    from pydicom.dataset import Dataset

    scaling = Dataset()
    scaling.RescaleSlope, scaling.RescaleIntercept = float32_text(slope), float32_text(intercept)
    scaling.RescaleType = "US"  # unspecified
    inside = codes[codes != codes.min()]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 1.0)
    width = max(abs(float(high - low) * slope), 1e-6)
    scaling.WindowCenter = f"{float(low + high) / 2 * slope + intercept:.8g}"
    scaling.WindowWidth = f"{width:.8g}"
    if width < 1:
        scaling.VOILUTFunction = "LINEAR_EXACT"  # PS3.3 C.11.2.1.2: the usual one needs a width of 1 or more
    return scaling


def float32_text(value: float) -> str:
    """Shortest decimal text that reads back as the same float32; at most 15 characters."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return np.format_float_scientific(np.float32(value), unique=True, trim="-", exp_digits=2)


def _set(image: Any, keyword: str, value: Any) -> None:
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import format_number_as_ds

    if dictionary_VR(keyword) == "DS":
        many = isinstance(value, Sequence) or hasattr(value, "__iter__")
        value = [format_number_as_ds(float(v)) for v in (value if many else [value])]
        value = value if many else value[0]
    setattr(image, keyword, value)


def _own(common: Any, series: Series, index: int, plane: Int16) -> Any:
    """What one image has of its own."""
    from pydicom.dataset import Dataset

    where = series.slices[index]
    image = Dataset()
    image.SOPInstanceUID = new_uid("image", common.SeriesInstanceUID, index)
    image.InstanceNumber = index + 1
    if where.frame is None:
        for keyword in PLACE:  # the source's own text
            image[keyword] = (where.place if keyword in where.place else series.head)[keyword]
    else:
        _set(image, "ImagePositionPatient", where.position)
        for keyword in ("ImageOrientationPatient", "PixelSpacing"):
            _set(image, keyword, series.get(keyword))
    image.SourceImageSequence = [source_reference(where, where.frame)]
    image.PixelData = np.ascontiguousarray(plane, "<i2").tobytes()
    image["PixelData"].VR = "OW"
    return image


def source_reference(plane: Slice, frame: int | None = None) -> Any:
    """An item that names the image of `plane` as the source of a derived object."""
    from pydicom.dataset import Dataset

    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = plane.sop_class, plane.sop_uid
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    reference.PurposeOfReferenceCodeSequence = code(
        "121322", "DCM", "Source image for image processing operation"
    )
    return reference
