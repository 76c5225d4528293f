"""A server that speaks the KServe v2 protocol (Open Inference Protocol) over HTTP, as its client sees it.

Triton, KServe and OpenVINO's model server speak it. Tensors travel as raw bytes where the server says that it
knows the binary extension, as JSON numbers elsewhere; both carry every float32 unchanged. Knows nothing of
networks and bundles but how hz names a model there. No credentials are sent, no redirect is followed.
"""

from __future__ import annotations

import http.client
import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from hz_runtime.backends.base import EngineFailure
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError
from hz_runtime.io.json_text import OTHER_FORM

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARAMETER = "hz_sha256"  # in Triton's model configuration: of the ONNX file
_HEADER_LENGTH = "Inference-Header-Content-Length"
_SECONDS = 300.0  # that a server may be silent: the batch waits for others, or the network is large
_MOST_JSON = 1 << 20  # bytes of an answer beyond its tensors
_JSON_NUMBER = 32  # bytes that one float may take as text


def model_name(sha256: str) -> str:
    """What the network of an ONNX file with this hash is called on a server: nothing else has that name."""
    return f"hz-{sha256[:32]}"


def address_problem(url: str) -> str:
    """Why this is no address of a server, half a sentence; "" where it is one."""
    try:
        parts = urlsplit(url)
        found = parts.hostname and parts.port != 0
    except ValueError:
        return "is no address"
    if parts.scheme not in ("http", "https") or not found:
        return "is no address that begins with http:// or https://"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "holds more than scheme, host, port and path"
    return ""


@dataclass(frozen=True)
class _Answer:
    status: int
    header_length: str | None
    body: bytes

    def document(self) -> dict[str, Any]:
        """The JSON object of an answer, without the tensors behind it. ValueError where there is none."""
        length = len(self.body) if self.header_length is None else int(self.header_length)
        found = json.loads(self.body[:length])
        if not isinstance(found, dict) or not 0 <= length <= len(self.body):
            raise ValueError("no object")
        return found

    def reason(self) -> str:
        """What a refusal says, on one line."""
        try:
            said = str(self.document().get("error", ""))
        except OTHER_FORM:
            said = ""
        return f"{self.status} {' '.join(said.split())[:300]}".strip()


