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
from real_orthanc import ORTHANC, STORESCU, RealOrthanc
from small_bridge import QUICK, Run, forked


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
