"""Series as scanners of several makers write them: found, chosen, and converted to the right values."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")

import pydicom
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

import small_dicom as small
from hz_cli.dicom import dicom
from hz_runtime.dicom.convert import convert
from hz_runtime.dicom.selection import choose, judge
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.errors import UnreadableScan

# What differs from the Siemens MPRAGE of small_dicom: elements as in series of these scanners.
GE_BRAVO: dict[str, Any] = {
    "Manufacturer": "GE MEDICAL SYSTEMS", "ManufacturerModelName": "DISCOVERY MR750",
    "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"], "ScanningSequence": "GR",
    "SequenceVariant": ["SS", "SP", "SK"], "ScanOptions": ["FAST_GEMS", "EDR_GEMS", "IR_GEMS"],
    "SeriesDescription": "Ax 3D T1 BRAVO", "RepetitionTime": "8.208", "EchoTime": "3.22",
    "InversionTime": "450", "FlipAngle": "12", "SpacingBetweenSlices": "2.9", "PatientAge": "072Y",
}  # fmt: skip
GE_RESEARCH: dict[str, Any] = {**GE_BRAVO, "ScanningSequence": "RM", "SequenceVariant": "NONE"}
PHILIPS_TFE: dict[str, Any] = {
    "Manufacturer": "Philips Medical Systems", "ManufacturerModelName": "Achieva",
    "ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], "ScanningSequence": "GR",
    "SequenceVariant": "MP", "SeriesDescription": "sT1W_3D_TFE", "RepetitionTime": "8.1",
    "EchoTime": "3.7", "InversionTime": None, "FlipAngle": "8",
}  # fmt: skip
SIEMENS_VISIT: dict[str, Any] = {"SeriesDescription": "t1_mprage_visit2_HeadCor"}


def one(folder: Path) -> Series:
    (series,) = find_series(sorted(p for p in folder.rglob("*") if p.is_file()))
    return series


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (GE_BRAVO, "inversion-prepared gradient echo"),
        (GE_RESEARCH, "T1 by its name"),
        (PHILIPS_TFE, "inversion-prepared gradient echo"),
        (SIEMENS_VISIT, "inversion-prepared gradient echo"),
        ({**GE_RESEARCH, "SeriesDescription": "visit1 brain"}, "not T1-weighted by its sequence"),
        ({**PHILIPS_TFE, "SeriesDescription": "sT2W_FFE"}, "not T1-weighted by its sequence"),
        ({"SeriesDescription": "pCASL_mprage"}, "not T1-weighted by its sequence"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "inverted greys"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    ],
)
def test_the_rules_for_other_makers(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    small.write_series(tmp_path, **changes)
    assert judge(one(tmp_path)).reason == reason


def enhanced(path: Path, phase: bool = False, spin: bool = False) -> Path:
    """As Philips writes it: no ScanningSequence, no name, its own words in functional groups."""
    small.write_enhanced(path)
    data = pydicom.dcmread(path)
    for keyword in ("ScanningSequence", "SequenceVariant", "SeriesDescription"):
        del data[keyword]
    data.EchoPulseSequence = "SPIN" if spin else "GRADIENT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    modifier = Dataset()
    modifier.InversionRecovery, modifier.InversionTimes, modifier.Spoiling = "YES", [900.0], "RF"
    data.SharedFunctionalGroupsSequence[0].MRModifierSequence = [modifier]
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind = Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "P" if phase and number % 2 else "M", "NONE"]
        group.MRImageFrameTypeSequence = [kind]
    data.save_as(path)
    return path


def test_an_enhanced_series_says_its_sequence_in_its_own_words(tmp_path: Path) -> None:
    enhanced(tmp_path / "a" / "one.dcm")
    series = one(tmp_path / "a")
    assert judge(series).reason == "inversion-prepared gradient echo"
    assert series.get("InversionTime") == 900 and list(series.get("ScanningSequence")) == ["GR", "IR"]
    data = pydicom.dcmread(tmp_path / "a" / "one.dcm")
    data.ContrastBolusAgentSequence = [Dataset()]
    data.save_as(tmp_path / "a" / "one.dcm")
    assert judge(one(tmp_path / "a")).reason == "inversion-prepared gradient echo, contrast agent"
    enhanced(tmp_path / "b" / "one.dcm", spin=True)  # TR 2300 ms
    assert judge(one(tmp_path / "b")).reason == "not T1-weighted by its sequence"


def test_magnitude_and_phase_in_one_file_are_two_stacks(tmp_path: Path) -> None:
    enhanced(tmp_path / "one.dcm", phase=True)
    stacks = find_series([tmp_path / "one.dcm"])
    assert sorted(str(s.get("ImageType")[2]) for s in stacks) == ["M", "P"]
    assert [s.shape[2] for s in stacks] == [16, 16]
    magnitude, phase = sorted(stacks, key=lambda s: str(s.get("ImageType")[2]))
    assert judge(phase).refused == "image type P" and "P" not in judge(magnitude).refused
    # dcm2niix would make several volumes of the whole file; it gets the frames of one stack.
    written = convert(magnitude, tmp_path / "out")
    every = small.write_series(tmp_path / "single")
    odd = [path for path in every if int(pydicom.dcmread(path).InstanceNumber) % 2 == 0]
    assert nib.load(written.volume).shape == (len(odd), 32, 32)  # sagittal
    assert values_where_they_lie(written.volume, odd) == 0


@pytest.mark.parametrize("component", ["PHASE", "REAL", "IMAGINARY"])
def test_a_complex_component_is_no_head(tmp_path: Path, component: str) -> None:
    """Where ImageType is that of a magnitude image, as PS3.3 C.8.13.3.1 allows."""
    path = enhanced(tmp_path / "whole" / "one.dcm")
    data = pydicom.dcmread(path)
    data.ComplexImageComponent = component
    data.save_as(path)
    assert judge(one(tmp_path / "whole")).reason == f"image type {component}"
    data.ComplexImageComponent = "MIXED"
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind = "MAGNITUDE" if number < 16 else component
        group.MRImageFrameTypeSequence[0].ComplexImageComponent = kind
    data.save_as(path)
    stacks = find_series([path])
    assert [s.shape[2] for s in stacks] == [16, 16]
    assert sum(judge(s).refused == f"image type {component}" for s in stacks) == 1


# Pixels


def rewritten(folder: Path, change: Any) -> list[Path]:
    """The series with every file changed; change(data, pixels (rows, columns) int32, index)."""
    files = small.write_series(folder)
    for path in files:
        data = pydicom.dcmread(path)
        stored = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns).astype(np.int32)
        change(data, stored, int(data.InstanceNumber) - 1)
        data.save_as(path)
    return files


def values_where_they_lie(volume: Path, files: list[Path]) -> float:
    """Largest difference between the converted values and slope * stored + intercept, by position."""
    image = nib.load(volume)
    data, back = image.get_fdata(), np.linalg.inv(image.affine)
    worst = 0.0
    for path in files:
        source = pydicom.dcmread(path)
        kind = "<i2" if source.PixelRepresentation else "<u2"
        stored = np.frombuffer(source.PixelData, kind).reshape(source.Rows, source.Columns)
        wanted = stored * float(source.get("RescaleSlope", 1)) + float(source.get("RescaleIntercept", 0))
        along = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
        down, across = (float(mm) for mm in source.PixelSpacing)
        rows, columns = np.mgrid[: source.Rows, : source.Columns]
        lps = np.array(source.ImagePositionPatient, float)[:, None, None]
        lps = lps + along[0][:, None, None] * across * columns + along[1][:, None, None] * down * rows
        index = np.einsum("ab,bij->aij", back[:3, :3], lps * np.array([-1, -1, 1])[:, None, None])
        i, j, k = np.rint(index + back[:3, 3][:, None, None]).astype(int)
        worst = max(worst, float(np.abs(data[i, j, k] - wanted).max()))
    return worst


def negative(data: Any, stored: np.ndarray, _: int) -> None:
    data.PixelRepresentation, data.BitsStored, data.HighBit = 1, 16, 15
    data.PixelData = (stored - 700).astype("<i2").tobytes()


def large(data: Any, stored: np.ndarray, _: int) -> None:
    data.BitsStored, data.HighBit = 16, 15
    data.PixelData = (stored * 60).astype("<u2").tobytes()


def scaled(data: Any, _: np.ndarray, index: int) -> None:
    """Every slice with a slope of its own, as Philips' and reconstructed series have it."""
    data.RescaleSlope, data.RescaleIntercept = f"{0.5 + index / 10:.1f}", f"{index - 7}"


