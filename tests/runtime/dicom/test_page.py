"""The page for a reader: what is in its pixels and words, on which side, and as which objects."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

import pydicom

import small_dicom as small
from dicom_validator import complaints
from hz_runtime.dicom.convert import convert
from hz_runtime.dicom.derived import Origin
from hz_runtime.dicom.page import SIDE, draw_pages
from hz_runtime.dicom.page_objects import KINDS, write_page
from hz_runtime.dicom.result import Result
from hz_runtime.dicom.series import Series, find_series
from hz_runtime.dicom.structured_report import PredictedAge
from hz_runtime.errors import GridMismatch, UsageError
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.report.pdf import encode_pdf
from hz_runtime.results.prediction import Prediction
from small_heads import as_volume

GATE = {"gate": "coverage", "passed": True, "value": 0.991, "limits": [0.95, 1.0], "unit": "of the brain"}
RED_GATE = {"gate": "contrast", "passed": False, "value": None, "limits": [1.05, None], "unit": ""}
RESULT = Result(
    Origin("1.2", "reference", "sha256:" + "ab" * 32, datetime(2026, 2, 3, tzinfo=UTC), ("it lay aslant",)),
    PredictedAge(Prediction(41.23, 43.51, (35.0, 52.0)), 0.9, "onnxruntime"),
    (GATE, RED_GATE),
    (0.0, 1000.0),
    (19.0, 55.0),
)
SENTENCE = "Research use only. Not for diagnosis."


def ball(marked: tuple[int, int, int] | None = None) -> Volume:
    """A head of 2 mm voxels, RAS, with a black hole about a voxel."""
    index = np.indices((80, 96, 80))
    radius = np.linalg.norm((index - np.array([39.5, 47.5, 39.5])[:, None, None, None]), axis=0)
    data = np.where(radius < 36, 0.8, 0.0)
    if marked is not None:
        data[np.linalg.norm(index - np.array(marked)[:, None, None, None], axis=0) < 8] = 0.05
    return as_volume(data * 1000, np.diag([2.0, 2.0, 2.0, 1.0]))


def harmonized(volume: Volume) -> Volume:
    return as_volume(volume.data / 1000 * 0.9, volume.affine)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    (found,) = find_series(small.write_series(tmp_path_factory.mktemp("series")))
    return found


@pytest.fixture(scope="module")
def sides(series: Series, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Volume]:
    scan = read_volume(convert(series, tmp_path_factory.mktemp("scan")).volume)
    return scan, as_volume(np.clip(scan.data / 1000, 0, 1), scan.affine)


def test_what_is_written() -> None:
    (page,) = draw_pages(ball(), harmonized(ball()), RESULT, "sub-abc")
    assert page.pixels.shape == (SIDE, SIDE, 3) and page.pixels.dtype == np.uint8
    lines = set(page.lines)
    assert {
        SENTENCE, "sub-abc", "43.5 years", "90% interval: 35.0 to 52.0", "Network trained on 19 to 55 years",
        "coverage: passed", "0.991 of the brain (0.95 to 1 wanted)", "contrast: FAILED",
        "not measurable (at least 1.05 wanted)", "- it lay aslant",
    } <= lines  # fmt: skip
    assert any("bundle reference sha256:abababab" in line for line in lines)


def test_a_result_without_age_and_interval_says_so() -> None:
    bare = Result(RESULT.origin, None)
    assert "none" in draw_pages(ball(), harmonized(ball()), bare, "x")[0].lines
    age = PredictedAge(Prediction(41.2))
    lines = draw_pages(ball(), harmonized(ball()), Result(RESULT.origin, age), "x")[0].lines
    assert {"No interval: none was calibrated", "Training ages: not known here"} <= set(lines)


def test_the_left_of_the_head_is_on_the_right_of_the_picture() -> None:
    """A hole left of the middle, in front and above: RAS index 59, 47, 39 is 40 mm to the patient's right."""
    (page,) = draw_pages(ball((59, 47, 39)), harmonized(ball((59, 47, 39))), RESULT, "x")
    gray = page.pixels.astype(int).sum(axis=2)
    coronal, axial = (gray[120:320, 16 + n * 232 : 16 + n * 232 + 226] for n in (1, 2))
    for tile in (coronal, axial):
        head = tile[60:140, 40:186]
        left, right = head[:, :73], head[:, 73:]
        assert (left < 200).sum() > 300 > (right < 200).sum()  # the patient's right is on the left


