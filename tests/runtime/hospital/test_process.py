"""Studies through the whole way: what is written, what is said, and which ends are no failures."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")
pytest.importorskip("onnxruntime")

import pydicom

import small_dicom as small
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.dicom.export import Exported, write_export
from hz_runtime.dicom.series import Series
from hz_runtime.dicom.whole_files import find_whole
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.hospital import process, study_run
from hz_runtime.hospital.outcome import read_outcome
from hz_runtime.hospital.process import process_each, process_studies
from hz_runtime.hospital.study import ProcessOptions, Study
from identity import FILE, FOLDER, leaks, plant
from small_head_series import SLICES, write_head_series
from stand_in_runs import open_without_preparation


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "open_bundle", open_without_preparation)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("quick")
def test_what_is_written_and_said(bundle: Bundle, tmp_path: Path) -> None:
    small.write_series(tmp_path / "Doe^Jane")
    (outcome,) = process_studies([Study(tmp_path / "Doe^Jane", tmp_path / "out")], bundle)
    names = {*(f"MR_{n:04}.dcm" for n in range(1, 33)), "SR_age.dcm", "SC_page_1.dcm", "result.json"}
    made = files_of(tmp_path / "out")
    assert set(made) == names
    found = json.loads(made["result.json"])
    assert found["status"] in ("done", "flagged") and found["exit_code"] == 0 == outcome.exit_code
    assert found["series"]["taken"] == "inversion-prepared gradient echo"
    assert found["text"] == outcome.text == found["__mercure_notification"]["text"]
    assert f"predicted age {found['predictions']['age_corrected']:.1f}" in found["text"]
    assert [len([f for f in found["files"] if f["kind"] == k]) for k in ("series", "report", "page")] == [
        32, 1, 1,
    ]  # fmt: skip
    assert "__mercure_routing" not in found and found["bundle"]["id"] == bundle.id
    assert all(b"Doe" not in content for content in made.values())
    assert read_outcome(tmp_path / "out") == found
    # Again, from an archive, one image at another place in it: the same bytes.
    with zipfile.ZipFile(tmp_path / "exam.zip", "w") as archive:
        for path in sorted((tmp_path / "Doe^Jane").iterdir(), reverse=True):
            archive.write(path, path.name)
    process_studies([Study(tmp_path / "exam.zip", tmp_path / "again")], bundle)
    assert files_of(tmp_path / "again") == made
    (tmp_path / "out" / "SR_age.dcm").write_bytes(b"cut")
    assert read_outcome(tmp_path / "out") is None


@pytest.mark.usefixtures("quick")
def test_what_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    small.write_series(tmp_path / "in")
    options = ProcessOptions(page="pdf", keep_ids=True)
    process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle, options)
    assert (tmp_path / "out" / "PDF_page.dcm").is_file()
    for path in (tmp_path / "out").glob("*.dcm"):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        assert (data.PatientID, data.StudyInstanceUID) == ("P1", small.STUDY_UID)
    process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle, replace(options, page=None))
    assert not list((tmp_path / "out").glob("*page*"))


@pytest.mark.usefixtures("quick")
def test_several_studies_and_what_they_end_in(bundle: Bundle, tmp_path: Path) -> None:
    """A study without a T1 is discarded, one with a cut file fails by name; neither disturbs the others."""
    small.write_series(tmp_path / "t2", SeriesDescription="t2_tse Doe")
    cut = sorted(small.write_series(tmp_path / "cut"))[4]
    image = pydicom.dcmread(cut).InstanceNumber
    cut.write_bytes(cut.read_bytes()[:-700])
    torn = sorted(small.write_series(tmp_path / "torn"))[9]
    torn.write_bytes(torn.read_bytes()[:300])
    for name, left in (("short", 300), ("empty", 0)):  # an outer image that cannot be read leaves no gap
        first = small.write_series(tmp_path / name)[0]
        (tmp_path / name / "outer.dcm").write_bytes(first.read_bytes()[:left])
    small.write_series(tmp_path / "good")
    other = sorted(small.write_other(tmp_path / "good", 9, SeriesDescription="t2_tse"))[0]
    other.write_bytes(other.read_bytes()[:-9])
    small.write_series(tmp_path / "two")
    small.write_other(tmp_path / "two", 3, StudyInstanceUID=f"{small.STUDY_UID}.3")
    (tmp_path / "none").mkdir()
    names = ("t2", "cut", "torn", "short", "empty", "good", "two", "none")
    outcomes = process_studies([Study(tmp_path / n, tmp_path / "out" / n) for n in names], bundle)
    codes = {name: (o.status, o.exit_code) for name, o in zip(names, outcomes, strict=True)}
    assert codes == {
        "t2": ("discarded", 0), "cut": ("failed", 3), "torn": ("failed", 3), "short": ("failed", 3),
        "empty": ("failed", 3), "good": (outcomes[5].status, 0), "two": ("failed", 2), "none": ("failed", 3),
    }  # fmt: skip
    by_name = dict(zip(names, outcomes, strict=True))
    assert "no series is a T1-weighted head" in by_name["t2"].text and "Doe" not in by_name["t2"].text
    assert f"file 5 of 32 in the order of their names (image {image}) is cut short" in by_name["cut"].text
    assert "file 10 of 32" in by_name["torn"].text
    assert all("cannot be read: it ends within its header" in by_name[n].text for n in ("short", "empty"))
    assert by_name["good"].notes and "is cut short" in by_name["good"].notes[0]
    assert "2 studies" in by_name["two"].text and "no DICOM file" in by_name["none"].text
    for name in names:
        found = json.loads((tmp_path / "out" / name / "result.json").read_text())
        assert found["exit_code"] == by_name[name].exit_code
        assert found.get("__mercure_routing", {}) == ({"discard": True} if name == "t2" else {})
        assert bool(list((tmp_path / "out" / name).glob("*.dcm"))) == (name == "good") == bool(found["files"])


@pytest.mark.usefixtures("quick")
def test_what_stops_a_run_is_said_in_every_result(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_series(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    stopped = threading.Event()
    stopped.set()
    (outcome,) = process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle, None, stopped)
    assert outcome.status == "interrupted" and not (tmp_path / "out" / "result.json").exists()

    def gone(*_: object) -> None:
        raise BackendError("no engine.", "Install one.")

    monkeypatch.setattr(process, "open_bundle", gone)
    (outcome,) = process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle)
    assert outcome.exit_code == 5 and "no engine" in (tmp_path / "out" / "result.json").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="output folder"):
        process_studies([Study(tmp_path / "in", tmp_path / "file" / "out")], bundle)


def test_a_gate_that_refuses_discards(bundle: Bundle, tmp_path: Path) -> None:
    """The ellipsoid is no head: its voxels are too thick for one."""
    pytest.importorskip("niimath")
    small.write_series(tmp_path / "in")
    (outcome,) = process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle)
    assert (outcome.status, outcome.exit_code) == ("discarded", 0) and "thick" in outcome.reasons[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result.json"]


def test_a_head_goes_through_without_identity(bundle: Bundle, tmp_path: Path) -> None:
    """A head that all gates let pass, marked wherever DICOM has room for text: no mark comes out, but for the
    UIDs of its images that the objects refer to."""
    pytest.importorskip("niimath")
    plant(write_head_series(tmp_path / FOLDER, name=f"{FILE}_{{:04}}.dcm"))
    (outcome,) = process_studies([Study(tmp_path / FOLDER, tmp_path / "out")], bundle, ProcessOptions())
    assert outcome.exported is not None and len(outcome.exported.images) == SLICES, outcome.text
    assert outcome.result is not None and all(gate["passed"] for gate in outcome.result.gates)
    assert leaks("said", outcome.text.encode()) == set()
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        if path.suffix == ".dcm":
            content = content.replace(small.SERIES_UID.encode(), b"").replace(small.STUDY_UID.encode(), b"")
        assert leaks(path.name, content) == set()


@pytest.mark.usefixtures("quick")
def test_a_study_is_asked_for_while_others_are_on_their_way(bundle: Bundle, tmp_path: Path) -> None:
    """A source of studies that waits holds up none of the outcomes; who wants no more of them gets none."""
    small.write_series(tmp_path / "in")
    first_is_there, asked = threading.Event(), []

    def studies() -> Iterator[Study]:
        for number in range(9):
            asked.append(number)
            yield Study(tmp_path / "in", tmp_path / f"out{number}")
            assert first_is_there.wait(60)

    with closing(process_each(studies(), bundle)) as outcomes:
        study, outcome = next(outcomes)
        first_is_there.set()
        assert study.out.name == "out0" and outcome.exit_code == 0
        assert next(outcomes)[0].out.name == "out1"
    assert len(asked) < 9
    alike = [files_of(tmp_path / name) for name in ("out0", "out1")]
    assert alike[0] == alike[1]


@pytest.mark.usefixtures("quick")
def test_a_study_that_breaks_all_rules_is_a_failed_one(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no one foresaw names neither the patient nor the folder, and the next study goes on."""

    def confused(files: list[Path]) -> object:
        if "Doe" in str(files[0]):
            raise LookupError("Doe^Jane")
        return find_whole(files)

    def no_text(volume: Path, series: Series, out: Path, *more: Any, **how: Any) -> Exported:
        if out.name == "late":
            raise LookupError("Doe^Jane")
        return write_export(volume, series, out, *more, **how)

    monkeypatch.setattr(study_run, "find_whole", confused)
    monkeypatch.setattr(study_run, "write_export", no_text)
    names = ("Doe^Jane", "late", "good")
    for name in names:
        small.write_series(tmp_path / name)
    bad, late, good = process_studies(
        [Study(tmp_path / name, tmp_path / "out" / name) for name in names], bundle
    )
    assert late.exit_code == 3 and "failed; its results cannot be written (LookupError)" in late.text
    assert bad.text == "study: failed; the study cannot be read (LookupError). Send it again."
    assert bad.exit_code == 3 and good.exit_code == 0


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_the_end_of_a_study_by_the_code_that_help_names(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Exported:
        raise HzError("MR_0001.dcm: the disk is full.", "Make room.")

    monkeypatch.setattr(study_run, "write_export", full)
    small.write_series(tmp_path / "in")
    (outcome,) = process_studies([Study(tmp_path / "in", tmp_path / "out")], bundle)
    assert outcome.exit_code == 3 and "the disk is full. Make room." in outcome.text


@pytest.mark.usefixtures("quick")
def test_a_study_that_cannot_be_accounted_for_is_a_failed_one(bundle: Bundle, tmp_path: Path) -> None:
    """One without an outcome would be asked for again, without end."""
    small.write_series(tmp_path / "in")
    (tmp_path / "audit").mkdir()
    options = ProcessOptions(RunOptions(audit=tmp_path / "audit"))
    studies = [Study(tmp_path / "in", tmp_path / f"out{number}") for number in range(2)]
    ends = [outcome.status for _, outcome in process_each(studies, bundle, options)]
    assert ends == ["failed", "failed"]
    assert all("died" not in json.dumps(read_outcome(study.out)) for study in studies)
