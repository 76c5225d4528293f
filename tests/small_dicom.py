"""A DICOM series made by code: 32 slices of 32 x 32 pixels, oblique, of a head-like ellipsoid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (32, 32, 32)  # columns, rows, slices
SPACING = (6.0, 7.0, 2.9)  # mm along a row, along a column, between slices
SERIES_UID = "2.25.19471103000000000000000000000000000101"
STUDY_UID = "2.25.19471103000000000000000000000000000100"
MR_IMAGE, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"


def rotation() -> np.ndarray:
    """(3, 3), columns: along a row, along a column, normal; LPS, 10 to 20 degrees off a sagittal scan."""
    sagittal = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    a, b = np.deg2rad(12), np.deg2rad(-7)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.asarray(about_z @ about_x @ sagittal)


def position(index: int) -> np.ndarray:
    """(3,) LPS mm: centre of the first pixel of slice `index`."""
    axes, centre = rotation(), np.array([3.0, 12.0, 8.0])
    half = (np.array(SHAPE) - 1) / 2 * SPACING
    first = centre - axes @ half
    return np.asarray(first + axes[:, 2] * SPACING[2] * index)


def pixels() -> np.ndarray:
    """(slices, rows, columns) uint16, no two axes alike."""
    z, y, x = ((np.arange(n) - (n - 1) / 2) / (0.45 * n) for n in reversed(SHAPE))
    radius = np.sqrt(x[None, None, :] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)
    rng = np.random.default_rng(5)
    bright = (
        500
        + 300 * (radius < 0.6)
        + 60 * x[None, None, :]
        + 30 * z[:, None, None]
        + 20 * rng.random(radius.shape)
    )
    return np.asarray(np.where(radius < 1, bright, 0), dtype=np.uint16)


def header(index: int, **changes: Any) -> Any:
    """Dataset of slice `index` without file meta; `changes` by keyword, None to leave one out."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    axes = rotation()
    data = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100", "SOPClassUID": MR_IMAGE, "Modality": "MR",
        "SOPInstanceUID": f"{SERIES_UID}.{index + 1}", "SeriesInstanceUID": SERIES_UID,
        "StudyInstanceUID": STUDY_UID, "FrameOfReferenceUID": f"{STUDY_UID}.9",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"], "SeriesNumber": 4,
        "InstanceNumber": index + 1,
        "StudyDate": "20200102", "StudyTime": "101112", "AccessionNumber": "A1",
        "ReferringPhysicianName": "Ref^X",
        "StudyID": "S1", "PatientName": "Doe^Jane", "PatientID": "P1", "PatientBirthDate": "19500101",
        "PatientSex": "F", "Manufacturer": "SIEMENS", "ManufacturerModelName": "Prisma_fit",
        "SeriesDescription": "t1_mprage_sag", "MRAcquisitionType": "3D", "ScanningSequence": ["GR", "IR"],
        "SequenceVariant": ["SP", "MP"], "RepetitionTime": "2300", "EchoTime": "2.98", "InversionTime": "900",
        "FlipAngle": "9", "MagneticFieldStrength": "3", "SliceThickness": "2.9", "PatientPosition": "HFS",
        "Rows": SHAPE[1], "Columns": SHAPE[0], "PixelSpacing": [SPACING[1], SPACING[0]],
        "ImageOrientationPatient": [format_number_as_ds(float(v)) for v in axes[:, :2].T.ravel()],
        "ImagePositionPatient": [format_number_as_ds(float(v)) for v in position(index)],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11, "PixelRepresentation": 0,
    }  # fmt: skip
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(data, keyword, value)
    return data


def save(data: Any, path: Path) -> Path:
    """Write a Dataset as an explicit little endian DICOM file; the folder is made."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, name: str = "IM{:04}", skip: tuple[int, ...] = (), **changes: Any
) -> list[Path]:
    """A series as files, in an order that is not the slices'."""
    stack, written = pixels(), []
    for index in range(SHAPE[2]):
        if index in skip:
            continue
        data = header(index, **changes)
        data.PixelData = stack[index].astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        written.append(save(data, folder / name.format((index * 7) % SHAPE[2])))
    return written


def write_other(folder: Path, number: int, **changes: Any) -> list[Path]:
    """A series of its own beside the first one."""
    uid = f"{SERIES_UID}.7{number}"
    stack, written = pixels(), []
    for index in range(SHAPE[2]):
        data = header(index, **{"SeriesInstanceUID": uid, "SeriesNumber": number, **changes})
        data.SOPInstanceUID = f"{uid}.{index + 1}"
        data.PixelData = stack[index].astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        written.append(save(data, folder / f"other{number}_{index}"))
    return written


def write_enhanced(path: Path) -> Path:
    """The same stack as one Enhanced MR file, frames in reverse."""
    from pydicom.dataset import Dataset

    data = header(0, SOPClassUID=ENHANCED_MR, ImagePositionPatient=None, ImageOrientationPatient=None,
                  PixelSpacing=None, SliceThickness=None, RepetitionTime=None, EchoTime=None,
                  InversionTime=None, FlipAngle=None)  # fmt: skip
    data.NumberOfFrames = SHAPE[2]
    shared, timing, measures, plane = Dataset(), Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, timing.FlipAngle = "2300", "9"
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], "2.9"
    plane.ImageOrientationPatient = header(0).ImageOrientationPatient
    shared.MRTimingAndRelatedParametersSequence = [timing]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, index in enumerate(reversed(range(SHAPE[2])), 1):
        group, place, echo, content = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = header(index).ImagePositionPatient
        echo.EffectiveEchoTime = 2.98
        content.DimensionIndexValues = [1, number]
        group.PlanePositionSequence, group.MREchoSequence = [place], [echo]
        group.FrameContentSequence = [content]
        frames.append(group)
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = pixels()[::-1].astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    return save(data, path)
