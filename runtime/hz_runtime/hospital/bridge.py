"""Between an Orthanc and hz: stable series of a T1-weighted head go through, and results go back, once.

Every step is in the journal before the next one: a kill at any moment leaves a series to be looked at, to be
processed, or to be stored from a folder that is whole. The same images give objects of the same UIDs, so
that what is stored twice is one. A series that has more images since is done again; its earlier results go.
What is derived is refused by the rules of selection, so that it never comes back as a source.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from hz_runtime.batch.stop import deadline
from hz_runtime.dicom.intake import IntakeLimits
from hz_runtime.errors import HzError
from hz_runtime.hospital.answers import Arrived, Changes, stored_in
from hz_runtime.hospital.arrival import announced, refused_by
from hz_runtime.hospital.journal import WAITING, Entry, Journal, NoRoom
from hz_runtime.hospital.line import Line
from hz_runtime.hospital.orthanc import Orthanc, OrthancAway, OrthancRefuses
from hz_runtime.hospital.outcome import Outcome, read_outcome
from hz_runtime.hospital.study import Study

T = TypeVar("T")
Process = Callable[[Iterable[Study], threading.Event], Generator[tuple[Study, Outcome]]]
_PAGE = 500  # changes an answer
_IN_A_ROW = 32  # series, before changes are read again
_AUDITED_SECONDS = 86400.0
_FATAL = (4, 5)  # exit codes that are about the installation, not about a study
_LEAST_FREE = 2**30  # bytes of the disk with the state


@dataclass(frozen=True)
class Pace:
    """How the bridge waits.

    poll : seconds between questions where nothing happens.  tries : of a study before it is set aside.
    first, longest : pauses in seconds after a failure; each is twice the one before.
    patience : seconds that a series is waited for that says it has more images.
    batch : series that are on their way at once, from the first image fetched to the last result stored,
    which bounds the disk.
    """

    poll: float = 5.0
    tries: int = 3
    first: float = 2.0
    longest: float = 300.0
    patience: float = 600.0
    batch: int = 8

    def pause(self, failures: int) -> float:
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30))


class Fatal(HzError):
    """No study can be processed here. exit_code : of what stopped it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, "Mend it, and start the bridge again: nothing is lost.")
        self.exit_code = code


