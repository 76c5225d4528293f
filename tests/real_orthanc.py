"""An Orthanc of Debian's package, started on free ports of this machine, for tests and for a benchmark."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from hz_runtime.errors import HzError
from hz_runtime.hospital.orthanc import Orthanc, Server

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
STORESCU = shutil.which("storescu")


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
        raise RuntimeError("Orthanc does not answer")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def send(self, files: list[Path]) -> None:
        command = [str(STORESCU), "-aec", "ORTHANC", "127.0.0.1", str(self.dicom), *map(str, files)]
        subprocess.run(command, check=True, capture_output=True)

    def derived(self) -> dict[str, int]:
        """Number of instances of each series that hz made."""
        client = self.client()
        every = [client.get(f"/series/{one}") for one in client.get("/series")]
        client.close()
        return {s["ID"]: len(s["Instances"]) for s in every if s["MainDicomTags"].get("Manufacturer") == "hz"}
