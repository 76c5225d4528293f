"""A patient's identity, planted wherever DICOM has room for it, comes out of no command of hz."""

from __future__ import annotations

import base64
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("niimath", reason="needs the extra prep")

import pydicom
from click.testing import CliRunner, Result

import small_dicom as small
from hz_cli import bids, run
from hz_cli.dicom import dicom
from hz_runtime.dicom.derived import _ACQUISITION, PATIENT_AND_STUDY, TYPE_2
from identity import DATE, FOLDER, FOREIGN, MARK, leaks, leaks_below, mark, planted, write_identified

pytestmark = pytest.mark.requirement("no-identity")

Hz = Callable[..., Result]
COMMANDS = {"hz-dicom": dicom, "hz-run": run.main, "hz-bids": bids.main}


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder named for the patient with the series, as files and as an archive."""
    folder = tmp_path_factory.mktemp("hospital")
    files = write_identified(folder / FOLDER / "files")
    with zipfile.ZipFile(folder / FOLDER / f"{FOLDER}.zip", "w") as archive:
        for path in files:
            archive.write(path, f"{FOLDER}/{path.name}")
    return folder / FOLDER


@pytest.fixture
def hz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hz:
    """Call a command; what it and its programs print goes to out/said.txt, temporary files below out."""
    out = tmp_path / "out"
    (out / "tmp").mkdir(parents=True)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    monkeypatch.setattr("tempfile.tempdir", str(out / "tmp"))

    def call(command: str, *arguments: object) -> Result:
        done = CliRunner().invoke(COMMANDS[command], [str(a) for a in arguments])
        with open(out / "said.txt", "a", encoding="utf-8") as said:
            said.write(f"{done.output}\n{done.exception!r}\n{''.join(capfd.readouterr())}\n")
        return done

    return call


def test_the_search_finds_what_is_planted(exam: Path, tmp_path: Path) -> None:
    (path,) = (exam / "files").rglob("*0000.dcm")
    found = {what for _, what in leaks("slice", path.read_bytes())}
    assert len(planted()) > 1500 and {mark(tag) for tag, (vr, _) in planted().items() if vr == "LO"} <= found
    assert {f"ZQXPFFFF000{n}" for n in range(2, 7)} | {DATE, FOREIGN, small.SERIES_UID} <= found
    packed = gzip.compress(bytes(range(40)) + mark(1).encode())
    page = f'<img src="data:x;base64,{base64.b64encode(packed).decode()}">'
    assert leaks("page", page.encode()) == {("page, base64 0, inflated", mark(1))}
    assert leaks("text", "ZQXP0000ABCD".encode("utf-16-le"))
    (tmp_path / FOLDER).mkdir()
    assert leaks_below(tmp_path) == {("name", FOLDER)}


def test_from_dicom_to_every_result(exam: Path, tmp_path: Path, hz: Hz, tiny_bundle: Path) -> None:
    """hz-dicom list and convert, hz-run on DICOM and NIfTI, hz-bids: no mark in bytes, names or messages."""
    out = tmp_path / "out"
    model = ("--model", tiny_bundle)
    for source in (exam / "files", exam / f"{FOLDER}.zip"):
        assert hz("hz-dicom", "list", source).exit_code == 0
        assert hz("hz-dicom", "convert", source, "--out", out / "scans").exit_code == 0
    (scan,) = (out / "scans").glob("*_T1w.nii.gz")
    assert hz("hz-run", out / "scans", "--out", out / "run", "--space", "both", *model).exit_code == 0
    for number, source in enumerate((exam / "files", exam / f"{FOLDER}.zip")):  # DICOM taken as it is
        heads = hz("hz-run", "--prepare", source, "--out", out / f"heads{number}", *model)
        assert heads.exit_code == 3 and "sub-" in heads.output  # an ellipsoid is no head: a gate says so
    # A data set in a folder that is named for the patient, as hospitals' are.
    raw = tmp_path / FOLDER / "study"
    anat = raw / scan.name.split("_")[0] / "anat"
    anat.mkdir(parents=True)
    for file in (scan, scan.with_name(scan.name.replace(".nii.gz", ".json"))):
        (anat / file.name).write_bytes(file.read_bytes())
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    assert (
        hz("hz-bids", raw, out / "bids", "participant", "--no-prepare", "--space", "both", *model).exit_code
        == 0
    )
    assert hz("hz-bids", raw, out / "bids", "group").exit_code == 0
    kinds = {p.suffix for p in out.rglob("*") if p.is_file()}
    assert {".gz", ".json", ".tsv", ".html", ".log", ".txt"} <= kinds
    # The screen names the archive that was typed, where several are given; nothing that is written does.
    assert leaks_below(out) - {("said.txt", FOLDER)} == set()


def test_what_goes_wrong_is_said_without_identity(
    exam: Path, tmp_path: Path, hz: Hz, tiny_bundle: Path
) -> None:
    """Damaged files, a series that is not there, a scan that cannot be read, a raw head that is none."""
    out = tmp_path / "out"
    broken = tmp_path / FOLDER
    broken.mkdir()
    for number, path in enumerate(sorted((exam / "files").rglob("*.dcm"))):
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // (2 if number % 3 else 1)])
    for arguments in (
        ("list", broken),
        ("convert", broken, "--out", out / "a"),
        ("convert", broken, "--out", out / "b", "--series", 1),
        ("convert", exam / "files", "--out", out / "c", "--series", 99),
        ("convert", broken / "absent.zip", "--out", out / "d"),
    ):
        assert arguments[0] == "list" or hz("hz-dicom", *arguments).exit_code
    (broken / "sub-1_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    assert (
        hz("hz-run", broken / "sub-1_T1w.nii.gz", "--out", out / "run", "--model", tiny_bundle).exit_code == 3
    )
    assert hz("hz-bids", broken, out / "bids", "participant").exit_code == 2
    assert leaks_below(out) == set()


@pytest.mark.parametrize("keep_ids", [False, True])
def test_what_is_written_back(exam: Path, tmp_path: Path, hz: Hz, tiny_bundle: Path, keep_ids: bool) -> None:
    """DICOM of hz-dicom export carries no mark, but for the UIDs of the source that it refers to; with
    --keep-ids those of patient, study and acquisition. Its file names and messages carry none at all."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    out = tmp_path / "out"
    hz("hz-dicom", "convert", exam / "files", "--out", tmp_path / "scans")
    hz("hz-run", tmp_path / "scans", "--out", tmp_path / "run", "--model", tiny_bundle)
    (volume,) = (tmp_path / "run").glob("*_desc-harmonized_T1w.nii.gz")
    more = ["--keep-ids"] if keep_ids else []
    done = hz("hz-dicom", "export", volume, "--source", exam / f"{FOLDER}.zip", "--out", out / "back", *more)
    assert done.exit_code == 0, done.output
    names = [p.name for p in out.rglob("*")]
    assert (
        leaks("names", "\n".join(names).encode()) == leaks("said", (out / "said.txt").read_bytes()) == set()
    )
    allowed = {*TYPE_2, *PATIENT_AND_STUDY, *_ACQUISITION, "Manufacturer", "ManufacturerModelName"}
    assert {"MR_0001.dcm", "SR_age.dcm"} <= set(names)
    for path in (out / "back").glob("*.dcm"):
        data = pydicom.dcmread(path)
        assert not path.read_bytes()[:128].strip(b"\0")
        if not keep_ids:
            # The planted date is part of the source's UIDs.
            found = {what for _, what in leaks(path.name, path.read_bytes())} - {DATE}
            assert all(what.startswith("2.25.") for what in found)
            told = [str(e.value) for e in data.iterall() if e.VR not in ("UI", "SQ", "OW", "OB")]
            assert not [text for text in told if DATE in text or MARK.search(text.encode())]
            assert data.PatientIdentityRemoved == "YES" and str(data.PatientName).startswith("sub-")
            continue
        carried = {
            element.keyword
            for element in data.iterall()
            if element.VR != "SQ" and MARK.search(str(element.value).encode())
        }
        assert carried <= allowed
        assert not any(element.tag.is_private for element in data.iterall())
        text = json.dumps(data.file_meta.to_json_dict()) + data.get("SeriesDescription", "")
        assert not MARK.search(text.encode())
        assert data.PatientID == mark(0x00100020)
