"""Series found, placed and chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import pydicom

import small_dicom as small
from hz_runtime.dicom.convert import output_name, sidecar
from hz_runtime.dicom.deidentify import quiet
from hz_runtime.dicom.planes import _TAGS
from hz_runtime.dicom.selection import choose, choose_each, judge
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.errors import UnsupportedScan, UsageError


def one(folder: Path) -> Series:
    (series,) = find_series(sorted(folder.rglob("*")))
    return series


def expected(index: tuple[int, int, int]) -> np.ndarray:
    """RAS mm of pixel (column, row) of a slice, by the equation of PS3.3 C.7.6.2.1.1."""
    axes = small.rotation()
    column, row, plane = index
    lps = small.position(plane) + axes[:, 0] * small.SPACING[0] * column + axes[:, 1] * small.SPACING[1] * row
    return np.asarray(lps * (-1, -1, 1))


@pytest.mark.parametrize("index", [(0, 0, 0), (31, 0, 0), (0, 31, 5), (3, 17, 31)])
def test_voxels_lie_where_the_standard_puts_them(tmp_path: Path, index: tuple[int, int, int]) -> None:
    small.write_series(tmp_path)
    series = one(tmp_path)
    assert series.shape == small.SHAPE and not series.fault
    assert np.allclose(series.placed() @ (*index, 1), (*expected(index), 1), atol=1e-3)
    assert np.allclose(series.spacing, small.SPACING)
    assert [s.sop_uid.rpartition(".")[2] for s in series.slices] == [str(n) for n in range(1, 33)]


def test_a_multi_frame_file_is_the_same_stack(tmp_path: Path) -> None:
    small.write_series(tmp_path / "classic")
    small.write_enhanced(tmp_path / "enhanced" / "one.dcm")
    classic, enhanced = one(tmp_path / "classic"), one(tmp_path / "enhanced")
    assert np.allclose(classic.placed(), enhanced.placed()) and enhanced.shape == small.SHAPE
    assert [s.frame for s in enhanced.slices] == list(range(32, 0, -1))
    assert enhanced.get("EchoTime") == 2.98 and judge(enhanced).eligible


@pytest.mark.parametrize(
    ("changes", "skip", "fault"),
    [
        ({}, (9,), "slices are missing"),
        ({"PixelSpacing": None}, (), "where they lie"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, (), "right angles"),
        ({"ImagePositionPatient": [0, 0, 0]}, (), "at one place"),
        ({}, tuple(range(1, 32)), "single image"),
    ],
)
def test_stacks_that_are_no_volume(tmp_path: Path, changes: Any, skip: tuple[int, ...], fault: str) -> None:
    small.write_series(tmp_path, skip=skip, **changes)
    series = one(tmp_path)
    assert fault in series.fault and series.affine is None and not judge(series).eligible
    with pytest.raises(UnsupportedScan, match=r"not one volume|no series"):
        choose([series])
    with pytest.raises(UnsupportedScan, match=fault):
        choose([series], 1)


def test_signed_and_unsigned_images_are_no_volume(tmp_path: Path) -> None:
    """dcm2niix 1.0.20260724 reads every image as it reads the first: 65526 in place of -10, and no word."""
    signed = sorted(small.write_series(tmp_path))[20]
    data = pydicom.dcmread(signed)
    data.PixelRepresentation = 1
    data.save_as(signed)
    series = one(tmp_path)
    assert "signed" in series.fault and not judge(series).eligible


@pytest.mark.parametrize(("signed", "taken"), [(0, True), (1, False)])
def test_signed_bytes_are_no_volume(signed: int, taken: bool, tmp_path: Path) -> None:
    """dcm2niix 1.0.20260724 takes -100 for 156 (findings/dcm2niix_signed_bytes.sh)."""
    small.write_series(tmp_path, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=signed)
    series = one(tmp_path)
    assert judge(series).eligible == taken and ("signed bytes" in series.fault) != taken


def test_repeated_files_and_other_files_count_once(tmp_path: Path) -> None:
    small.write_series(tmp_path / "a")
    small.write_series(tmp_path / "b")
    (tmp_path / "a" / "junk").write_bytes(bytes(128) + b"DICM" + bytes(range(256)))
    (tmp_path / "a" / "DICOMDIR").write_text("no")
    assert one(tmp_path).shape == small.SHAPE


def test_values_that_break_their_rules_do_no_harm(tmp_path: Path) -> None:
    for path in small.write_series(tmp_path):
        data = path.read_bytes()
        at = data.index(b"\x20\x00\x11\x00IS")
        path.write_bytes(data[: at + 8] + b"ZZ" + data[at + 10 :])
    assert judge(one(tmp_path)).eligible


def test_echoes_of_one_series_are_two_stacks(tmp_path: Path) -> None:
    small.write_series(tmp_path)
    small.write_other(tmp_path, 5, SeriesInstanceUID=small.SERIES_UID, EchoTime="7")
    first, second = find_series(tmp_path.iterdir())
    assert (first.uid, first.part, second.part) == (second.uid, 1, 2)


ITEM = pydicom.Dataset()
ITEM.PatientName = "Doe^Jane"
ODD: list[tuple[str, Any]] = [
    ("US", 5),
    ("US", [32, 32]),
    ("FD", [1e308, -1e308, 1e308]),
    ("SQ", [ITEM]),
    ("PN", "A^B"),
    ("IS", "9" * 400),
    ("UI", ["1.2", "1.3"]),
]


@pytest.mark.parametrize(("vr", "value"), ODD)
def test_no_element_of_another_kind_stops_the_others(tmp_path: Path, vr: str, value: Any) -> None:
    """Every element that is read, of a kind that it should not have, in a file beside a whole series."""
    small.write_series(tmp_path / "whole")
    whole, odd = sorted((tmp_path / "whole").iterdir()), []
    for number, keyword in enumerate(_TAGS):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        uid = f"2.25.77{number}"
        data = small.header(0, SeriesInstanceUID=uid, StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.1")
        with quiet():
            data[tag] = pydicom.DataElement(tag, vr, value)
            try:
                odd.append(small.save(data, tmp_path / "odd" / keyword))
            except (TypeError, OSError):  # of the meta header, which the file needs
                assert keyword in ("SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet")
    found = find_series([*odd, *whole])
    for one in found:
        assert judge(one).reason and output_name(one) and sidecar(one)
    assert choose_each(found)[0][0].uid == small.SERIES_UID


def test_positions_beyond_all_bounds_are_no_volume(tmp_path: Path) -> None:
    tag = pydicom.datadict.tag_for_keyword("ImagePositionPatient")
    for index in range(3):
        data = small.header(index)
        data[tag] = pydicom.DataElement(tag, "FD", [0.0, 0.0, (index - 1) * 1.7e308])
        small.save(data, tmp_path / str(index))
    series = one(tmp_path)
    assert series.affine is None and series.fault


# What differs from an MPRAGE -> what the rules say.
SPOILED: dict[str, Any] = {
    "ScanningSequence": "GR",
    "SequenceVariant": "SP",
    "InversionTime": None,
    "RepetitionTime": "25",
}
SPIN_ECHO: dict[str, Any] = {"ScanningSequence": "SE", "SequenceVariant": "SK"}
UNTAGGED: dict[str, Any] = {"ScanningSequence": None, "SequenceVariant": None}
NOT_T1 = "not T1-weighted by its sequence"
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "inversion-prepared gradient echo"),
    ({"Modality": "CT"}, "not MR"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not an MR image"),
    ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "image type SECONDARY"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "image type P"),
    ({"BurnedInAnnotation": "YES"}, "burned-in annotation"),
    ({"SliceThickness": "5"}, "thick slices (5 mm)"),
    ({"SeriesDescription": "t2_space_flair"}, NOT_T1),
    ({"ContrastBolusAgent": "Gd"}, "inversion-prepared gradient echo, contrast agent"),
    ({"ContrastBolusAgent": "NONE"}, "inversion-prepared gradient echo"),
    ({"SeriesDescription": "t1_mprage_post_gd"}, "inversion-prepared gradient echo, contrast agent"),
    ({"SeriesDescription": "t1_mprage_pre_gd"}, "inversion-prepared gradient echo"),
    ({**SPOILED, "FlipAngle": "30"}, "spoiled gradient echo"),
    ({**SPOILED, "FlipAngle": "30", "EchoTime": "20"}, NOT_T1),  # susceptibility
    ({**SPIN_ECHO, "RepetitionTime": "600", "EchoTime": "11"}, "T1 spin echo"),
    ({**SPIN_ECHO, "RepetitionTime": "3200", "EchoTime": "400"}, NOT_T1),
    ({"ImageType": ["DERIVED", "PRIMARY", "T1 MAP", "ND"]}, "image type MAP"),
    ({"ImageType": ["DERIVED", "PRIMARY", "R2_STAR MAP", "ND"]}, "image type MAP"),
    ({"SeriesDescription": "t1_mp2rage_sag_p3_iso_INV1"}, NOT_T1),
    ({"SeriesDescription": "t1_mp2rage inv-2"}, NOT_T1),
    ({"SeriesDescription": "t1_mp2rage_sag_T1_Images"}, NOT_T1),
    ({"SeriesDescription": "t1_mprage_inv1100"}, "inversion-prepared gradient echo"),
    ({"ComplexImageComponent": "MAGNITUDE"}, "inversion-prepared gradient echo"),
    (UNTAGGED, "T1 by its name"),
    ({**UNTAGGED, "SeriesDescription": "brain"}, NOT_T1),
]


@pytest.mark.parametrize(("changes", "reason"), CASES)
def test_the_rules(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    small.write_series(tmp_path, **changes)
    assert judge(one(tmp_path)).reason == reason


@pytest.mark.parametrize("uni", ["UNI_Images", "UNI-DEN"])
def test_of_an_mp2rage_the_uniform_image_is_taken(tmp_path: Path, uni: str) -> None:
    """As Siemens writes its four series: the inversions differ by their description alone."""
    same = {"ScanningSequence": ["GR", "IR"], "SequenceVariant": ["SK", "SP", "MP"],
            "RepetitionTime": "5000", "FlipAngle": "4", "ProtocolName": "t1_mp2rage_sag_p3_iso"}  # fmt: skip
    for number, end, inversion, kind in (
        (2, "INV1", "700", ["ORIGINAL", "PRIMARY", "M", "ND"]),
        (3, "INV2", "2500", ["ORIGINAL", "PRIMARY", "M", "ND"]),
        (4, "T1_Images", "0", ["DERIVED", "PRIMARY", "T1 MAP", "ND"]),
        (5, uni, "0", ["DERIVED", "PRIMARY", "M", "ND", "UNI"]),
    ):
        changes = {**same, "InversionTime": inversion, "ImageType": kind}
        small.write_other(tmp_path, number, SeriesDescription=f"t1_mp2rage_sag_p3_iso_{end}", **changes)
    found = find_series(sorted(tmp_path.iterdir()))
    assert [judge(s).eligible for s in found] == [False, False, False, True]
    assert choose(found).number == 4


def test_the_best_series_is_chosen(tmp_path: Path) -> None:
    small.write_other(tmp_path, 1, SeriesDescription="t1_mprage post", ContrastBolusAgent="Gd")
    small.write_other(tmp_path, 2, SeriesDescription="t2_tse", ScanningSequence="SE", RepetitionTime="4000")
    small.write_series(tmp_path)
    small.write_other(tmp_path, 6, SeriesDescription="t1_mprage again")
    found = find_series(sorted(tmp_path.iterdir()))
    assert [s.number for s in found] == [1, 2, 3, 4]
    assert choose(found).number == 3 and choose(found, 2).number == 2
    with pytest.raises(UsageError, match="no series 9"):
        choose(found, 9)
    with pytest.raises(UnsupportedScan, match="T1-weighted"):
        choose(found[1:2])
