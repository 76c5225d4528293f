"""What runs leave in a BIDS data set one after the other, each by a stand-in for hz's pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from hz_runtime.batch.folder_lock import locked
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bids import participant, unit_run
from hz_runtime.bids.derivatives import publish
from hz_runtime.bids.group import run_group
from hz_runtime.bids.layout import Unit, find_units
from hz_runtime.bids.participant import Level, run_participants
from hz_runtime.errors import HzError, UsageError
from hz_runtime.preparation.preparer import Preparation
from hz_runtime.results.prediction import Prediction
from hz_runtime.results.run_report import RunReport
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

# The runs that are published here are made up, and hold only what publishing looks at.
pytestmark = pytest.mark.made_up_results

MADE: dict[str, Any] = {"bundle": {"id": "b"}, "options": {"to": "A", "prepare": None, "precision": None}}


def scan(run: str, status: str = "ok", reason: str = "", age: float = 40.0) -> ScanResult:
    """sub-01_run-RUN as a run reports it."""
    made = status == "ok"
    return ScanResult(
        f"sub-01_run-{run}_T1w.nii.gz",
        f"sub-01_run-{run}",
        status,  # type: ignore[arg-type]
        reason,
        outputs=(f"sub-01_run-{run}_desc-harmonized_T1w.nii.gz",) if made else (),
        prediction=Prediction(age if made else None),
    )


class Folder:
    """sub-01 of a raw data set with runs a, b and c, and what is published of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, self.work, self.out = root, root / "raw", root / "work", root / "out"
        self.scans = self.raw / "sub-01" / "anat"
        for folder in (self.scans, self.work, self.out):
            folder.mkdir(parents=True)
        for run in "abc":
            (self.scans / f"sub-01_run-{run}_T1w.nii.gz").touch()

    def publish(self, *scans: ScanResult, **more: Any) -> None:
        for one in scans:
            for name in one.outputs:
                (self.work / name).write_text(str(one.prediction.age_raw))
        run = {**MADE, **more, "scans": [one.to_dict() for one in scans]}
        publish(Unit("01", None, ()), self.work, self.raw, self.out, run, False)

    @property
    def volumes(self) -> str:
        """The runs whose volume lies in anat/, as "ab"."""
        return "".join(
            sorted(p.name.split("_")[1][-1] for p in (self.out / "sub-01" / "anat").glob("*.nii.gz"))
        )

    @property
    def record(self) -> dict[str, Any]:
        run: dict[str, Any] = json.loads((self.out / "logs" / "sub-01_run.json").read_text())
        return run

    @property
    def recorded(self) -> dict[str, str]:
        """{run: status} of the record."""
        return {one["name"][-1]: one["status"] for one in self.record["scans"]}

    @property
    def rows(self) -> dict[str, str]:
        """{run: status} of the table."""
        lines = (self.out / "sub-01" / "sub-01_predictions.tsv").read_text().splitlines()[1:]
        return {line.split("_")[1][-1]: line.split("\t")[1] for line in lines}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_an_interrupted_run_keeps_what_it_did_not_reach(folder: Folder) -> None:
    folder.publish(scan("a"), scan("b"))
    folder.publish(scan("a", age=41), scan("b", "skipped", NOT_REACHED), scan("c", "skipped", NOT_REACHED))
    assert folder.volumes == "ab"
    assert folder.recorded == folder.rows == {"a": "ok", "b": "ok", "c": "skipped"}
    assert folder.record["counts"] == {"ok": 2, "flagged": 0, "failed": 0, "skipped": 1}
    assert [s["age_raw"] for s in folder.record["scans"]] == [41, 40, None]
    folder.publish(scan("a"), scan("b", "failed", "bad"))  # no orphan after the interruption
    assert folder.volumes == "a" and folder.recorded == folder.rows == {
        "a": "ok",
        "b": "failed",
        "c": "skipped",
    }


def test_a_filtered_run_keeps_the_others(folder: Folder) -> None:
    folder.publish(scan("a"), scan("b"), scan("c"))
    folder.publish(scan("b", age=50))
    assert folder.volumes == "abc" and folder.rows == folder.recorded == dict.fromkeys("abc", "ok")
    assert (folder.out / "sub-01/anat/sub-01_run-b_desc-harmonized_T1w.nii.gz").read_text() == "50"
    assert len(run_group(folder.out).scans) == 3


