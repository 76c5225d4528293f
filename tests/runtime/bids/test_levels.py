"""The participant and group levels of the BIDS App, and what they leave in the data set."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.stages import Stages
from hz_runtime.bids.derivatives import describe_dataset, dictionary, link
from hz_runtime.bids.group import run_group
from hz_runtime.bids.layout import Wanted, find_units
from hz_runtime.bids.participant import Level, run_participants
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.inference import open as open_module
from hz_runtime.io.atomic import shared_file
from hz_runtime.io.volume import read_volume
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.predictions_tsv import predictions_tsv
from small_bids import SCANS, write_study
from small_scans import write_scan
from snapshots import snapshot

RUN = RunOptions(space="both", backend="onnxruntime-cpu")


def participants(study: Path, out: Path, bundle: Path, *subjects: str, **more: object) -> Level:
    units, _ = find_units(study, Wanted(subjects))
    return run_participants(units, load_bundle(bundle), study, out, RUN, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("bids") / "study")


@pytest.fixture(scope="module")
def done(study: Path, tiny_bundle: Path) -> Path:
    """The derivatives of all participants and the group."""
    out = study / "derivatives" / "hz"
    assert participants(study, out, tiny_bundle).exit_code == 0
    assert len(run_group(out).scans) == 4
    return out


def test_results_lie_where_bids_wants_them(done: Path) -> None:
    published = {p.relative_to(done).as_posix() for p in done.rglob("sub-*_T1w.*") if ".hz" not in p.parts}
    ends = ("desc-harmonized", "space-MNI152_res-64_desc-harmonized")
    assert published == {
        f"{name.removesuffix('T1w')}{end}_T1w{kind}"
        for name in SCANS
        for end in ends
        for kind in (".nii.gz", ".json")
    }
    sidecar = json.loads((done / "sub-02/anat/sub-02_run-2_desc-harmonized_T1w.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/anat/sub-02_run-2_T1w.nii.gz"]
    described = json.loads((done / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "hz"
    assert described["DatasetLinks"] == {"raw": "../.."} and described["SourceDatasets"] == [{"URL": "../.."}]


def test_the_voxels_are_those_of_hz_run(done: Path, study: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    scan = study / f"{SCANS[0]}.nii.gz"
    run_batch([scan], load_bundle(tiny_bundle), tmp_path, RUN)
    name = "sub-01_ses-1_desc-harmonized_T1w.nii.gz"
    assert (tmp_path / name).read_bytes() == (done / "sub-01/ses-1/anat" / name).read_bytes()
    np.testing.assert_array_equal(read_volume(tmp_path / name).affine, read_volume(scan).affine)


def test_tables(done: Path) -> None:
    rows = [line.split("\t") for line in (done / "predictions.tsv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [(r["participant_id"], r["session_id"], r["age"]) for r in table] == [
        ("sub-01", "ses-1", "30.00"),
        ("sub-01", "ses-2", "32.50"),
        ("sub-02", "n/a", "n/a"),
        ("sub-02", "n/a", "n/a"),
    ]
    assert [r["input"] for r in table] == [f"{Path(s).name}.nii.gz" for s in SCANS]
    own = (done / "sub-02" / "sub-02_predictions.tsv").read_text().splitlines()
    assert ["\t".join(row[2:]) for row in rows[3:]] == own[1:]
    dictionary = json.loads((done / "predictions.json").read_text())
    assert list(dictionary) == rows[0] and all(e["Description"] for e in dictionary.values())


def test_every_column_is_explained() -> None:
    every = RunOutputs("control", "patient", 0.9, intervals=True)
    header = predictions_tsv([], every).decode().splitlines()[0].split("\t")
    described = dictionary(header, every)
    assert len(header) == 16 and set(header) <= set(described)
    assert all(column["Description"] for column in described.values())


def test_the_group_page_shows_every_scan(done: Path) -> None:
    page, group = ((done / name).read_text() for name in ("report.html", "group.html"))
    assert all(f"{Path(s).name}.nii.gz" in page for s in SCANS) and page.count("<img") >= 4
    assert "4 harmonized scans from 2 sites compared" in group
    assert (done / "sub-01_ses-2.html").is_file()


def test_a_second_run_goes_on(done: Path, study: Path, tiny_bundle: Path) -> None:
    def own() -> dict[str, bytes]:
        names = [p for p in done.rglob("*") if p.is_file() and ".hz" not in p.parts and "logs" not in p.parts]
        return {str(p): p.read_bytes() for p in names if p.suffix != ".html"}

    before = own()
    again = participants(study, done, tiny_bundle, "01")
    assert {scan.status for scan in again.scans} == {"skipped"} and again.exit_code == 0
    run_group(done)
    assert own() == before


def test_a_finished_level_again_writes_nothing(study: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """So a `datalad rerun` leaves no commit. A new participant is another matter."""
    study = shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("hz"))
    (study / f"{SCANS[3]}.nii.gz").write_bytes(b"\x1f\x8b nothing")  # fails, every time
    out = study / "derivatives" / "hz"
    assert not participants(study, out, tiny_bundle).unchanged and not run_group(out).unchanged
    before = snapshot(out)
    for level in (participants(study, out, tiny_bundle), run_group(out)):
        assert level.unchanged and len(level.scans) == 4
    assert snapshot(out) == before
    write_scan(study / "sub-05" / "anat" / "sub-05_T1w.nii.gz", 5)
    assert not participants(study, out, tiny_bundle).unchanged and not run_group(out).unchanged
    after = snapshot(out)
    assert {name for name in set(after) - set(before) if not name.startswith(".hz")} == {
        "sub-05", "sub-05.html", "sub-05/anat", "sub-05/sub-05_predictions.tsv",
        "sub-05/anat/sub-05_desc-harmonized_T1w.json", "sub-05/anat/sub-05_desc-harmonized_T1w.nii.gz",
        "sub-05/anat/sub-05_space-MNI152_res-64_desc-harmonized_T1w.json",
        "sub-05/anat/sub-05_space-MNI152_res-64_desc-harmonized_T1w.nii.gz",
        "logs/sub-05.log", "logs/sub-05_run.json",
    }  # fmt: skip
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"predictions.tsv", "report.html", "group.html", "logs", ".hz"}


def test_copies_are_left_alone_too(
    study: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the file system has no hard links, or git-annex keeps a file of its own for each place."""

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    participants(study, tmp_path, tiny_bundle, "02")
    before = snapshot(tmp_path)
    assert participants(study, tmp_path, tiny_bundle, "02").unchanged and snapshot(tmp_path) == before