def test_flags_that_do_not_fit_go_on_a_second_page() -> None:
    flags = tuple(f"number {n} of what is to be known about this scan before it is used" for n in range(30))
    origin = Origin("1.2", flags=flags)
    pages = draw_pages(ball(), harmonized(ball()), Result(origin, None), "x")
    assert len(pages) == 2 and all(SENTENCE in page.lines for page in pages)
    said = [line for page in pages for line in page.lines if line.startswith("- number")]
    assert [line.removeprefix("- ") for line in said] == list(flags)
    long = Result(Origin("1.2", flags=("x" * 4000,)), None)
    pages = draw_pages(ball(), harmonized(ball()), long, "x")
    assert sum(len(x) for p in pages for x in p.lines if x.strip("x") == "" and len(x) > 1) == 4000


def test_scans_of_two_sizes_are_refused() -> None:
    small_one = as_volume(np.ones((8, 8, 8), np.float32), np.eye(4))
    with pytest.raises(GridMismatch):
        draw_pages(ball(), small_one, RESULT, "x")


@pytest.mark.parametrize("keep_ids", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_as_an_object(kind: Any, keep_ids: bool, series: Series, sides: Any, tmp_path: Path) -> None:
    (path,) = write_page(kind, *sides, RESULT, series, tmp_path, keep_ids, "secret")
    data = pydicom.dcmread(path)
    assert (data.StudyInstanceUID == small.STUDY_UID) == keep_ids == (data.PatientID == "P1")
    references = data.SourceImageSequence if kind == "sc" else data.SourceInstanceSequence
    assert {r.ReferencedSOPInstanceUID for r in references} == {p.sop_uid for p in series.slices}
    assert data.BurnedInAnnotation == "NO" and data.SeriesInstanceUID != small.SERIES_UID
    if kind == "sc":
        assert np.array_equal(data.pixel_array, draw_pages(*sides, RESULT, data_name(series))[0].pixels)
        assert SENTENCE in data.ImageComments
    assert b"Doe" not in path.read_bytes() or keep_ids
    assert complaints(path) == []


def data_name(series: Series) -> str:
    import hashlib

    return "sub-" + hashlib.sha256(f"secret\0{series.uid}".encode()).hexdigest()[:12]


def test_the_pdf_holds_picture_and_words(series: Series, sides: Any, tmp_path: Path) -> None:
    (path,) = write_page("pdf", *sides, RESULT, series, tmp_path)
    data = pydicom.dcmread(path)
    content = data.EncapsulatedDocument[: data.EncapsulatedDocumentLength]
    assert content.startswith(b"%PDF-1.4") and content.endswith(b"%%EOF\n")
    if not shutil.which("pdftotext"):
        pytest.skip("needs pdftotext, of the Debian package poppler-utils")
    (tmp_path / "page.pdf").write_bytes(content)
    said = subprocess.run(
        ["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True
    )
    assert said.stderr == "" and SENTENCE in said.stdout and "43.5 years" in said.stdout
    subprocess.run(["pdftoppm", "-r", "124", "-png", tmp_path / "page.pdf", tmp_path / "page"], check=True)
    from PIL import Image

    (picture,) = tmp_path.glob("page*.png")
    seen = np.asarray(Image.open(picture).convert("RGB").resize((SIDE, SIDE)), int)
    name = f"sub-{path_name(series)}"
    drawn = draw_pages(*sides, RESULT, name)[0].pixels.astype(int)
    assert abs(seen - drawn).mean() < 3


def path_name(series: Series) -> str:
    from hz_runtime.dicom.deidentify import pseudonym

    return pseudonym(series.uid)


def test_a_page_beside_another_patients_export_is_refused(series: Series, sides: Any, tmp_path: Path) -> None:
    write_page("pdf", *sides, RESULT, series, tmp_path)
    (other,) = find_series(small.write_other(tmp_path / "in", 7))
    with pytest.raises(UsageError, match="another export"):
        write_page("sc", *sides, RESULT, other, tmp_path)
    assert [p.name for p in tmp_path.glob("*.dcm")] == ["PDF_page.dcm"]


def test_a_pdf_by_itself() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    made = encode_pdf([(pixels, [r"a (b) \c", "Łódź"]), (pixels, [])], "t(")
    assert rb"(a \(b\) \\c) Tj" in made and b"(?\xf3d?) Tj" in made and b"/Count 2" in made
    start = int(made.split(b"startxref\n")[1].split()[0])
    assert made[start:].startswith(b"xref\n")
    for number, line in enumerate(made[start:].split(b"\n")[3:-6]):
        assert made[int(line[:10]) :].startswith(f"{number + 1} 0 obj".encode())
    for wrong in (pixels[0], pixels.astype(float), np.zeros((0, 6, 3), np.uint8)):
        with pytest.raises(ValueError, match="PDF"):
            encode_pdf([(wrong, [])], "t")
    with pytest.raises(ValueError, match="no pages"):
        encode_pdf([], "t")