def test_one_age_for_everybody_is_said_of_the_group(folder: Folder) -> None:
    folder.publish(*map(scan, "abcdefg"))
    assert run_group(folder.out).notes == ()
    folder.publish(*map(scan, "abcdefgh"))
    (note,) = run_group(folder.out).notes
    assert note.startswith("nearly the same age was predicted for all 8 scans, 40.0 to 40.0 years")
    columns = json.loads((folder.out / "predictions.json").read_text())
    assert columns["age_raw"]["Remark"] == note and "Remark" not in columns["status"]
    assert note[1:] in (folder.out / "group.html").read_text()


def test_a_scan_that_the_raw_data_lost_goes(folder: Folder) -> None:
    folder.publish(scan("a"), scan("b"), scan("c"))
    (folder.scans / "sub-01_run-c_T1w.nii.gz").unlink()
    folder.publish(scan("a"))
    assert folder.volumes == "ab" and folder.recorded == folder.rows == {"a": "ok", "b": "ok"}
    folder.raw.rename(folder.root / "away")  # a share that is gone says nothing
    folder.publish(scan("a"))
    assert folder.volumes == "ab" and folder.recorded == {"a": "ok", "b": "ok"}


def test_what_was_made_otherwise_is_kept_and_not_compared(folder: Folder) -> None:
    folder.publish(scan("a"), scan("b"))
    folder.publish(scan("a"), bundle={"id": "other"})
    assert folder.volumes == "ab" and folder.recorded == {"a": "ok", "b": "ok"} and folder.rows == {"a": "ok"}
    with pytest.raises(UsageError, match=r"different bundles or options \(sub-01\)"):
        run_group(folder.out)
    folder.publish(scan("c"))  # made as b was
    assert folder.volumes == "abc" and folder.rows == {"b": "ok", "c": "ok"}
    folder.publish(scan("a"))
    assert folder.rows == dict.fromkeys("abc", "ok") and len(run_group(folder.out).scans) == 3