class Server:
    """One server; every thread has a connection of its own, which is kept open from request to request.

    Its methods raise EngineFailure where the server does not answer, or not in the protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        self._local = threading.local()
        self._opened: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._opened)  # of a server that nobody has closed
        answer = self._ask("GET", "/v2")
        said = self._document(answer, "metadata")
        self.name, self.version = str(said.get("name", "unknown")), str(said.get("version", "unknown"))
        extensions = said.get("extensions")
        known = extensions if isinstance(extensions, list) else []
        self.binary = "binary_tensor_data" in known
        self._configured = "model_configuration" in known

    def metadata(self, model: str) -> tuple[dict[str, Any], str]:
        """What the server says of a model, and ""; ({}, its refusal) where it has none of that name."""
        answer = self._ask("GET", f"/v2/models/{quote(model)}")
        if 400 <= answer.status < 500:  # Triton 400, KServe 404
            return {}, answer.reason()
        return self._document(answer, f"metadata of {model}"), ""

    def parameter(self, model: str, name: str) -> str | None:
        """A parameter in the model's configuration; None where the server shows none (a Triton extension)."""
        if not self._configured:
            return None
        answer = self._ask("GET", f"/v2/models/{quote(model)}/config")
        given = self._document(answer, f"configuration of {model}").get("parameters", {})
        value = given.get(name) if isinstance(given, dict) else None
        return str(value.get("string_value")) if isinstance(value, dict) else None

    def infer(
        self, model: str, source: TensorSpec, batch: NDArray[np.float32], results: Sequence[TensorSpec]
    ) -> dict[str, NDArray[np.float32]]:
        """Every result of one batch, float32, each of its own shape with the batch's length in front."""
        asked: dict[str, Any] = {"name": source.name, "shape": list(batch.shape), "datatype": "FP32"}
        raw = b""
        if self.binary:
            raw = batch.astype("<f4", copy=False).tobytes()
            asked["parameters"] = {"binary_data_size": len(raw)}
        else:
            asked["data"] = batch.ravel().tolist()
        wanted = [
            {"name": spec.name, **({"parameters": {"binary_data": True}} if self.binary else {})}
            for spec in results
        ]
        document = json.dumps({"inputs": [asked], "outputs": wanted}).encode("ascii")
        headers = {"Content-Type": "application/json"}
        if self.binary:
            headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(document))}
        shapes = {spec.name: (len(batch), *(int(axis) for axis in spec.shape[1:])) for spec in results}
        most = _MOST_JSON + sum(_JSON_NUMBER * _count(shape) for shape in shapes.values())
        answer = self._ask("POST", f"/v2/models/{quote(model)}/infer", document + raw, headers, most)
        said = self._document(answer, f"answer of {model}")
        try:
            return _tensors(answer, said, shapes)
        except OTHER_FORM as error:
            raise self._broken(f"answer of {model}", str(error)) from None

    def close(self) -> None:
        with self._lock:
            _close(self._opened)
            self._local = threading.local()

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = _MOST_JSON,
    ) -> _Answer:
        kept = getattr(self._local, "connection", None)
        connection = kept or self._connect()
        try:
            return _exchange(connection, method, self._parts.path + path, body, headers or {}, most)
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            if kept is None or isinstance(error, TimeoutError):
                raise self._away(error) from None
        connection = self._connect()  # a server may close a connection that was idle: asked once more
        try:
            return _exchange(connection, method, self._parts.path + path, body, headers or {}, most)
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            raise self._away(error) from None

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=_SECONDS)
        with self._lock:
            self._opened.append(connection)
            self._local.connection = connection
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        with self._lock:
            self._local.connection = None
            if connection in self._opened:
                self._opened.remove(connection)

    def _document(self, answer: _Answer, what: str) -> dict[str, Any]:
        if answer.status != 200:
            raise EngineFailure(
                f"{self.url}: no {what} ({answer.reason()}).", "The server's own log says more."
            )
        try:
            return answer.document()
        except OTHER_FORM as error:
            raise self._broken(what, str(error)) from None

    def _broken(self, what: str, why: str) -> BackendError:
        return EngineFailure(
            f"{self.url}: its {what} is not that of the KServe v2 protocol ({' '.join(why.split())[:200]}).",
            "Check that HZ_REMOTE names the HTTP port of the server (Triton's is 8000).",
        )

    def _away(self, error: Exception) -> BackendError:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return EngineFailure(
            f"{self.url} does not answer ({' '.join(str(why).split())[:200]}).",
            "Start the server, or correct HZ_REMOTE.",
        )


def _close(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    most: int,
) -> _Answer:
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    data = response.read(most + 1)
    if len(data) > most:
        raise http.client.HTTPException(f"its answer is longer than {most} bytes")
    return _Answer(response.status, response.headers.get(_HEADER_LENGTH), data)


def _tensors(
    answer: _Answer, said: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """The tensors of an answer; ValueError and its kin where they are not those that were asked for."""
    import numpy as np

    at = int(answer.header_length) if answer.header_length is not None else len(answer.body)
    found: dict[str, NDArray[np.float32]] = {}
    for output in said["outputs"]:
        name, shape = str(output["name"]), tuple(int(axis) for axis in output["shape"])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            piece, at = answer.body[at : at + int(size)], at + int(size)
        if name not in shapes:
            continue
        if output["datatype"] != "FP32" or shape != shapes[name]:
            kind = f"{output['datatype']} {shape}"
            raise ValueError(f"output {name!r} is {kind}, expected FP32 {shapes[name]}")
        values = np.asarray(output["data"], np.float32) if size is None else np.frombuffer(piece, "<f4")
        if values.size != _count(shape):
            raise ValueError(f"output {name!r} has {values.size} values, expected {_count(shape)}")
        found[name] = values.astype(np.float32).reshape(shape)
    if missing := sorted(set(shapes) - set(found)):
        raise ValueError(f"output {missing[0]!r} is missing")
    return found


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count