class Bridge:
    """One bridge over one journal.

    folder : for what is on its way; emptied of each series when it ends.  process : gives the outcomes of
    studies as they come, and may ask for more studies from another thread (`process_each`).  say : takes each
    line of the log.  stop : set it from anywhere to end after the step in flight.
    """

    def __init__(
        self,
        orthanc: Orthanc,
        journal: Journal,
        folder: Path,
        process: Process,
        say: Callable[[str], None],
        stop: threading.Event,
        pace: Pace | None = None,
    ) -> None:
        self._orthanc, self._journal, self._folder = orthanc, journal, folder
        self._process, self._say, self._stop, self._pace = process, say, stop, pace or Pace()
        self._breaks = -1  # a restart of the bridge is like a break: what was missed meanwhile is looked for
        self._limits = IntakeLimits()
        self._trouble: Exception | None = None  # that ends the line once it is empty

    def run(self, since: int | None = None, once: bool = False) -> bool:
        """Work until `stop` is set, or with `once` until nothing is left to do now.

        since : where an empty journal begins to read: after this change; None: after the last one there is.
        Returns whether nothing was left; with `once`, an Orthanc that is away or a full disk is an end, too.
        Raises Fatal, HzError (journal).
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(NoRoom):
            self._journal.forget_old()
        failures, back = 0, ""
        while not self._stop.is_set():
            try:
                if self._journal.cursor is None:
                    self._begin(since)
                moved = self._step()
                if failures:
                    self._say(back)
                failures = 0
            except (OrthancAway, OrthancRefuses, NoRoom) as error:
                failures += 1
                back = "there is room again" if isinstance(error, NoRoom) else "Orthanc is back"
                pause = self._pace.pause(failures)
                self._say(f"{error.message} Next try in {pause:g} s")
                with suppress(NoRoom):
                    self._journal.remember(trouble=error.message)
                if once:
                    return False
                self._stop.wait(pause)
                continue
            if moved:
                continue
            if once and not self._outstanding():
                return True
            self._stop.wait(self._wait())
        return False

    def _begin(self, since: int | None) -> None:
        if since is None:
            since = self._changes("/changes?last").last or 0
        self._journal.read_to(since, ())

    def _step(self) -> bool:
        """Read what has changed, and take the series whose turn it is one step on; whether there were any."""
        if self._orthanc.breaks != self._breaks:
            self._audit()
        moved = self._read_changes()
        for entry in self._journal.to_look_at():
            moved = self._look(entry) or moved
        self._journal.remember(trouble="", answered=int(time.time()))
        for entry in self._journal.due("storing", time.time(), _PAGE):
            self._attempted(entry, lambda one: self._store(one, self._orthanc))
            moved = True
        return self._work() or moved

    # What has changed

    def _read_changes(self) -> bool:
        cursor = self._journal.cursor or 0
        moved = False
        while not self._stop.is_set():
            page = self._changes(f"/changes?since={cursor}&limit={_PAGE}")
            last = cursor if page.last is None else page.last
            more = not page.done and not page.empty
            if more and last <= cursor:  # the same page would be asked for without end
                raise OrthancRefuses("Orthanc says that there are more changes, and gives no later ones.", 0)
            if last != cursor or page.series:
                self._journal.read_to(last, page.series)
                moved = moved or bool(page.series)
            cursor = last
            if not more:
                return moved
        return moved

    def _changes(self, path: str) -> Changes:
        return Changes.read(self._orthanc.get(path))

    def _audit(self) -> None:
        """Look again at what ended in the last day: an Orthanc that was restarted forgets what is not stable,
        and says nothing of it later. Another archive behind the same address counts its changes anew."""
        breaks = self._orthanc.breaks
        if (self._changes("/changes?last").last or 0) < (self._journal.cursor or 0):
            self._say("Orthanc counts its changes anew, as another archive does: read from its start")
            self._journal.read_to(0, ())
        for entry in self._journal.changed_since(time.time() - _AUDITED_SECONDS):
            self._journal.look_again(entry.id)
        self._breaks = breaks

    def _look(self, entry: Entry) -> bool:
        """Whether a series is there, stable, and other than it was: then it is to be processed."""
        if entry.state == "own":
            self._journal.looked_at(entry.id)
            return False
        found = _found(entry.id, self._orthanc)
        if found is None:  # removed in Orthanc
            self._journal.forget(entry.id)
            self._emptied(entry.id)
            return True
        if not found.stable:
            return False
        images = _digest(found.instances)
        if entry.state == "new" or images != entry.images:
            self._emptied(entry.id)
            self._journal.set(entry.id, "pending", images=images, tries=0, due=0.0, text="", look=0)
        else:
            self._journal.looked_at(entry.id)
        return True

    # What is to be done

    def _work(self) -> bool:
        """Take series whose turn it is through, one behind the other; whether there were any.

        They are fetched as `process` asks for them, and stored by a thread of its own as they come out of it,
        while others are on their way. Where Orthanc is away, no more are fetched, and those go on as far as
        they can; then the error is raised.
        """
        if not self._journal.due("pending", time.time(), 1):
            return False
        line = Line(self._pace.batch, self._stop)
        self._trouble = None
        with closing(self._orthanc.another()) as fetching, closing(self._orthanc.another()) as storing:
            arriving = self._arriving(fetching, line)
            if first := list(islice(arriving, 1)):  # most series are no head, and need no network opened
                with (
                    ThreadPoolExecutor(1) as thread,
                    closing(self._process(chain(first, arriving), self._stop)) as outcomes,
                    closing(line),
                ):
                    for study, outcome in outcomes:
                        self._settle(*line.at(study.out), outcome)
                        thread.submit(self._leave, line, study, storing)
            self._orthanc.breaks += fetching.breaks + storing.breaks
        if self._trouble is not None:
            raise self._trouble
        return line.moved

    def _leave(self, line: Line, study: Study, orthanc: Orthanc) -> None:
        """Store a series' results where it has any, and let it out of the line."""
        try:
            entry = self._journal.entry(line.at(study.out)[0].id)
            in_time = self._trouble is None and time.monotonic() < deadline(self._stop)
            if entry is not None and entry.state == "storing" and in_time:
                self._attempted(entry, lambda one: self._store(one, orthanc))
        except Exception as error:  # its results wait in its folder
            self._trouble = self._trouble or error
        finally:
            line.leave(study.out)

    def _arriving(self, orthanc: Orthanc, line: Line) -> Iterator[Study]:
        """Series whose turn it is, each once it is in its folder and the line has a place for it.

        orthanc : a connection of the thread that asks.
        """
        try:
            for _ in range(_IN_A_ROW):
                study = self._next_study(orthanc, line) if line.wait() else None
                if study is None:
                    return
                yield study
        except Exception as error:  # for the thread that stores; no thread dies of it
            self._trouble = self._trouble or error

    def _next_study(self, orthanc: Orthanc, line: Line) -> Study | None:
        while self._trouble is None and not self._stop.is_set():  # else more results than places would wait
            on_way = line.series()  # before the question: what leaves the line meanwhile is no longer pending
            due = self._journal.due("pending", time.time(), len(on_way) + 1)
            entry = next((one for one in due if one.id not in on_way), None)
            if entry is None:
                return None
            line.moved = True
            self._room()
            started = time.perf_counter()
            if self._attempted(entry, lambda one: self._fetched(one, orthanc)):
                study = Study(self._at(entry.id) / "in", self._at(entry.id) / "out")
                line.enter(study.out, entry, started)
                return study
        return None

    def _settle(self, entry: Entry, seconds: float, outcome: Outcome) -> None:
        """Note what became of a series."""
        if outcome.exit_code in _FATAL:
            raise Fatal(outcome.text, outcome.exit_code)
        if outcome.status == "interrupted":
            return
        if outcome.status == "failed":
            self._failed(entry, outcome.text)
            return
        self._journal.set(entry.id, "storing", text=f"{outcome.text}; {seconds:.1f} s", due=0.0, tries=0)

    def _attempted(self, entry: Entry, do: Callable[[Entry], T]) -> T | None:
        """Do something with a series; where Orthanc refuses it, or the disk, it is tried again later."""
        try:
            return do(entry)
        except (OrthancAway, NoRoom, Fatal):
            raise
        except HzError as error:
            self._failed(entry, error.one_line)
            return None

    def _failed(self, entry: Entry, why: str) -> None:
        tries = entry.tries + 1
        name = f"series {entry.id[:8]}"
        if tries >= self._pace.tries:
            self._say(f"{name}: set aside after {tries} tries: {why}")
            self._journal.set(entry.id, "aside", tries=tries, text=why)
            self._emptied(entry.id)
            return
        pause = self._pace.pause(tries)
        self._say(f"{name}: try {tries} of {self._pace.tries} failed, next in {pause:g} s: {why}")
        self._journal.set(entry.id, entry.state, tries=tries, due=time.time() + pause, text=why)

    def _fetched(self, entry: Entry, orthanc: Orthanc) -> bool:
        """Whether all images of a series are in its folder, and it may be a T1-weighted head."""
        found = _found(entry.id, orthanc)
        if found is None or _digest(found.instances) != entry.images:
            self._journal.look_again(entry.id)
            return False
        if found.modality != "MR":
            self._passed(entry, "not MR", orthanc)
            return False
        self._emptied(entry.id)
        folder = self._at(entry.id) / "in"
        folder.mkdir(parents=True)
        left = self._limits.max_bytes
        instances = sorted(found.instances)
        for number, instance in enumerate(instances, 1):
            if self._stop.is_set():
                return False
            path = folder / f"{number:06}.dcm"
            left -= orthanc.download(f"/instances/{instance}/file", path, left)
            if number == 1 and (why := refused_by(path)):
                self._passed(entry, why, orthanc)
                return False
            if number == 1 and self._incomplete(entry, announced(path), len(instances)):
                return False
        return True

    def _incomplete(self, entry: Entry, said: int, there: int) -> bool:
        if said <= there or (entry.due and time.time() >= entry.due):
            return False
        self._emptied(entry.id)
        self._journal.set(
            entry.id,
            "pending",
            due=time.time() + self._pace.patience,
            text=f"{there} of {said} images so far",
        )
        return True

    def _passed(self, entry: Entry, why: str, orthanc: Orthanc) -> None:
        self._emptied(entry.id)
        _replace(entry, (), orthanc)
        self._journal.set(entry.id, "passed", text=why)

    def _store(self, entry: Entry, orthanc: Orthanc) -> None:
        """Store a series' results, from the folder that they are whole in."""
        out = self._at(entry.id) / "out"
        outcome = read_outcome(out)
        if outcome is None:  # the folder was lost, or is of before a power cut
            self._journal.set(entry.id, "pending", due=0.0)
            return
        stored: list[str] = []
        for file in outcome["files"]:
            series = stored_in(orthanc.upload((out / str(file["name"])).read_bytes()))
            if series and series not in stored:
                stored.append(series)
                self._journal.own([series])
        _replace(entry, stored, orthanc)
        end = "discarded" if outcome["status"] == "discarded" else "done"
        self._journal.set(entry.id, end, stored=stored)
        self._emptied(entry.id)
        self._say(entry.text)

    # Where and when

    def _at(self, series: str) -> Path:
        return self._folder / hashlib.sha256(series.encode()).hexdigest()[:24]

    def _emptied(self, series: str) -> None:
        shutil.rmtree(self._at(series), ignore_errors=True)

    def _room(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < _LEAST_FREE:
            raise NoRoom(f"{free / 1e9:.1f} GB are left on the disk of --state: waiting for room.")

    def _outstanding(self) -> bool:
        counts = self._journal.counts()
        arriving = any(entry.state != "own" for entry in self._journal.to_look_at())
        return arriving or any(counts.get(state) for state in WAITING)

    def _wait(self) -> float:
        due = self._journal.next_due()
        return self._pace.poll if due is None else min(self._pace.poll, max(0.05, due - time.time()))


def _digest(instances: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(instances)).encode()).hexdigest()


def _found(series: str, orthanc: Orthanc) -> Arrived | None:
    try:
        return Arrived.read(orthanc.get(f"/series/{series}"))
    except OrthancRefuses as error:
        if error.status == 404:
            return None
        raise


def _replace(entry: Entry, stored: Sequence[str], orthanc: Orthanc) -> None:
    """Remove what this bridge stored of fewer images of the same series."""
    for old in entry.stored:
        if old not in stored:
            orthanc.delete(f"/series/{old}")
