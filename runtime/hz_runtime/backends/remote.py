"""The network on a server (KServe v2 over HTTP: kserve.py); preparation and the native output stay here.

It is taken only where it is asked for by name, since scans leave this machine: `--backend remote` or
`--require remote`, with the server's address in HZ_REMOTE. The server's model is held to be the bundle's by

- its name, which has the first 32 hex digits of the SHA-256 of the very ONNX file (`kserve.model_name`);
- names, types and shapes of its tensors, which the protocol's metadata have;
- the whole SHA-256 in its configuration, where the server shows that (Triton).

The protocol has no hash of what a server really runs, nor of the arithmetic: whoever runs the server is
trusted with both. `hz-run --self-test` holds its answers to those that the bundle carries.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.arithmetic import executed_graph, holds_only_float32
from hz_runtime.backends.base import check_batch, check_outputs
from hz_runtime.backends.kserve import PARAMETER, Server, address_problem, model_name
from hz_runtime.backends.onnx_tensors import tensors
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE = "HZ_REMOTE"
BUILT = "-tensorrt"  # behind the name of a model that is a TensorRT engine built from the file
_REMEDY = "Give the server what  hz-export --triton DIR BUNDLE.hz  writes, of this very bundle."


def missing(_package: str, _device: str) -> tuple[str, str]:
    """Why no server can be asked, and the remedy; see registry.py. Nothing is sent."""
    url = os.environ.get(VARIABLE, "")
    if not url:
        return f"{VARIABLE} names no server", ""
    if problem := address_problem(url):
        return f"{VARIABLE} {problem}", ""
    return "", ""


def open_model(model: bytes, device: str, _threads: int, where: str) -> RemoteBackend:
    """The server's model of these ONNX bytes; BackendError where it does not answer or has another."""
    problem, _ = missing("", device)
    if problem:
        raise BackendError(f"{problem}.", f"export {VARIABLE}=http://HOST:8000")
    return RemoteBackend(os.environ[VARIABLE], model, where)


class RemoteBackend:
    """A network on a server; see `Backend`. `precision` is the file's: a server does not say its own."""

    name = "remote"

    def __init__(self, url: str, model: bytes, where: str) -> None:
        try:
            self.inputs, self.outputs = tensors(model)
            self.precision = "fp32" if holds_only_float32(model) else executed_graph(model).precision
        except (ValueError, IndexError):
            raise BackendError(f"{where}: not a readable ONNX model.", "Re-export the bundle.") from None
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._server: Server | None = None
        server = Server(url)
        try:
            self._model, said = self._find(server, where)
            for key, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
                self._compare(server, key, specs, said.get(key))
            held = server.parameter(self._model, PARAMETER)
            if held is not None and held != self.sha256:
                raise BackendError(
                    f"{server.url}: {self._model} is of another file (sha256 {held[:12]}...) than {where} "
                    f"({self.sha256[:12]}...).",
                    _REMEDY,
                )
        except BaseException:
            server.close()
            raise
        self._server = server
        self.version = f"{server.name} {server.version}"
        self.provider = f"KServe v2, {said.get('platform') or 'unknown platform'}"
        self.device = f"server {server.url}"

    def _find(self, server: Server, where: str) -> tuple[str, dict[str, Any]]:
        """The name and metadata of the server's model: the ONNX file, else an engine built from it."""
        name = model_name(self.sha256)
        said, refusal = server.metadata(name)
        if refusal:
            built, other = server.metadata(name + BUILT)
            if other:
                raise BackendError(
                    f"{server.url} has no model {name}, which is {where} ({refusal}).", _REMEDY
                )
            return name + BUILT, built
        return name, said

    def _compare(self, server: Server, key: str, specs: tuple[TensorSpec, ...], said: Any) -> None:
        """BackendError where the server's model takes or gives other tensors than the file."""
        held = {str(one.get("name")): one for one in said or () if isinstance(one, dict)}
        for spec in specs:
            one = held.get(spec.name, {})
            shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
            if one.get("datatype") != "FP32" or spec.dtype != "float32" or one.get("shape") != shape:
                found = f"{one.get('datatype')} {one.get('shape')}" if one else "not there"
                raise BackendError(
                    f"{server.url}: {spec.name!r} of {self._model} is {found}, expected FP32 {shape}.",
                    _REMEDY,
                )
        if key == "inputs" and len(held) != len(specs):
            raise BackendError(f"{server.url}: {self._model} takes {len(held)} inputs.", _REMEDY)

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        server = self._server  # one look: another thread may close meanwhile
        if server is None:
            raise BackendError("This backend was closed.", "Open it again.")
        fed = check_batch(batch, self.inputs[0])
        return check_outputs(server.infer(self._model, self.inputs[0], fed, self.outputs), server.url)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