@pytest.mark.parametrize("change", [negative, large, scaled])
def test_stored_values_become_the_scanners(tmp_path: Path, change: Any) -> None:
    files = rewritten(tmp_path / "in", change)
    written = convert(choose(find_series(files)), tmp_path / "out")
    assert values_where_they_lie(written.volume, files) < 0.01


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "GE MEDICAL SYSTEMS", "Philips"])
def test_frames_with_slopes_of_their_own_become_the_scanners(tmp_path: Path, manufacturer: str) -> None:
    """dcm2niix 1.0.20260724 takes one slope for all frames of a Siemens or GE file, and the right ones
    for Philips (findings/dcm2niix_frame_slopes.sh)."""

    def of_maker(data: Any, stored: np.ndarray, index: int) -> None:
        scaled(data, stored, index)
        data.Manufacturer = manufacturer

    files = rewritten(tmp_path / "single", of_maker)
    (tmp_path / "multi").mkdir()
    path = small.write_enhanced(tmp_path / "multi" / "one.dcm")
    data = pydicom.dcmread(path)
    data.Manufacturer = manufacturer
    for group, source in zip(data.PerFrameFunctionalGroupsSequence, reversed(files), strict=True):
        one, values = pydicom.dcmread(source), Dataset()
        values.RescaleSlope, values.RescaleIntercept = one.RescaleSlope, one.RescaleIntercept
        values.RescaleType = "US"
        group.PixelValueTransformationSequence = [values]
    data.save_as(path)
    for keep_ids in (False, True):
        written = convert(choose(find_series([path])), tmp_path / "out", keep_ids=keep_ids)
        assert values_where_they_lie(written.volume, files) < 0.01
        assert bool(nib.load(written.volume).header["descrip"].item().strip(b"hz")) == keep_ids


