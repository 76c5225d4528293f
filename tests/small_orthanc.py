"""A stand-in for Orthanc: the part of its REST interface that the bridge uses, over real HTTP, with faults.

It keeps files in memory, by the SHA-1 that Orthanc names them by, counts changes as Orthanc does, and calls a
series stable once it is told so.
"""

from __future__ import annotations

import hashlib
import io
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Fault = Callable[[str, str], str]  # (method, path) -> "", "drop", "half", "slow", or a status as text


def hashed(*parts: str) -> str:
    digest = hashlib.sha1("|".join(parts).encode()).hexdigest()
    return "-".join(digest[n : n + 8] for n in range(0, 40, 8))


class SmallOrthanc:
    """Starts at once, on a free port of this machine, or on `port`; with `tls`, by https."""

    def __init__(self, port: int = 0, password: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.series_of: dict[str, str] = {}
        self.facts: dict[str, dict[str, str]] = {}  # of series: SOP class, modality, patient, study
        self.stable: set[str] = set()
        self.changes: list[dict[str, Any]] = []
        self.posts: list[str] = []
        self.fault: Fault = lambda method, path: ""
        self.password = password
        self.lock = threading.Lock()
        small = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                small.answer(self, "GET", b"")

            def do_DELETE(self) -> None:
                small.answer(self, "DELETE", b"")

            def do_POST(self) -> None:
                small.answer(self, "POST", self.rfile.read(int(self.headers["Content-Length"])))

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a client that was killed
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.scheme = "https" if tls else "http"
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # What a modality does

    def send(self, files: list[Path], stable: bool = True) -> str:
        """Store files of one series; its name. Stable at once, or when `settle` says so."""
        with self.lock:
            (series,) = {self._stored(path.read_bytes())[1] for path in files}
        if stable:
            self.settle(series)
        return series

    def settle(self, series: str) -> None:
        with self.lock:
            self.stable.add(series)
            self._change("StableSeries", "Series", series)

    def derived(self) -> dict[str, list[Any]]:
        """Datasets of everything that hz made, by series."""
        from pydicom import dcmread

        found: dict[str, list[Any]] = {}
        for one, content in self.files.items():
            data = dcmread(io.BytesIO(content), stop_before_pixels=True)
            if data.Manufacturer == "hz":
                found.setdefault(self.series_of[one], []).append(data)
        return found

    def _stored(self, content: bytes) -> tuple[str, str, str]:
        """(instance, series, status)."""
        from pydicom import dcmread

        data = dcmread(io.BytesIO(content), stop_before_pixels=True)
        above = (str(data.PatientID), str(data.StudyInstanceUID), str(data.SeriesInstanceUID))
        series, one = hashed(*above), hashed(*above, str(data.SOPInstanceUID))
        if one in self.files:
            return one, series, "AlreadyStored"
        if series not in self.facts:
            self.facts[series] = {"Modality": str(data.Modality)}
            self._change("NewSeries", "Series", series)
        self.files[one] = content
        self.series_of[one] = series
        self.stable.discard(series)
        self._change("NewInstance", "Instance", one)
        return one, series, "Success"

    def _change(self, kind: str, of: str, one: str) -> None:
        seq = len(self.changes) + 1
        self.changes.append({"Seq": seq, "ChangeType": kind, "ResourceType": of, "ID": one})

    # What Orthanc answers

    def answer(self, handler: BaseHTTPRequestHandler, method: str, body: bytes) -> None:
        fault = self.fault(method, handler.path)
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        if fault == "slow":
            threading.Event().wait(1.5)
        if fault.isdigit():
            self._send(handler, int(fault), b"{}")
            return
        if self.password and handler.headers.get("Authorization") != self.password:
            self._send(handler, 401, b"")
            return
        with self.lock:
            status, content = self._found(method, handler.path, body)
        self._send(handler, status, content, half=fault == "half")

    def _send(self, handler: BaseHTTPRequestHandler, status: int, content: bytes, half: bool = False) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            handler.close_connection = True

    def _found(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        address = urlsplit(path)
        parts = address.path.strip("/").split("/")
        if method == "POST":
            one, series, status = self._stored(body)
            self.posts.append(one)
            return 200, json.dumps({"ID": one, "ParentSeries": series, "Status": status}).encode()
        if parts[0] == "changes":
            return 200, json.dumps(self._page(parse_qs(address.query, keep_blank_values=True))).encode()
        if parts[0] == "instances":
            content = self.files.get(parts[1])
            return (404, b"") if content is None else (200, content)
        mine = [one for one, series in self.series_of.items() if series == parts[1]]
        if not mine:
            return 404, b"{}"
        if method == "DELETE":
            for one in mine:
                del self.files[one], self.series_of[one]
            return 200, b"{}"
        found = {"Instances": mine, "IsStable": parts[1] in self.stable, "ExpectedNumberOfInstances": None}
        return 200, json.dumps({**found, "MainDicomTags": self.facts[parts[1]]}).encode()

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        if "last" in query:
            return {"Changes": self.changes[-1:], "Last": len(self.changes), "Done": True}
        since, limit = int(query["since"][0]), int(query["limit"][0])
        page = self.changes[since : since + limit]
        last = page[-1]["Seq"] if page else since
        return {"Changes": page, "Last": last, "Done": since + limit >= len(self.changes)}
