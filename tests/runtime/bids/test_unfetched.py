"""What hz-bids says where a data set, or its own results, were cloned and not fetched (DataLad)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hz_runtime.batch.folder_lock import LOCK_NAME, locked
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bids.filter_file import read_filter
from hz_runtime.bids.group import run_group
from hz_runtime.bids.layout import Wanted, check_raw, find_units
from hz_runtime.bids.participant import Level, run_participants
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import UsageError
from small_bids import SCANS, write_study
from snapshots import snapshot
from unfetched import unfetch

RUN = RunOptions(backend="onnxruntime-cpu", threads=1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A study, and in out/ what was made of sub-02."""
    root = tmp_path_factory.mktemp("done")
    write_study(root / "study")
    assert run(root, tiny_bundle).exit_code == 0
    return root


@pytest.fixture
def root(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "root", symlinks=True)


def run(root: Path, bundle: Path, overwrite: bool = False) -> Level:
    units, _ = find_units(root / "study", Wanted(("02",)))
    options = RunOptions(**{**vars(RUN), "overwrite": overwrite})
    return run_participants(units, load_bundle(bundle), root / "study", root / "out", options)


@pytest.mark.parametrize("pointer", [False, True])
def test_the_description_of_the_data_set(root: Path, pointer: bool) -> None:
    unfetch(root / "study" / "dataset_description.json", root / "study", pointer)
    with pytest.raises(UsageError, match=r"dataset_description\.json: its content is not here") as error:
        check_raw(root / "study")
    assert error.value.remedy.endswith("datalad get dataset_description.json")


@pytest.mark.parametrize("pointer", [False, True])
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("participants.tsv", (0, 1, 2)),
        ("participants.json", (0, 1, 2)),
        ("sub-01/sub-01_sessions.tsv", (0, 1)),
        ("sub-01/sub-01_sessions.json", (0, 1)),
    ],
)
def test_tables_and_what_explains_them(root: Path, name: str, units: tuple[int, ...], pointer: bool) -> None:
    """A dictionary that is not here may say that the ages are months: none is taken for years."""
    unfetch(root / "study" / name, root / "study", pointer)
    found, _ = find_units(root / "study")
    for n, unit in enumerate(found):
        said = [note for note in unit.notes if note.endswith(f"data set: datalad get {name}")]
        assert len(said) == (n in units)
    assert found[0].age == (None if name.startswith("participants") else 30)
    assert found[1].age == (30 if name.startswith("sub-01") else 32.5)


def test_the_filter(root: Path) -> None:
    (root / "study" / "code").mkdir()
    file = unfetch(root / "study" / "code" / "filter.json", root / "study")
    with pytest.raises(UsageError, match=r"datalad get code/filter\.json"):
        read_filter(file)


@pytest.mark.parametrize("pointer", [False, True])
def test_a_scan(root: Path, tiny_bundle: Path, pointer: bool) -> None:
    """The command is one for the root of the data set; the result that was made of the scan goes."""
    unfetch(root / "study" / f"{SCANS[3]}.nii.gz", root / "study", pointer)
    level = run(root, tiny_bundle)
    assert [scan.status for scan in level.scans] == ["skipped", "failed"] and level.exit_code == 3
    assert level.scans[1].reason.endswith(f"datalad get {SCANS[3]}.nii.gz")


def test_a_data_set_that_is_another_repository_in_it(root: Path, tiny_bundle: Path) -> None:
    unfetch(root / "study" / f"{SCANS[2]}.nii.gz", root / "study" / "sub-02")
    level = run(root, tiny_bundle)
    assert level.scans[0].reason.endswith("datalad get anat/sub-02_run-1_T1w.nii.gz")


@pytest.mark.made_up_results  # a pointer is no record
@pytest.mark.parametrize("pointer", [False, True])
def test_the_published_record(root: Path, tiny_bundle: Path, pointer: bool) -> None:
    out = root / "out"
    unfetch(out / "logs" / "sub-02_run.json", out, pointer)
    before = snapshot(out)
    level = run(root, tiny_bundle)
    assert level.exit_code == 3 and len(level.problems) == 1
    assert level.problems[0].endswith("datalad get logs/sub-02_run.json")
    assert snapshot(out) == before
    with pytest.raises(UsageError, match="datalad get logs/sub-02_run"):
        run_group(out)


@pytest.mark.parametrize("end", ["_T1w.json", "_T1w.nii.gz"])
def test_results_that_the_run_would_go_on_from(root: Path, tiny_bundle: Path, end: str) -> None:
    """They are not made again unasked, and nothing of them is taken away."""
    out = root / "out"
    unfetch(out / ".hz" / "sub-02" / f"sub-02_run-1_desc-harmonized{end}", out)
    level = run(root, tiny_bundle)
    assert [scan.status for scan in level.scans] == ["failed", "skipped"]
    assert "an earlier result is not here" in level.scans[0].reason
    assert "datalad get .hz/sub-02 " in level.scans[0].reason
    assert (out / ".hz" / "sub-02" / f"sub-02_run-1_desc-harmonized{end}").is_symlink()
    assert [scan.status for scan in run(root, tiny_bundle, overwrite=True).scans] == ["ok", "ok"]
    assert json.loads((out / "logs" / "sub-02_run.json").read_text())["counts"]["ok"] == 2


def test_the_lock(root: Path, tiny_bundle: Path) -> None:
    unfetch(root / "out" / ".hz" / "sub-02" / LOCK_NAME, root / "out")
    level = run(root, tiny_bundle)
    assert level.problems == (
        "sub-02: sub-02: what an earlier run left is not here, only links to it. "
        "Fetch it first, in its data set: datalad get .hz/sub-02",
    )


def test_locks_that_are_kept_by_content(tmp_path: Path) -> None:
    """git-annex keeps files of the same bytes as one: a run can have two sessions' folders all the same."""
    folders = [tmp_path / ".hz" / f"sub-01_ses-{n}" for n in (1, 2)]
    for folder in folders:
        with locked(folder):
            pass
        lock = folder / LOCK_NAME
        kept = tmp_path / hashlib.sha256(lock.read_bytes()).hexdigest()
        lock.replace(kept)
        lock.symlink_to(kept)
    with locked(folders[0]), locked(folders[1]), pytest.raises(UsageError, match="another run"):
        locked(folders[0]).__enter__()