@pytest.mark.parametrize("order", ["reversed", "interleaved"])
def test_compressed_frames_lie_where_they_say(tmp_path: Path, order: str) -> None:
    """dcm2niix 1.0.20260724 takes compressed frames as they are stored, under the geometry of sorted ones: a
    head mirrored, or its slices shuffled (findings/dcm2niix_frame_order.sh)."""
    from pydicom.encaps import encapsulate, generate_frames

    files = small.write_series(tmp_path / "single")
    (tmp_path / "multi").mkdir()
    path = small.write_enhanced(tmp_path / "multi" / "one.dcm")
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    if order == "interleaved":
        groups = data.PerFrameFunctionalGroupsSequence
        frames = list(generate_frames(data.PixelData, number_of_frames=len(groups)))
        data.PerFrameFunctionalGroupsSequence = [*groups[::2], *groups[1::2]]
        data.PixelData = encapsulate([*frames[::2], *frames[1::2]])
    data.save_as(path)
    written = convert(choose(find_series([path])), tmp_path / "out")
    assert values_where_they_lie(written.volume, files) == 0


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "Canon"])
@pytest.mark.parametrize("numbers", ["none", "of the file", "against the places"])
def test_frames_lie_where_they_say_whatever_their_numbers(
    tmp_path: Path, manufacturer: str, numbers: str
) -> None:
    """dcm2niix 1.0.20260724 sorts frames by their places or by their numbers, from maker to maker, under the
    geometry of their places (findings/dcm2niix_frame_order.sh)."""
    files = small.write_series(tmp_path / "single")
    (tmp_path / "multi").mkdir()
    path = small.write_enhanced(tmp_path / "multi" / "one.dcm")
    data = pydicom.dcmread(path)
    data.Manufacturer = manufacturer
    groups = list(data.PerFrameFunctionalGroupsSequence)
    count, turned = len(groups), [*groups[::2], *groups[1::2]]
    size = len(data.PixelData) // count
    pixels = [data.PixelData[n * size : (n + 1) * size] for n in range(count)]
    data.PixelData = b"".join([*pixels[::2], *pixels[1::2]])
    for place, group in enumerate(turned):
        content = group.FrameContentSequence[0]
        del content.DimensionIndexValues
        if numbers != "none":  # small_dicom stores its frames downwards
            up = groups.index(group) + 1
            content.DimensionIndexValues = [place + 1] if numbers == "of the file" else [up]
            content.InStackPositionNumber = count + 1 - up
    data.PerFrameFunctionalGroupsSequence = turned
    data.save_as(path)
    written = convert(choose(find_series([path])), tmp_path / "out")
    assert values_where_they_lie(written.volume, files) == 0


