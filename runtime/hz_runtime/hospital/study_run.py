"""One study on its way: its head taken and converted, and what hz-run makes of it written back.

Whose threads run the head between the two is `process`'s.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hz_runtime.batch.executor import Event, Job
from hz_runtime.batch.folder_run import FolderRun
from hz_runtime.batch.inputs import Inputs, InputScan
from hz_runtime.batch.log import LOG_NAME, RunLog
from hz_runtime.batch.opened import Opened
from hz_runtime.dicom.convert import convert, make_folder, output_name
from hz_runtime.dicom.export import write_export
from hz_runtime.dicom.intake import dicom_files
from hz_runtime.dicom.result import read_result
from hz_runtime.dicom.selection import choose_each, judge
from hz_runtime.dicom.series import Series
from hz_runtime.dicom.whole_files import check_whole, damaged, find_whole
from hz_runtime.errors import HzError, UnreadableScan, UnsupportedScan, UsageError
from hz_runtime.hospital.outcome import RESULT_NAME, Outcome
from hz_runtime.hospital.study import ProcessOptions, Study
from hz_runtime.io.volume import stem
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult


@dataclass(frozen=True, eq=False)
class Head:
    """The head of a study.  volume : the converted series.  notes : what its input left unclear."""

    series: Series
    volume: Path
    name: str
    notes: tuple[str, ...]


class StudyRun:
    """A study from its files to its outcome.  folder : a private one, made here and gone at the end."""

    def __init__(self, study: Study, folder: Path, options: ProcessOptions) -> None:
        self.study = study
        self._folder, self._options = folder, options
        self._held = ExitStack()  # an archive's files
        self._held.callback(shutil.rmtree, folder, ignore_errors=True)
        self._taken: Head | Outcome = Outcome("interrupted", (NOT_REACHED,))
        self._run: FolderRun | None = None

    def begin(self, opened: Opened) -> Job:
        """Take the head, and give it as an executor takes it. A study without one, or whose run cannot be
        begun, has a job that fails at once, and its outcome."""
        self._take()
        out = self._folder / "out"
        log = RunLog(out / LOG_NAME)
        if isinstance(self._taken, Head):
            try:
                return self._job(self._taken, opened, out, log)
            except HzError as error:  # an account that cannot be given, for one
                self._taken = Outcome.failed(error, self._taken.notes, self._taken.name)
        fault = HzError(self._outcome.text)
        return Job(InputScan(self._folder / "none", "none", "none", fault), opened.stages(out), log)

    def _job(self, head: Head, opened: Opened, out: Path, log: RunLog) -> Job:
        make_folder(out)
        scans = Inputs((InputScan(head.volume, head.volume.name, stem(head.volume)),))
        self._run = FolderRun(out, scans, opened, opened.options.ages, log, _unseen)
        self._run.announce()
        (job,) = self._run.jobs()
        return job

    def end(self, result: ScanResult) -> Outcome:
        """Write what goes back of the job's result, and result.json; nothing is left but that."""
        if isinstance(self._taken, Head) and self._run is not None:
            return self._ended(self._written_back(self._taken, self._run, result))
        return self._ended(self._outcome)

    def refuse(self, error: HzError) -> Outcome:
        """The outcome where no head can be run, for this reason. A study may have another of its own."""
        if isinstance(self._taken, Outcome) and self._taken.status == "interrupted":
            self._take()
        if isinstance(self._taken, Head):
            return self._ended(Outcome.failed(error, self._taken.notes, self._taken.name))
        return self._ended(self._outcome)

    def close(self) -> None:
        """Remove what it holds, where it has no outcome."""
        self._held.close()

    @property
    def _outcome(self) -> Outcome:
        assert isinstance(self._taken, Outcome)
        return self._taken

    def _ended(self, outcome: Outcome) -> Outcome:
        try:
            if outcome.status != "interrupted":
                outcome.write(self.study.out)
        except HzError as error:  # a full disk
            return Outcome.failed(error, outcome.notes, outcome.name)
        finally:
            self.close()
        return outcome

    def _take(self) -> None:
        """Find the head and convert it; or why there is none."""
        notes: list[str] = []
        names: list[str] = []
        try:
            make_folder(self.study.out)
            (self.study.out / RESULT_NAME).unlink(missing_ok=True)  # what is there is no longer claimed
            self._taken = self._found(notes, names)
        except HzError as error:
            self._taken = Outcome.failed(error, tuple(notes), "".join(names))
        except Exception as error:
            # Whatever pydicom raises of a file that breaks all rules: its text may quote the patient.
            fault = UnreadableScan(f"the study cannot be read ({type(error).__name__}).", "Send it again.")
            self._taken = Outcome.failed(fault, tuple(notes), "".join(names))

    def _found(self, notes: list[str], names: list[str]) -> Head | Outcome:
        """The converted head, or the outcome of a study that has none.  notes, names : to be filled."""
        files = self._held.enter_context(dicom_files(self.study.source, note=notes.append))
        series, damage = find_whole(files)
        try:
            chosen, _ = choose_each(series)
        except UnsupportedScan as error:
            if damage:
                raise damaged(damage) from error
            return Outcome("discarded", (error.message,), tuple(notes))
        if len(chosen) > 1:
            raise UsageError(
                f"the input holds T1-weighted heads of {len(chosen)} studies.", "Give one study at a time."
            )
        one, salt = chosen[0], self._options.salt
        names.append(output_name(one, salt).partition("_")[0])
        check_whole(one, damage)
        notes += [found.said for found in damage]
        return Head(one, convert(one, self._folder, salt=salt).volume, names[0], tuple(notes))

    def _written_back(self, head: Head, run: FolderRun, made: ScanResult) -> Outcome:
        if made.reason == NOT_REACHED:
            return Outcome("interrupted", (NOT_REACHED,), head.notes, head.name)
        taken = judge(head.series).reason
        try:
            run.account(0, made)
            run.end([made], interrupted=False)
            if made.status == "failed":
                # A gate that is not passed says that this is no head to use; anything else, that something
                # is wrong.
                if any(gate.get("passed") is not True for gate in made.gates):
                    return Outcome("discarded", (made.reason,), head.notes, head.name, taken, 0)
                return Outcome("failed", (made.reason,), head.notes, head.name, taken, 3)
            volume = run.folder / made.outputs[0]
            result = read_result(volume)
            exported = write_export(
                volume, head.series, self.study.out, result, self._options.page,
                keep_ids=self._options.keep_ids, salt=self._options.salt, before=head.volume,
            )  # fmt: skip
        except HzError as error:
            return Outcome.failed(error, head.notes, head.name)
        except OSError as error:
            full = HzError(f"temporary files cannot be written ({error.strerror}).", "Make room.")
            return Outcome.failed(full, head.notes, head.name)
        except Exception as error:  # as in `_take`, of values that are looked at here first
            fault = UnreadableScan(
                f"its results cannot be written ({type(error).__name__}).", "Send it again."
            )
            return Outcome.failed(fault, head.notes, head.name)
        flags = result.origin.flags
        status = "flagged" if flags else "done"
        return Outcome(status, flags, head.notes, head.name, taken, 0, result, exported)  # type: ignore[arg-type]


def _unseen(_: Event) -> None:
    """What hz-run would show of a run of one head."""