def test_a_scan_that_fails_later_loses_its_result(tmp_path: Path, tiny_bundle: Path) -> None:
    study, out = write_study(tmp_path / "study"), tmp_path / "out"
    assert participants(study, out, tiny_bundle, "02").exit_code == 0
    (study / f"{SCANS[2]}.nii.gz").write_bytes(b"\x1f\x8b nothing")
    level = participants(study, out, tiny_bundle, "02")
    assert level.exit_code == 3
    assert {p.name.split("_")[1] for p in (out / "sub-02" / "anat").iterdir()} == {"run-2"}
    rows = (out / "sub-02" / "sub-02_predictions.tsv").read_text().splitlines()
    assert [row.split("\t")[1] for row in rows[1:]] == ["failed", "ok"]
    reasons = [scan["reason"] for scan in json.loads((out / "logs" / "sub-02_run.json").read_text())["scans"]]
    assert reasons[0] and [s.recorded or s.status for s in run_group(out).scans] == ["failed", "ok"]


def test_an_interrupted_run_takes_nothing_away(tmp_path: Path, study: Path, tiny_bundle: Path) -> None:
    out, stop = tmp_path / "out", threading.Event()
    participants(study, out, tiny_bundle, "02")
    before = sorted((out / "sub-02").rglob("*")), (out / "logs" / "sub-02_run.json").read_bytes()
    stop.set()
    level = participants(study, out, tiny_bundle, stop=stop)
    assert level.exit_code == 130 and len(level.scans) == 1  # sub-02 was not begun
    assert participants(study, out, tiny_bundle, "02", stop=stop).exit_code == 130
    assert (sorted((out / "sub-02").rglob("*")), (out / "logs" / "sub-02_run.json").read_bytes()) == before
    assert [s.status for s in participants(study, out, tiny_bundle, "02").scans] == ["skipped", "skipped"]


