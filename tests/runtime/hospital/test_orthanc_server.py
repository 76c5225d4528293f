"""The bridge against Orthanc itself, of Debian's package: studies by storescu, kills and restarts between."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import small_dicom as small
from hz_runtime.hospital.journal import NAME
from processes import started
from real_orthanc import ORTHANC, STORESCU, RealOrthanc
from small_bridge import QUICK, Run, forked
from small_head_series import SLICES, write_head_series


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[RealOrthanc]:
    if ORTHANC is None or STORESCU is None:
        pytest.skip("needs Orthanc and storescu, of the Debian packages orthanc and dcmtk")
    server = RealOrthanc(tmp_path / "orthanc")
    yield server
    server.stop()


ROUNDS = int(os.environ.get("HZ_ORTHANC_ROUNDS", "1"))


def test_every_result_is_there_once(orthanc: RealOrthanc, tmp_path: Path) -> None:
    """Three studies, one in two halves with a pause past StableAge, one without T1; the bridge is killed
    twice, and Orthanc restarted, at random moments. $HZ_ORTHANC_ROUNDS for more than one round."""
    state, expected = tmp_path / "state", 0
    chance = random.Random(5)
    for number in range(ROUNDS):

        def head(place: int, turn: int = number, **changes: object) -> list[Path]:
            study, folder = f"2.25.9{turn}9{place}", tmp_path / f"{turn}-{place}"
            return small.write_other(folder, 10 * turn + place, StudyInstanceUID=study, **changes)[:16]

        halves = head(3)
        orthanc.send(head(1))
        orthanc.send(head(2, SeriesDescription="t2_tse"))
        orthanc.send(halves[:6])
        for turn in range(2):
            child = forked(orthanc, state, user="hz", password="s3cret")  # type: ignore[arg-type]
            time.sleep(chance.uniform(0.1, 2.5))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if turn == 0:
                time.sleep(chance.uniform(0.0, 1.5))
                orthanc.stop()
                orthanc.start()
        time.sleep(1.5)
        orthanc.send(halves[6:])
        run = Run(orthanc, state, QUICK, user="hz", password="s3cret")  # type: ignore[arg-type]
        assert run.once(), run.said
        expected += 2
        found = orthanc.derived()
        assert sorted(found.values()) == [1] * expected + [2] * expected, number
        with sqlite3.connect(state / NAME) as file:
            done = [
                json.loads(row[0]) for row in file.execute("SELECT stored FROM series WHERE state='done'")
            ]
        assert sorted(one for stored in done for one in stored) == sorted(found)
        assert not list((state / "work").iterdir())


def test_the_reference_bundle_answers_once(
    orthanc: RealOrthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with hz-orthanc as it is: a head that passes every gate, in two halves, and one without T1."""
    pytest.importorskip("niimath", reason="needs the extra prep")
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    monkeypatch.setenv("HZ_ORTHANC_PASSWORD", "s3cret")
    state, chance = tmp_path / "state", random.Random(7)
    arguments = ["--url", orthanc.url, "--user", "hz", "--state", state, "--since", 0, "--poll", 0.2]
    head = write_head_series(tmp_path / "head")
    orthanc.send(small.write_other(tmp_path / "t2", 2, SeriesDescription="t2_tse")[:16])
    orthanc.send(head[:20])
    time.sleep(1.5)  # past StableAge
    for turn in range(2):
        bridge = started("orthanc", *arguments)
        time.sleep(chance.uniform(1.0, 4.0))
        bridge.kill()
        bridge.communicate()
        if turn == 0:
            orthanc.stop()
            orthanc.start()
            orthanc.send(head[20:])
    time.sleep(1.5)
    said, errors = started("orthanc", *arguments, "--once").communicate(timeout=120)
    assert sorted(orthanc.derived().values()) == [1, 1, SLICES], said + errors  # report, page, images
    with sqlite3.connect(state / NAME) as file:
        ended = file.execute("SELECT state, text FROM series WHERE state != 'own' ORDER BY state").fetchall()
    assert [state for state, _ in ended] == ["done", "passed"]
    assert f"{SLICES} images, report, page" in ended[0][1]
    assert not list((state / "work").iterdir())
