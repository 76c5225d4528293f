"""The bridge against Orthanc itself, of Debian's package: studies by storescu, kills and restarts between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import small_dicom as small
from hz_runtime.errors import HzError
from hz_runtime.hospital.journal import NAME
from hz_runtime.hospital.orthanc import Orthanc, Server
from small_bridge import QUICK, Run, forked

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealOrthanc:
    """An Orthanc with its own storage, on free ports of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.dicom = folder, free_port(), free_port()
        folder.mkdir()
        settings = {
            "Name": "hz test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ORTHANC", "StableAge": 1,
            "AuthenticationEnabled": True, "RegisteredUsers": {"hz": "s3cret"}, "RemoteAccessAllowed": False,
            "Plugins": [], "DicomAlwaysAllowStore": True,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def client(self) -> Orthanc:
        return Orthanc(Server(self.url, "hz", "s3cret"))

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(ORTHANC), str(self.folder / "orthanc.json")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        client, end = self.client(), time.monotonic() + 60
        while time.monotonic() < end:
            try:
                client.get("/system")
                client.close()
                return
            except HzError:
                time.sleep(0.1)
        pytest.fail("Orthanc does not answer")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def send(self, files: list[Path]) -> None:
        command = ["storescu", "-aec", "ORTHANC", "127.0.0.1", str(self.dicom), *map(str, files)]
        subprocess.run(command, check=True, capture_output=True)

    def derived(self) -> dict[str, int]:
        """Number of instances of each series that hz made."""
        client = self.client()
        every = [client.get(f"/series/{one}") for one in client.get("/series")]
        client.close()
        return {s["ID"]: len(s["Instances"]) for s in every if s["MainDicomTags"].get("Manufacturer") == "hz"}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[RealOrthanc]:
    if ORTHANC is None or shutil.which("storescu") is None:
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
