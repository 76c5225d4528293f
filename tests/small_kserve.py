"""A small server of the KServe v2 protocol over real HTTP, with and without the binary tensor extension.

It runs the networks that it was given with onnxruntime, under the names that hz asks for, refuses what the
protocol refuses (in Triton's words), and can be told to break.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from hz_runtime.backends.kserve import PARAMETER, model_name
from hz_runtime.backends.registry import open_backend

RUNNING: dict[str, SmallKServe] = {}  # by address

Fault = Callable[[str], str]  # path -> "", "drop", "nonsense", or a status as text


class SmallKServe:
    """Starts at once, on a free port of this machine.

    binary : knows the binary tensor extension.  configured : shows configurations, as Triton does.
    asked : (method, path) of every request; connections : how many clients opened.
    """

    def __init__(self, binary: bool = True, configured: bool = True) -> None:
        self.binary, self.configured = binary, configured
        self.backends: dict[str, Any] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.hashes: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        self.fault: Fault = lambda path: ""
        small = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                small.connections += 1

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                small.answer(self, "GET", b"")

            def do_POST(self) -> None:
                small.answer(self, "POST", self.rfile.read(int(self.headers["Content-Length"])))

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a client that went away
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        RUNNING[self.url] = self

    def close(self) -> None:
        del RUNNING[self.url]
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def serve(self, model: bytes, name: str = "") -> str:
        """Serve ONNX bytes, under hz's name for them or another; returns the name."""
        sha256 = hashlib.sha256(model).hexdigest()
        name = name or model_name(sha256)
        if name in self.backends:
            return name
        backend = open_backend("onnxruntime-cpu", model, threads=1)
        self.backends[name], self.hashes[name] = backend, sha256
        sides = {"inputs": backend.inputs, "outputs": backend.outputs}
        self.metadata[name] = {
            "name": name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            **{
                side: [
                    {
                        "name": spec.name,
                        "datatype": "FP32",
                        "shape": [axis if isinstance(axis, int) else -1 for axis in spec.shape],
                    }
                    for spec in specs
                ]
                for side, specs in sides.items()
            },
        }
        return name

    def answer(self, handler: BaseHTTPRequestHandler, method: str, body: bytes) -> None:
        self.asked.append((method, handler.path))
        what = self.fault(handler.path)
        if what == "drop":
            handler.close_connection = True
            return
        if what == "nonsense":
            self._send(handler, 200, b"<html>")
            return
        refused = int(what or 0), {"error": "told to"}, b""
        status, document, raw = refused if what else self._answer(handler, body)
        head = json.dumps(document).encode()
        self._send(handler, status, head + raw, len(head) if raw else None)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, data: bytes, head: int | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        if head is not None:
            handler.send_header("Inference-Header-Content-Length", str(head))
        handler.end_headers()
        handler.wfile.write(data)

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any], bytes]:
        parts = handler.path.strip("/").split("/")
        if parts == ["v2"]:
            known = ["binary_tensor_data"] * self.binary + ["model_configuration"] * self.configured
            return 200, {"name": "small", "version": "1.0", "extensions": known}, b""
        name = parts[2]
        if name not in self.metadata:
            return 400, {"error": f"Request for unknown model: '{name}' is not found"}, b""
        if parts[3:] == ["config"]:
            return 200, {"name": name, "parameters": {PARAMETER: {"string_value": self.hashes[name]}}}, b""
        if parts[3:] == ["infer"]:
            return self._infer(name, handler.headers.get("Inference-Header-Content-Length"), body)
        return 200, self.metadata[name], b""

    def _infer(self, name: str, head: str | None, body: bytes) -> tuple[int, dict[str, Any], bytes]:
        length = len(body) if head is None else int(head)
        asked = json.loads(body[:length])
        (source,) = asked["inputs"]
        assert source["datatype"] == "FP32"
        if head is not None:
            assert source["parameters"]["binary_data_size"] == len(body) - length
            values = np.frombuffer(body[length:], "<f4")
        else:
            values = np.array(source["data"], np.float32)
        # Its session alone: an answer that is not finite goes out as it is.
        session = self.backends[name]._session
        names = [one["name"] for one in asked["outputs"]]
        arrays = session.run(names, {source["name"]: values.reshape(source["shape"])})
        outputs, raw = [], b""
        for one, array in zip(asked["outputs"], arrays, strict=True):
            said: dict[str, Any] = {"name": one["name"], "shape": list(array.shape), "datatype": "FP32"}
            if one.get("parameters", {}).get("binary_data"):
                said["parameters"] = {"binary_data_size": array.nbytes}
                raw += array.astype("<f4").tobytes()
            else:
                said["data"] = array.ravel().tolist()
            outputs.append(said)
        return 200, {"model_name": name, "model_version": "1", "outputs": outputs}, raw