def test_a_compressed_file_that_lacks_frames_is_refused(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate, generate_frames

    path = small.write_enhanced(tmp_path / "one.dcm")
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    count = len(data.PerFrameFunctionalGroupsSequence)
    data.PixelData = encapsulate(list(generate_frames(data.PixelData, number_of_frames=count))[1:])
    data.save_as(path)
    with pytest.raises(UnreadableScan, match="does not hold the frames that it names"):
        convert(choose(find_series([path])), tmp_path / "out")


def recoded(folder: Path, syntax: str) -> list[Path]:
    """The series in another transfer syntax."""
    files = small.write_series(folder)
    for path in files:
        data = pydicom.dcmread(path)
        if syntax == ImplicitVRLittleEndian:
            data.file_meta.TransferSyntaxUID = syntax
            data.save_as(path, implicit_vr=True)
        else:
            data.compress(syntax)
            data.save_as(path)
    return files


@pytest.mark.parametrize(
    "syntax",
    [RLELossless, ImplicitVRLittleEndian, "1.2.840.10008.1.2.4.80"],
    ids=["RLE", "implicit", "JPEG-LS"],
)
def test_other_transfer_syntaxes_give_the_same_volume(tmp_path: Path, syntax: str) -> None:
    if syntax.endswith(".80"):
        pytest.importorskip("jpeg_ls", reason="needs an encoder of JPEG-LS")
    small.write_series(tmp_path / "plain")
    recoded(tmp_path / "coded", syntax)
    one_, other = (
        nib.load(convert(one(tmp_path / n), tmp_path / n / "o").volume) for n in ("plain", "coded")
    )
    assert np.array_equal(np.asanyarray(one_.dataobj), np.asanyarray(other.dataobj))
    assert np.array_equal(one_.affine, other.affine)


def test_pixels_that_cannot_be_decoded_are_a_line(tmp_path: Path) -> None:
    files = recoded(tmp_path / "in", RLELossless)
    for path in files:
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # a film
        data.save_as(path)
    done = CliRunner().invoke(dicom, ["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert "dcm2niix could not convert it" in done.output and "Traceback" not in done.output
    assert not list(tmp_path.glob("out/*"))


def test_a_deflated_file_is_not_inflated(tmp_path: Path) -> None:
    """200 kB that would be 200 MB, behind a header that says so."""
    (path,) = small.write_series(tmp_path, skip=tuple(range(1, 32)))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(head, data.file_meta)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(200)) + squeeze.flush()
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + bomb)
    import tracemalloc

    tracemalloc.start()
    try:
        assert find_series([path]) == ()
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_one_study_that_fails_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hz_runtime.dicom import convert as module

    small.write_series(tmp_path / "in" / "a")
    small.write_other(tmp_path / "in" / "b", 9, StudyInstanceUID=f"{small.STUDY_UID}.2")
    real = module._dcm2niix

    def picky(series: Series, *more: Any) -> Any:
        if series.uid == small.SERIES_UID:
            raise UnreadableScan("dcm2niix could not convert it.", "Export the series again.")
        return real(series, *more)

    monkeypatch.setattr(module, "_dcm2niix", picky)
    done = CliRunner().invoke(dicom, ["convert", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert "error: dcm2niix could not convert it." in done.output
    assert len(list(tmp_path.glob("out/*.nii.gz"))) == 1