def test_a_record_that_cannot_be_read_is_not_replaced(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.publish(scan("a"), scan("b"))
    before, real = folder.record, Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "sub-01_run.json":
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", denied)
        with pytest.raises(HzError):
            folder.publish(scan("a"))
    assert folder.record == before
    (folder.out / "logs" / "sub-01_run.json").write_text('{"scans": [{"name": 1}]}')
    folder.publish(scan("a"))  # a damaged one is
    assert folder.recorded == {"a": "ok"}


# Whole levels


Hook = Callable[[Path], None]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A raw data set of sub-01, sub-02 and sub-03, of one scan each."""
    raw = tmp_path / "raw"
    for label in ("01", "02", "03"):
        (raw / f"sub-{label}" / "anat").mkdir(parents=True)
        (raw / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz").touch()
    return raw


@pytest.fixture
def run(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Level]:
    """A participant level of a pipeline that does nothing.

    hook : called after each unit, with its folder.  refusals : raised when the run of such a folder begins.
    """

    def level(
        *labels: str,
        hook: Hook = lambda _: None,
        shown: dict[str, Any] | None = None,
        refusals: dict[str, Exception] | None = None,
        **options: Any,
    ) -> Level:
        class Nothing:
            """In place of networks, of threads, and of a folder's run."""

            threads = batch = 1
            preparer, networks = None, MagicMock()

            def __init__(self, folder: Any, chosen: Any = None, *_: object) -> None:
                self.folder, self.chosen = folder, chosen

            def announce(self) -> None:
                if self.folder.name in said:
                    raise said[self.folder.name]

            def jobs(self) -> Iterator[Any]:
                yield from self.chosen.scans

            def run(self, jobs: Iterator[Any], _: int) -> Iterator[tuple[int, ScanResult]]:
                for place, one in enumerate(jobs):
                    yield place, ScanResult(one.label, one.name, "ok", prediction=Prediction(40.0))

            def end(self, scans: list[ScanResult], interrupted: bool) -> RunReport:
                hook(self.folder)
                run = {**MADE, "options": {**MADE["options"], **(shown or {})}, "seconds": 1.0}
                run["scans"] = [one.to_dict() for one in scans]
                return RunReport(self.folder, tuple(scans), run, interrupted)

            def account(self, *_: object) -> None:
                pass

            def close(self) -> None:
                pass

        said = refusals or {}
        monkeypatch.setattr(participant, "open_bundle", lambda *_: Nothing(None))
        monkeypatch.setattr(participant, "executor_of", Nothing)
        monkeypatch.setattr(unit_run, "FolderRun", Nothing)
        units = [unit for unit in find_units(study)[0] if not labels or unit.subject in labels]
        return run_participants(units, None, study, tmp_path / "out", RunOptions(**options))  # type: ignore[arg-type]

    return level


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def published(out: Path) -> list[str]:
    return sorted(path.name[:6] for path in (out / "logs").glob("*_run.json"))


def test_a_mask_is_for_one_scan_of_all_participants(run: Callable[..., Level], tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    mask.touch()
    with pytest.raises(UsageError, match="mask of one scan, and 3 were given"):
        run(preparation=Preparation.asked(6, str(mask)))
    assert not (tmp_path / "out").exists()
    assert run("02", preparation=Preparation.asked(6, str(mask))).exit_code == 0


def test_a_participant_that_cannot_be_published_stops_no_other(
    run: Callable[..., Level], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub-01").write_text("a file where a folder should be")
    (tmp_path / "out" / "sub-02" / "sub-02_predictions.tsv").mkdir(parents=True)
    level = run()
    assert level.exit_code == 3 and len(level.scans) == 3
    assert [problem[:23] for problem in level.problems] == [
        "sub-01: not published: ",
        "sub-02: not published: ",
    ]
    assert published(tmp_path / "out") == ["sub-03"] and str(tmp_path) not in "".join(level.problems)


def test_the_system_refuses_one_participant(
    run: Callable[..., Level], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        if folder.name == "sub-02":
            raise OSError(28, "No space left on device", str(folder / "x"))

    level = run(hook=full)
    assert level.problems == ("sub-02: x: No space left on device.",) and level.exit_code == 3
    assert published(tmp_path / "out") == ["sub-01", "sub-03"]
    real = unit_run.publish

    def refused(unit: Unit, *more: Any) -> bool:
        if unit.subject == "01":
            raise PermissionError(13, "Permission denied", str(tmp_path / "y"))
        return real(unit, *more)

    monkeypatch.setattr(unit_run, "publish", refused)
    assert run().problems == ("sub-01: not published: y: Permission denied.",)


def test_another_job_that_holds_a_participant(
    run: Callable[..., Level], tmp_path: Path, held: ExitStack
) -> None:
    """Nobody comes between a unit's run and its publishing: its folder stays locked."""
    work = tmp_path / "out" / ".hz"
    held.enter_context(locked(work / "sub-01"))
    between: list[str] = []

    def take(folder: Path) -> None:
        with pytest.raises(UsageError, match="another run of hz is writing"), locked(folder):
            pass
        between.append(folder.name)

    level = run(hook=take)
    assert level.exit_code == 3 and len(level.problems) == 1 and between == ["sub-02", "sub-03"]
    assert "another run of hz is writing into sub-01" in level.problems[0]
    assert published(tmp_path / "out") == ["sub-02", "sub-03"]
    with locked(work / "sub-02"):
        pass


def test_scans_that_vanish_and_options_that_fit_nobody(
    run: Callable[..., Level], study: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="fits nobody"):  # not for want of its scans: all would fail so
        run(refusals={"sub-02": UsageError("it fits nobody.")})
    assert published(tmp_path / "out") == ["sub-01"]

    def vanish(_: Path) -> None:
        (study / "sub-02" / "anat" / "sub-02_T1w.nii.gz").unlink(missing_ok=True)

    level = run(hook=vanish)
    assert len(level.problems) == 1 and level.problems[0].startswith("sub-02: no scan found")
    assert len(level.scans) == 2


@pytest.mark.parametrize(
    "shown",
    [
        {"to": "B"},
        {"precision": "float16"},
        {"prepare": {"dof": 6, "brain_mask": "auto"}},
    ],
)
def test_other_options_are_not_compared(
    run: Callable[..., Level], tmp_path: Path, shown: dict[str, Any]
) -> None:
    run("01", "03")
    run("02", shown=shown)
    with pytest.raises(UsageError, match=r"different bundles or options \(sub-01, sub-02\)"):
        run_group(tmp_path / "out")
    assert len(run_group(tmp_path / "out", ("01", "03")).scans) == 2
    run("01", "03", shown={**shown, "threads": 2})
    assert len(run_group(tmp_path / "out").scans) == 3


def test_masks_that_were_given_are_one_way_to_prepare(run: Callable[..., Level], tmp_path: Path) -> None:
    for label in ("01", "02"):
        run(label, shown={"prepare": {"dof": 6, "brain_mask": f"{label}.nii.gz"}})
    assert len(run_group(tmp_path / "out").scans) == 2
    run("02", shown={"prepare": {"dof": 12, "brain_mask": "02.nii.gz"}})
    with pytest.raises(UsageError, match="not comparable"):
        run_group(tmp_path / "out")
