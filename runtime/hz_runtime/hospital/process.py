"""Studies in, what goes back to the archive out: the whole way of a head in one call.

Of each study the T1-weighted head is taken as `hz-dicom` takes it, prepared and harmonized as by
`hz-run --prepare`, and written back as by `hz-dicom export`, with a result.json beside it. While one head is
prepared, the next study is read and the one before written back. What calls this, and where the studies come
from, is not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Job
from hz_runtime.batch.opened import Opened, open_bundle
from hz_runtime.batch.run import threads_of
from hz_runtime.dicom.convert import make_folder
from hz_runtime.dicom.deidentify import need
from hz_runtime.dicom.intake import private_folder
from hz_runtime.errors import HzError, UsageError
from hz_runtime.hospital.outcome import RESULT_NAME, Outcome
from hz_runtime.hospital.study import ProcessOptions, Study
from hz_runtime.hospital.study_run import StudyRun
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle


def process_studies(
    studies: Sequence[Study],
    bundle: Bundle,
    options: ProcessOptions | None = None,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Process `studies`, and write what is made of each, with a result.json, to its folder.

    stop : set it from anywhere to end early; studies that were not reached are interrupted, without a
    result.json. A study that fails does not raise. Raises UsageError where a package is missing or a folder
    cannot be written.
    """
    for study in studies:
        make_folder(study.out)
        (study.out / RESULT_NAME).unlink(missing_ok=True)  # nor is it claimed of one that is not reached
    ends = {study.out: outcome for study, outcome in process_each(studies, bundle, options, stop)}
    return [ends.get(study.out) or Outcome("interrupted", (NOT_REACHED,)) for study in studies]


def process_each(
    studies: Iterable[Study],
    bundle: Bundle,
    options: ProcessOptions | None = None,
    stop: threading.Event | None = None,
) -> Generator[tuple[Study, Outcome]]:
    """(study, its outcome) as they come, each written to the study's folder with a result.json.

    studies : asked for one by one, by another thread, some ahead of what is done; it may wait.
    stop : see `process_studies`; studies that were not reached do not come, or are interrupted.
    Raises UsageError where a package is missing.
    """
    need("pydicom", "dcm2niix", "highdicom", "PIL")
    options = options or ProcessOptions()
    stop = stop or threading.Event()
    with ExitStack() as held:
        line = _Line(studies, options, held.enter_context(private_folder()), stop)
        try:
            opened = _opened(bundle, options)
        except HzError as error:
            yield from line.refused(error)
            return
        held.callback(opened.close)
        yield from line.outcomes(opened)


def _opened(bundle: Bundle, options: ProcessOptions) -> Opened:
    if not any(entry.role == "harmonizer" for entry in bundle.models):
        raise UsageError(
            f"{bundle.path.name} holds no harmonizer, so that there is no series to send back.",
            "Give a bundle with one; ages alone are hz-run's:  hz-run --prepare SERIES --model BUNDLE",
        )
    return open_bundle(bundle, options.batch)


class _Line:
    """Studies one behind the other.  folder : for those that are on their way."""

    def __init__(
        self, studies: Iterable[Study], options: ProcessOptions, folder: Path, stop: threading.Event
    ) -> None:
        self._studies, self._options, self._folder, self._stop = studies, options, folder, stop
        self._on_way: dict[int, StudyRun] = {}  # by their place
        self._left = threading.Event()  # by whom the outcomes are for

    def refused(self, error: HzError) -> Iterator[tuple[Study, Outcome]]:
        """The outcomes where no head can be run."""
        for run in self._runs():
            yield run.study, run.refuse(error)

    def outcomes(self, opened: Opened) -> Iterator[tuple[Study, Outcome]]:
        results = threads_of(opened, self._stop).run(self._jobs(opened))
        try:
            while (found := self._next(results)) is not None:
                if isinstance(found, HzError):  # threads died
                    for place in sorted(self._on_way):
                        run = self._on_way.pop(place)
                        yield run.study, run.refuse(found)
                    return
                place, result = found
                run = self._on_way.pop(place)
                yield run.study, run.end(result)
        finally:
            self._left.set()
            for _ in results:  # until the threads are done with the networks
                pass
            for run in self._on_way.values():
                run.close()

    @staticmethod
    def _next(results: Iterator[tuple[int, ScanResult]]) -> tuple[int, ScanResult] | HzError | None:
        try:
            return next(results, None)
        except HzError as error:
            return error

    def _jobs(self, opened: Opened) -> Iterator[Job]:
        for place, run in enumerate(self._runs()):
            self._on_way[place] = run
            yield run.begin(opened)

    def _runs(self) -> Iterator[StudyRun]:
        for place, study in enumerate(self._studies):
            if self._stop.is_set() or self._left.is_set():
                return
            yield StudyRun(study, self._folder / f"{place:04}", self._options)
