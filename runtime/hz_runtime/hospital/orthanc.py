"""Orthanc over its REST interface, by the standard library: what the bridge asks of it, and may be answered.

An answer is whole or an error. `OrthancAway` is about the server (gone, slow, full, refusing): whoever asks
waits. `OrthancRefuses` is about one request. Messages name no patient: paths hold Orthanc's own hashes.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hz_runtime.errors import HzError, UsageError

_MOST_JSON = 64 << 20
_BLOCK = 1 << 20
_ENDED = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)
# What a server says that cannot take requests for now: also 401 and 403, which a person has to mend.
_AWAY = {
    401: "asks for another user or password", 403: "refuses this user", 429: "has too many requests",
    502: "is not reached by its proxy", 503: "is not available", 504: "is not reached by its proxy in time",
    507: "has no room left",
}  # fmt: skip


class OrthancAway(HzError):
    """The server cannot be used for now."""


class OrthancRefuses(HzError):
    """The server refused one request, or answered a part of it.  status : of HTTP, 0 for half an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """Where Orthanc is.

    url : http(s)://host:port, with a path where a proxy adds one.  ca : file of certificates to trust in
    place of the system's.  timeout : seconds without a byte after which it counts as away.
    """

    url: str = "http://127.0.0.1:8042"
    user: str = ""
    password: str = ""
    ca: Path | None = None
    timeout: float = 60.0


class Orthanc:
    """One connection, opened again where it breaks. Not for several threads: each takes one of `another`.

    breaks : how often it broke: a server that was restarted may have forgotten what it was about to say.
    """

    def __init__(self, server: Server) -> None:
        """Raises UsageError for an address or certificates that cannot be used."""
        try:
            address = urlsplit(server.url)
            known = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # half of an IPv6 address, a port that is no number
            known = False
        if not known or address.username:
            raise UsageError(
                "the address of Orthanc is not http://HOST:PORT or https://HOST:PORT.",
                "Give user and password by --user and $HZ_ORTHANC_PASSWORD or --password-file.",
            )
        self.breaks = 0
        self._server, self._base = server, address.path.rstrip("/")
        self._address = address
        self._connection: http.client.HTTPConnection | None = None
        self._tls: ssl.SSLContext | None = None
        if address.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=server.ca)
            except (OSError, ssl.SSLError) as error:
                raise UsageError("the file of --ca holds no certificates.", "Give a PEM file.") from error

    def another(self) -> Orthanc:
        """A connection of its own to the same server."""
        other = copy.copy(self)  # certificates included: their file may be gone since
        other.breaks, other._connection = 0, None
        return other

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises OrthancAway, OrthancRefuses."""
        return self._json(self._asked("GET", path))

    def download(self, path: str, target: Path, most: int) -> int:
        """Write what is at `path` to a new file, block by block; its size. Raises OrthancAway, OrthancRefuses
        (also for more than `most` bytes), HzError (disk)."""
        answer = self._asked("GET", path)
        size = 0
        try:
            with open(target, "wb") as out:
                while block := self._read(answer, _BLOCK):
                    size += len(block)
                    if size > most:
                        raise OrthancRefuses(f"Orthanc sends more than {most / 1e9:.3g} GB of one series.", 0)
                    out.write(block)
        except OSError as error:
            raise HzError(f"a file cannot be written ({error.strerror}).", "Make room.") from error
        finally:
            if not answer.isclosed():  # the rest of it would be taken for the next answer
                self.close()
        return size

    def upload(self, content: bytes) -> Any:
        """Store a DICOM file; what Orthanc says of it. Raises OrthancAway, OrthancRefuses."""
        return self._json(self._asked("POST", "/instances", content))

    def delete(self, path: str) -> None:
        """Remove a resource; it may be gone already."""
        try:
            self._json(self._asked("DELETE", path))
        except OrthancRefuses as error:
            if error.status != 404:
                raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _asked(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """The answer to a request, whose body is still to be read."""
        headers = {"Content-Type": "application/dicom"} if body is not None else {}
        if self._server.user:
            pair = f"{self._server.user}:{self._server.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        reused = self._connection is not None
        try:
            answer = self._sent(method, path, body, headers)
        except _ENDED:
            lost = self._broken("the connection ended")
            if not reused:
                raise lost from None
            try:  # it may only have been idle for too long; every request here can be repeated
                answer = self._sent(method, path, body, headers)
            except _ENDED:
                raise self._broken("the connection ended") from None
        if answer.status == 200:
            return answer
        self._drained(answer)
        if answer.status in _AWAY:
            raise OrthancAway(f"Orthanc {_AWAY[answer.status]} ({answer.status}).")
        raise OrthancRefuses(f"Orthanc answers {answer.status} to {method} {path}.", answer.status)

    def _sent(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        try:
            if self._connection is None:
                self._connection = self._opened()
            self._connection.request(method, self._base + path, body, dict(headers))
            return self._connection.getresponse()
        except _ENDED:
            raise
        except TimeoutError:
            raise self._broken(f"it does not answer within {self._server.timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            why = f"its certificate is not trusted ({error.verify_message}); --ca names those that are"
            raise self._broken(why) from None
        except ssl.SSLError as error:
            raise self._broken(f"TLS: {error.reason or 'failed'}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(getattr(error, "strerror", None) or type(error).__name__) from None

    def _opened(self) -> http.client.HTTPConnection:
        host, port, timeout = self._address.hostname or "", self._address.port, self._server.timeout
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _broken(self, why: str) -> OrthancAway:
        self.close()
        self.breaks += 1
        return OrthancAway(f"Orthanc is away: {why}.")

    def _read(self, answer: http.client.HTTPResponse, count: int) -> bytes:
        try:
            block = answer.read(count)
        except TimeoutError:
            raise self._broken("it stopped in the middle of an answer") from None
        except (OSError, http.client.HTTPException):
            self.close()
            self.breaks += 1
            raise OrthancRefuses("Orthanc answered half a file.", 0) from None
        if not block and answer.length:  # read() of a count says nothing of what is missing
            self.close()
            raise OrthancRefuses("Orthanc answered half a file.", 0)
        return block

    def _json(self, answer: http.client.HTTPResponse) -> Any:
        pieces, size = [], 0
        while block := self._read(answer, _BLOCK):
            pieces.append(block)
            size += len(block)
            if size > _MOST_JSON:
                self.close()
                raise OrthancRefuses("Orthanc answers too much.", 0)
        try:
            return json.loads(b"".join(pieces) or b"null")
        except (ValueError, RecursionError):
            raise OrthancRefuses("Orthanc answers no JSON.", 0) from None

    def _drained(self, answer: http.client.HTTPResponse) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer.read(_BLOCK)
        if not answer.isclosed():
            self.close()


def read_password(path: Path | None) -> str:
    """The first line of a file, or $HZ_ORTHANC_PASSWORD. Raises UsageError."""
    if path is None:
        return os.environ.get("HZ_ORTHANC_PASSWORD", "")
    try:
        return path.read_text("utf-8").splitlines()[0]
    except (OSError, ValueError, IndexError) as error:
        raise UsageError("the password file cannot be read.", "Its first line is the password.") from error