def test_a_participant_that_another_run_holds(study: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    heard = []
    with locked(tmp_path / "work" / "sub-02"):
        level = participants(
            study, tmp_path / "out", tiny_bundle, work=tmp_path / "work", on_event=heard.append
        )
    assert level.exit_code == 3 and len(level.scans) == 2
    assert len(level.problems) == 1 and "another run of hz is writing into sub-02" in level.problems[0]
    assert [(e.kind, e.done, e.total) for e in heard if e.kind != "note"] == [
        ("start", 0, 4),
        ("scan", 1, 4),
        ("scan", 2, 4),
    ]
    with pytest.raises(UsageError, match="no results of sub-02"):
        run_group(tmp_path / "out", ("sub-01", "02"))


def test_networks_are_opened_once_and_participants_overlap(
    study: Path, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan waits in its preparation for one of another participant to come there, too."""
    real_open, real_prepare = open_module.open_networks, Stages.prepare
    opened: list[Bundle] = []
    together = threading.Barrier(2)
    folders: set[Path] = set()

    def counted(bundle: Bundle, *more: Any) -> Any:
        opened.append(bundle)
        return real_open(bundle, *more)

    def waiting(self: Stages, read: Any) -> Any:
        if self.out not in folders and len(folders) < 2:
            folders.add(self.out)
            together.wait(60)
        return real_prepare(self, read)

    monkeypatch.setattr(open_module, "open_networks", counted)
    monkeypatch.setattr(Stages, "prepare", waiting)
    units, _ = find_units(study)
    level = run_participants(
        units, load_bundle(tiny_bundle), study, tmp_path, replace(RUN, report=False, threads=8)
    )
    assert level.exit_code == 0 and [scan.status for scan in level.scans] == ["ok"] * 4
    assert [scan.input for scan in level.scans] == [f"{Path(name).name}.nii.gz" for name in SCANS]
    assert len(opened) == 1 and not together.broken


def test_participants_in_processes_of_their_own(
    study: Path, done: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    """What clusters do: one job a participant, all at once, into one data set."""
    code = """
import sys; sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_levels import participants
sys.exit(participants(*map(Path, sys.argv[2:5]), sys.argv[5]).exit_code)
"""
    paths = ":".join([p for p in sys.path if p] + [str(Path(__file__).parent)])
    out = tmp_path / "out"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, paths, str(study), str(out), str(tiny_bundle), who])
        for who in ("01", "02")
    ]
    assert [job.wait(120) for job in jobs] == [0, 0]
    run_group(out)
    assert (out / "predictions.tsv").read_bytes() == (done / "predictions.tsv").read_bytes()
    assert not list(out.rglob("*.tmp"))


@pytest.mark.made_up_results
def test_mixed_bundles_are_not_compared(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "logs", tmp_path / "out" / "logs")
    other = tmp_path / "out" / "logs" / "sub-02_run.json"
    other.write_text(other.read_text().replace('"id": "', '"id": "0'))
    with pytest.raises(UsageError, match="different bundles"):
        run_group(tmp_path / "out")
    assert len(run_group(tmp_path / "out", ("02",)).scans) == 2
    other.write_text("{}")
    with pytest.raises(UsageError, match="sub-02_run"):
        run_group(tmp_path / "out")


@pytest.mark.parametrize("place", [".", "..", "sub-01/hz"])
def test_raw_data_are_not_written_to(study: Path, tiny_bundle: Path, place: str) -> None:
    with pytest.raises(UsageError, match="mix with the raw"):
        participants(study, (study / place).resolve(), tiny_bundle)


def test_a_data_set_elsewhere_names_no_folder(study: Path, tmp_path: Path) -> None:
    assert "SourceDatasets" not in describe_dataset(tmp_path / "out", study)
    shutil.copytree(study / "sub-02", tmp_path / "doe" / "sub-02")
    (tmp_path / "doe" / "dataset_description.json").write_text('{"DatasetDOI": "10.1/x", "Name": "doe"}')
    described = describe_dataset(tmp_path / "out", tmp_path / "doe")
    assert described["SourceDatasets"] == [{"DOI": "10.1/x"}] and "doe" not in json.dumps(described)


def test_files_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    shared_file(tmp_path / "a", b"2")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"2"

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"2" and not (tmp_path / "a").samefile(tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_shared_file_is_whole_whoever_writes_it(tmp_path: Path) -> None:
    """Threads have one process number, as the processes of several containers may."""
    wanted = [bytes([n]) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: shared_file(tmp_path / "a", data), wanted * 5))
    assert (tmp_path / "a").read_bytes() in wanted and len(list(tmp_path.iterdir())) == 1
