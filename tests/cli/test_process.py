"""hz-dicom process as orchestrators call it: their names for folders and settings, and one result for all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("dcm2niix", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")

import pydicom

import small_dicom as small
from dicom_validator import complaints
from help_pages import help_of
from hz_cli.dicom import dicom
from hz_runtime.hospital import process
from stand_in_runs import open_without_preparation


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Any:
    """Call `hz-dicom process`, with a quick run, in an environment."""
    monkeypatch.setattr(process, "open_bundle", open_without_preparation)
    for name in ("HZ_PAGE", "HZ_KEEP_IDS", "HZ_DICOM_SALT", "MERCURE_IN_DIR", "HOLOSCAN_INPUT_PATH"):
        monkeypatch.delenv(name, raising=False)
    environment = {"SOURCE_DATE_EPOCH": "1700000000", "HZ_BUNDLE": str(tiny_bundle)}

    def run(*arguments: object, **more: object) -> Result:
        given = {**environment, **{key: str(value) for key, value in more.items()}}
        return CliRunner().invoke(dicom, ["process", *map(str, arguments)], env=given)

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_mercure(folder: Path, settings: object = None, files: Sequence[Path] = ()) -> Path:
    """A series as mercure lays it out: SERIES#INSTANCE.dcm beside .tags, and task.json.

    files : of the series, which are moved; by default a small one is made.
    """
    folder.mkdir()
    for path in files or small.write_series(folder.with_name("raw")):
        head = pydicom.dcmread(path, stop_before_pixels=True)
        name = f"{head.SeriesInstanceUID}#{head.SOPInstanceUID}"
        path.rename(folder / f"{name}.dcm")
        (folder / f"{name}.tags").write_text(json.dumps({"PatientName": "Doe^Jane"}))
    task = {"id": "x", "process": {"module_name": "hz", "settings": settings}}
    (folder / "task.json").write_text(json.dumps(task))
    return folder


def test_every_contract_gives_the_same_bytes(call: Any, tmp_path: Path) -> None:
    """Folders from arguments, from mercure's environment, from MONAI's, and one of several under --each."""
    study = as_mercure(tmp_path / "in")
    assert call(study, tmp_path / "plain").exit_code == 0
    first = files_of(tmp_path / "plain")
    assert len(first) == 35 and json.loads(first["result.json"])["exit_code"] == 0
    for source, out, folder in (
        ("MERCURE_IN_DIR", "MERCURE_OUT_DIR", "mercure"),
        ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH", "monai"),
    ):
        done = call(**{source: study, out: tmp_path / folder})
        assert done.exit_code == 0, done.output
        assert files_of(tmp_path / folder) == first
        assert "Doe" not in done.output and small.SERIES_UID not in done.output
    shutil.copytree(study, tmp_path / "many" / "item")
    (tmp_path / "many" / "empty").mkdir()
    done = call("--each", tmp_path / "many", tmp_path / "each")
    assert done.exit_code == 3 and "no DICOM file" in done.stderr  # the empty one's
    assert files_of(tmp_path / "each" / "item") == first


def test_settings_of_a_task(call: Any, tmp_path: Path) -> None:
    settings = {"page": "pdf", "keep-ids": True, "threads": "1", "colour": "red"}
    study = as_mercure(tmp_path / "in", settings)
    where = {"MERCURE_IN_DIR": study, "MERCURE_OUT_DIR": tmp_path / "a"}
    done = call(**where)
    assert done.exit_code == 0 and (tmp_path / "a" / "PDF_page.dcm").is_file()
    assert "the setting colour is none of" in done.stderr and "identifies the patient" in done.stderr
    done = call("--page", "none", **{**where, "MERCURE_OUT_DIR": tmp_path / "b"})
    assert done.exit_code == 0 and not list((tmp_path / "b").glob("*page*"))  # the command line wins
    for text, said in (("{", "not a task"), ('{"process": {"settings": [1]}}', "not a task")):
        (study / "task.json").write_text(text)
        done = call(**where)
        assert done.exit_code == 2 or said in str(done.exception)
    (study / "task.json").write_text(json.dumps({"process": [{"settings": {"page": "weird"}}]}))
    assert call(**where).exit_code == 2
    (study / "task.json").unlink()
    assert call(**where).exit_code == 0


def test_a_study_without_a_t1_is_discarded_and_a_cut_one_fails(call: Any, tmp_path: Path) -> None:
    small.write_series(tmp_path / "t2", SeriesDescription="t2_tse Doe")
    done = call(tmp_path / "t2", tmp_path / "a")
    assert done.exit_code == 0 and "study: discarded; no series is a T1-weighted head" in done.stdout
    found = json.loads((tmp_path / "a" / "result.json").read_text())
    assert found["__mercure_routing"] == {"discard": True} and found["files"] == []
    cut = sorted(small.write_series(tmp_path / "cut"))[0]
    cut.write_bytes(cut.read_bytes()[:-2])
    done = call(tmp_path / "cut", tmp_path / "b")
    assert done.exit_code == 3 and "file 1 of 32" in done.stderr
    assert json.loads((tmp_path / "b" / "result.json").read_text())["status"] == "failed"


def test_without_folders_it_says_what_is_missing(call: Any, tmp_path: Path) -> None:
    done = call()
    assert "MERCURE_IN_DIR and MERCURE_OUT_DIR" in str(done.exception)
    assert "IN without OUT" in str(call(tmp_path).exception)
    assert "no folder is in IN" in str(call("--each", tmp_path, tmp_path / "out").exception)


def test_help_is_quick() -> None:
    text, imported = help_of("dicom", "process")
    assert "MERCURE_IN_DIR" in text and "HOLOSCAN_INPUT_PATH" in text and not imported


@pytest.mark.slow
def test_a_real_study_under_mercure(
    scans: Path, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """170 images of a Philips scanner: prepared, harmonized and written back as objects that another program
    finds valid, with nothing but the environment to say so."""
    pytest.importorskip("niimath", reason="needs the extra prep")
    (archive,) = (scans / "dicom").glob("philips*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "raw", filter="data")
    study = as_mercure(tmp_path / "in", {}, sorted((tmp_path / "raw").rglob("*.dcm")))
    out = tmp_path / "out"
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    environment = {"MERCURE_IN_DIR": study, "MERCURE_OUT_DIR": out, "HZ_BUNDLE": tiny_bundle}
    done = CliRunner().invoke(dicom, ["process"], env={key: str(value) for key, value in environment.items()})
    assert done.exit_code == 0 and "170 images, report, page" in done.stdout, done.output
    found = json.loads((out / "result.json").read_text())
    assert found["gates"] and all(gate["passed"] for gate in found["gates"])
    kinds = [file["kind"] for file in found["files"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"series": 170, "report": 1, "page": 1}
    assert {path.name for path in out.iterdir()} == {
        *(file["name"] for file in found["files"]),
        "result.json",
    }

    images = [pydicom.dcmread(path) for path in sorted(out.glob("MR_*.dcm"))]
    voxel = np.prod([*images[0].PixelSpacing, images[0].SpacingBetweenSlices])
    brain = sum(np.count_nonzero(image.pixel_array) for image in images) * voxel / 1000
    assert 900 < brain < 2000  # cm3
    (uid,) = {path.name.partition("#")[0] for path in study.glob("*.dcm")}
    assert not [text for text in ("Doe", uid) if text in done.output + (out / "result.json").read_text()]
    for name in ("MR_0085.dcm", "SR_age.dcm", "SC_page_1.dcm"):
        assert complaints(out / name) == []
