"""The bridge: every series once, whatever dies in between; and what becomes of Orthanc's failures."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import small_dicom as small
from hz_runtime.errors import HzError, UsageError
from hz_runtime.hospital.bridge import Fatal, Pace
from hz_runtime.hospital.journal import NAME, Journal, NoRoom
from hz_runtime.hospital.orthanc import Orthanc, OrthancRefuses, Server, read_password
from hz_runtime.hospital.outcome import Outcome
from hz_runtime.hospital.study import Study
from small_bridge import QUICK, Run, forked, stand_in
from small_orthanc import SmallOrthanc


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Path]]:
    """Files of the T1-weighted series number N: 16 slices."""
    folder = tmp_path_factory.mktemp("heads")

    def of(number: int, **changes: object) -> list[Path]:
        here = folder / f"{number}-{len(list(folder.iterdir()))}"
        return small.write_other(here, number, StudyInstanceUID=f"2.25.77{number}", **changes)[:16]

    return of


@pytest.fixture
def orthanc() -> Iterator[SmallOrthanc]:
    server = SmallOrthanc()
    yield server
    server.stop()


def rows(state: Path) -> dict[str, tuple[str, str]]:
    with sqlite3.connect(state / NAME) as file:
        return {row[0]: row[1:] for row in file.execute("SELECT id, state, text FROM series")}


def check_once(orthanc: SmallOrthanc, state: Path, sources: list[str]) -> None:
    """Every source has one result, whole, and the journal agrees."""
    found = sorted(len(files) for files in orthanc.derived().values())
    assert found == [1] * len(sources) + [2] * len(sources)  # a report and two images each
    assert len(orthanc.files) == len(set(orthanc.files))
    assert {rows(state)[source][0] for source in sources} == {"done"}
    with sqlite3.connect(state / NAME) as file:
        stored = [row[0] for row in file.execute("SELECT stored FROM series WHERE state = 'done'")]
    assert sorted(name for text in stored for name in json.loads(text)) == sorted(orthanc.derived())
    assert not list((state / "work").iterdir())


def test_series_go_through_once(orthanc: SmallOrthanc, heads: Callable, tmp_path: Path) -> None:
    sources = [orthanc.send(heads(n)) for n in (2, 3, 4)]
    other = orthanc.send(heads(5, SeriesDescription="t2_tse"))
    report = orthanc.send(heads(6, Modality="SR"))
    run = Run(orthanc, tmp_path)
    assert run.once()
    check_once(orthanc, tmp_path, sources)
    assert rows(tmp_path)[other] == ("passed", "not T1-weighted by its sequence")
    assert rows(tmp_path)[report] == ("passed", "not MR")
    assert sum("sub-1: done" in line for line in run.lines) == 3 == len(run.lines)  # one line a study
    posts = len(orthanc.posts)
    for series in orthanc.derived():  # what was stored becomes stable, and is no source
        orthanc.settle(series)
    assert Run(orthanc, tmp_path).once()
    assert len(orthanc.posts) == posts == 9


def test_without_a_word_it_begins_now(orthanc: SmallOrthanc, heads: Callable, tmp_path: Path) -> None:
    orthanc.send(heads(2))
    assert Run(orthanc, tmp_path).once(since=None)
    later = orthanc.send(heads(3))
    assert Run(orthanc, tmp_path).once(since=None)
    check_once(orthanc, tmp_path, [later])


def test_a_series_in_two_halves_is_answered_once_whole(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    files = heads(2)
    orthanc.send(files[:6])
    assert Run(orthanc, tmp_path).once()
    assert not orthanc.derived()
    source = orthanc.send(files[6:])
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [source])
    # Also where the half would do: its result is replaced.
    files = heads(3)
    orthanc.send(files[:13])
    assert Run(orthanc, tmp_path).once()
    half = set(orthanc.derived())
    again = orthanc.send(files[13:])
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [source, again])
    assert len(half - set(orthanc.derived())) == 2


def test_a_series_that_says_it_has_more_is_waited_for(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    files = heads(2, ImagesInAcquisition=16)
    source = orthanc.send(files[:13])
    run = Run(orthanc, tmp_path, Pace(**{**QUICK.__dict__, "patience": 60.0}))
    run.process = lambda studies, stop: pytest.fail("half was taken")  # type: ignore[assignment]
    timer = threading.Timer(1.0, run.stop.set)
    timer.start()
    assert not run.once()
    timer.cancel()
    assert rows(tmp_path)[source] == ("pending", "13 of 16 images so far")
    orthanc.send(files[13:])
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [source])
    never = orthanc.send(heads(3, ImagesInAcquisition=99))
    assert Run(orthanc, tmp_path).once()  # after QUICK's patience, what there is is taken
    check_once(orthanc, tmp_path, [source, never])


def test_what_orthanc_forgets_when_it_is_restarted_is_found(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    """No StableSeries ever comes for what was arriving; nor for the second half of what had ended."""
    first = orthanc.send(heads(2), stable=False)
    files = heads(3)
    orthanc.send(files[:6])
    orthanc.stable.add(first)  # as after a restart, without an event
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [first])
    second = orthanc.send(files[6:], stable=False)
    orthanc.stable.add(second)
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [first, second])
    # Another archive behind the same address counts from 1 again.
    orthanc.changes.clear()
    third = orthanc.send(heads(4))
    run = Run(orthanc, tmp_path)
    assert run.once() and "counts its changes anew" in run.said
    check_once(orthanc, tmp_path, [first, second, third])


@pytest.mark.parametrize("kind", ["drop", "503", "507", "slow", "401", "half"])
def test_an_orthanc_that_is_away_is_waited_for(
    kind: str, orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    source = orthanc.send(heads(2))
    left = [6]

    def fault(*_: str) -> str:
        left[0] -= 1
        return kind if 0 <= left[0] < 3 else ""

    orthanc.fault = fault
    run = Run(orthanc, tmp_path, timeout=0.5 if kind == "slow" else 5.0)

    def watch() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and rows(tmp_path).get(source, ("",))[0] != "done":
            time.sleep(0.02)
        run.stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run.bridge.run(0)  # as a service: it ends when it is stopped
    watcher.join()
    run.client.close()
    run.journal.close()
    check_once(orthanc, tmp_path, [source])
    assert "Next try in" in run.said or "failed, next in" in run.said


def test_results_that_cannot_be_stored_do_not_pile_up(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    """An Orthanc whose disk is full: no more heads are fetched and processed than there are places."""
    sources = [orthanc.send(heads(n)) for n in (2, 3, 4)]
    orthanc.fault = lambda method, _: "507" if method == "POST" else ""
    run = Run(orthanc, tmp_path, Pace(**{**QUICK.__dict__, "batch": 1}))
    assert not run.once() and "no room left" in run.said
    assert sorted(state for state, _ in rows(tmp_path).values()) == ["pending", "pending", "storing"]
    orthanc.fault = lambda *_: ""
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, sources)


def test_a_full_disk_of_the_journal_is_waited_for(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    """As long as it lasts nothing is remembered, and once there is room nothing is lost."""
    sources = [orthanc.send(heads(n)) for n in (2, 3)]
    run = Run(orthanc, tmp_path)
    run.journal._file.execute("PRAGMA max_page_count = 1")  # no more pages than there are
    fill(run.journal)
    checks = [0]

    def make_room(line: str) -> None:
        run.lines.append(line)
        checks[0] += "the journal cannot be written (database or disk is full). Next try in" in line
        if checks[0] == 2:
            run.journal._file.execute("PRAGMA max_page_count = 100000")
        if "there is room again" in line:
            run.stop.set()

    run.bridge._say = make_room
    run.bridge.run(0)
    run.client.close()
    run.journal.close()
    assert checks[0] == 2 and run.lines[-1] == "there is room again"
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, sources)


def fill(journal: Journal) -> None:
    """Facts of all sizes until none fits."""
    for size in (2000, 200, 20, 1):
        with suppress(NoRoom):
            for number in range(10_000):
                journal.remember(**{f"of{size}-{number}": "x" * size})
    with pytest.raises(NoRoom):
        journal.remember(more="x")


def test_what_cannot_be_committed_is_undone(tmp_path: Path) -> None:
    """A COMMIT that fails, as on a full disk, leaves no transaction open: the next one can begin."""
    journal = Journal(tmp_path)
    journal._file.executescript(
        "PRAGMA foreign_keys = ON;"
        "CREATE TABLE part (whole TEXT REFERENCES facts DEFERRABLE INITIALLY DEFERRED)"
    )
    with pytest.raises(HzError, match="cannot be written"), journal._writing() as file:
        file.execute("INSERT INTO part VALUES ('nowhere')")  # refused by COMMIT, not before
    journal.remember(trouble="none")
    assert journal.fact("trouble") == "none"
    assert journal._read("SELECT COUNT(*) FROM part") == [(0,)]
    journal.close()


def test_nothing_is_stored_once_the_time_is_up(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    """Who sends SIGTERM kills soon after: what waits is stored by the next bridge."""
    source = orthanc.send(heads(2))
    run = Run(orthanc, tmp_path)

    def late(studies: Iterable[Study], stop: threading.Event) -> Iterator[tuple[Study, Outcome]]:
        for ended in stand_in(studies, stop):
            run.stop.within(0)
            yield ended

    run.process = late  # type: ignore[assignment]
    assert not run.once() and not orthanc.posts and rows(tmp_path)[source][0] == "storing"
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [source])


def test_a_bad_study_is_set_aside_and_blocks_nothing(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    bad = orthanc.send(heads(2, StudyID="torn"))
    lost = orthanc.send(heads(3))
    good = orthanc.send(heads(4))
    broken = [one for one, series in orthanc.series_of.items() if series == lost][3]
    orthanc.fault = lambda method, path: "half" if broken in path else ""
    run = Run(orthanc, tmp_path)
    assert run.once()
    found = rows(tmp_path)
    assert found[bad][0] == found[lost][0] == "aside" and found[good][0] == "done"
    assert "cut short" in found[bad][1] and "half a file" in found[lost][1]
    assert run.said.count("set aside after 3 tries") == 2 and run.said.count("try 1 of 3 failed") == 2
    orthanc.fault = lambda method, path: ""
    journal = Journal(tmp_path)
    for entry in journal.aside():  # as hz-orthanc retry does
        journal.set(entry.id, "new", images="", tries=0, due=0.0, look=1)
    journal.close()
    assert Run(orthanc, tmp_path).once()
    assert rows(tmp_path)[lost][0] == "done" and rows(tmp_path)[bad][0] == "aside"


def test_what_is_about_the_installation_ends_it(
    orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    source = orthanc.send(heads(2))
    run = Run(orthanc, tmp_path)
    why = Outcome("failed", ("no engine.",), exit_code=5)
    run.process = lambda studies, stop: ((study, why) for study in studies)
    with pytest.raises(Fatal, match="no engine") as caught:
        run.once()
    assert caught.value.exit_code == 5 and rows(tmp_path)[source][0] == "pending"
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, [source])


def test_one_that_is_not_there_ends_once(orthanc: SmallOrthanc, tmp_path: Path) -> None:
    run = Run(orthanc, tmp_path)
    orthanc.stop()
    assert not run.once() and "Orthanc is away" in run.said


def test_a_password_and_addresses(orthanc: SmallOrthanc, heads: Callable, tmp_path: Path) -> None:
    orthanc.password = f"Basic {base64.b64encode(b'hz:s3cret').decode()}"
    source = orthanc.send(heads(2))
    refused = Run(orthanc, tmp_path)
    assert not refused.once() and "user or password (401)" in refused.said and "s3cret" not in refused.said
    assert Run(orthanc, tmp_path, user="hz", password="s3cret").once()
    check_once(orthanc, tmp_path, [source])
    for url in ("ftp://x", "http://a:b@x", "x"):
        with pytest.raises(UsageError, match="address"):
            Orthanc(Server(url))
    (tmp_path / "secret").write_text("s3cret\nmore")
    assert read_password(tmp_path / "secret") == "s3cret"
    with pytest.raises(UsageError):
        read_password(tmp_path / "absent")
    with pytest.raises(UsageError, match="certificates"):
        Orthanc(Server("https://x", ca=tmp_path / "secret"))


def test_https_with_certificates_of_ones_own(heads: Callable, tmp_path: Path) -> None:
    """A server is spoken to that the authority of --ca vouches for, at the address it vouches for; to any
    other nothing is said, and a study waits."""
    pytest.importorskip("cryptography", reason="needs the extra sign")
    from small_tls import Authority

    ours, other = (Authority(tmp_path / name, name) for name in ("ours", "other"))
    password = f"Basic {base64.b64encode(b'hz:s3cret').decode()}"
    login = {"user": "hz", "password": "s3cret"}
    for tls in (other.server(), ours.server("127.0.0.2")):
        stranger, asked = SmallOrthanc(password=password, tls=tls), []
        stranger.fault = lambda method, path, asked=asked: asked.append(path) or ""  # type: ignore[misc]
        run = Run(stranger, tmp_path, ca=ours.certificates, **login)
        assert not run.once() and "certificate is not trusted" in run.said and "--ca" in run.said
        assert not asked and "s3cret" not in run.said
        stranger.stop()
    orthanc = SmallOrthanc(password=password, tls=ours.server())
    source = orthanc.send(heads(2))
    without = Run(orthanc, tmp_path, **login)
    assert not without.once() and "certificate is not trusted" in without.said
    refused = Run(orthanc, tmp_path, ca=ours.certificates)
    assert not refused.once() and "user or password (401)" in refused.said
    run = Run(orthanc, tmp_path, ca=ours.certificates, **login)
    ours.certificates.unlink()  # replaced by others, for one: a bridge that runs needs it no more
    assert run.once()
    check_once(orthanc, tmp_path, [source])
    orthanc.stop()


def test_answers_that_are_none(orthanc: SmallOrthanc, tmp_path: Path) -> None:
    client = Orthanc(Server(orthanc.url))
    orthanc.fault = lambda method, path: "418"
    with pytest.raises(OrthancRefuses, match="418"):
        client.get("/changes?last")
    orthanc.fault = lambda method, path: ""
    orthanc.files["x"] = bytes(5000)
    with pytest.raises(OrthancRefuses, match="more than"):
        client.download("/instances/x/file", tmp_path / "f", 4000)
    with pytest.raises(OrthancRefuses, match="no JSON"):
        client.get("/instances/x/file")
    with pytest.raises(HzError, match="cannot be written"):
        client.download("/instances/x/file", tmp_path / "no" / "f", 10**6)
    assert client.download("/instances/x/file", tmp_path / "f", 5000) == 5000
    client.delete("/series/absent")
    client.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(HzError, match="journal"):
        Journal(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="kills processes")
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    seed: int, orthanc: SmallOrthanc, heads: Callable, tmp_path: Path
) -> None:
    """Killed -9 three times, Orthanc unreachable in between, then left alone."""
    chance = random.Random(seed)
    sources = [orthanc.send(heads(n)) for n in (2, 3)]
    files = heads(4)
    orthanc.send(files[:6])
    for kill in range(3):
        child = forked(orthanc, tmp_path)
        time.sleep(chance.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        away = chance.random() < 0.5
        orthanc.fault = lambda method, path, away=away: "drop" if away and chance.random() < 0.2 else ""
        if kill == 1:
            sources.append(orthanc.send(files[6:]))
    orthanc.fault = lambda method, path: ""
    assert Run(orthanc, tmp_path).once()
    check_once(orthanc, tmp_path, sources)
