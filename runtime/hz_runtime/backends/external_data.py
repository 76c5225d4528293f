"""Refuse ONNX bytes that point at other files.

A tensor may say that its values lie in another file. Given a model as bytes, onnxruntime 1.31 and OpenVINO
2026.4 both look that file up in the current working directory and follow hard links there: weights that
nobody hashed. So the few protobuf fields that lead to a tensor are walked here, with no onnx package, and
external data is refused before an engine sees the model.

Field numbers are those of onnx.proto (IR 10); everything else is skipped by its length.
"""

from __future__ import annotations

from collections.abc import Iterator

from hz_runtime.errors import BundleError

REMEDY = "Re-export the bundle:  hz-export --help"
_MAX_DEPTH = 64
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto

# message -> {field number: message it holds}
_LEADS_TO = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def check_self_contained(model: bytes, where: str) -> None:
    """Raise BundleError unless every tensor of this ONNX model lies in these very bytes."""
    try:
        outside = _points_outside(memoryview(model))
    except (IndexError, ValueError):
        raise BundleError(f"{where}: not a readable ONNX model.", REMEDY) from None
    if outside:
        raise BundleError(f"{where}: its weights lie in another, unverified file (external data).", REMEDY)


def early_reader(model: bytes) -> tuple[str, str] | None:
    """(node, tensor) of the first node that reads a tensor before any node makes it; None for a graph in
    topological order. Raises ValueError or IndexError for bytes that are no ONNX model."""
    graphs = [value for field, value in _fields(memoryview(model)) if field == 7]
    for graph in graphs:
        if isinstance(graph, memoryview) and (found := _early_in(list(_fields(graph)))):
            return found
    return None


def _early_in(graph: list[tuple[int, memoryview | int]]) -> tuple[str, str] | None:
    # GraphProto: 1 nodes, 5 initializers, 11 inputs; a TensorProto's name is 8, a ValueInfoProto's is 1
    ready = {""}
    for place, name in ((5, 8), (11, 1)):
        ready.update(text for field, value in graph if field == place for text in _texts(value, name))
    for node in (value for field, value in graph if field == 1):
        early = next((name for name in _texts(node, 1) if name not in ready), None)
        if early is not None:
            return " ".join(_texts(node, 4) + _texts(node, 3)), early  # operation and name
        ready.update(_texts(node, 2))
    return None


def _texts(message: memoryview | int, wanted: int) -> list[str]:
    if isinstance(message, int):
        raise ValueError("not a message")
    found = (value for field, value in _fields(message) if field == wanted)
    return [bytes(value).decode() for value in found if isinstance(value, memoryview)]


def _points_outside(model: memoryview) -> bool:
    pending = [(model, "model", 0)]
    while pending:
        message, kind, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        leads = _LEADS_TO.get(kind, {})
        for field, value in _fields(message):
            if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
                return True
            if field in leads and isinstance(value, memoryview):
                pending.append((value, leads[field], depth + 1))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, contents) of one protobuf message: a view for length-delimited fields, else a number."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:  # groups (3, 4): not in ONNX
            raise ValueError("unknown wire type")
        if at + length > len(message):
            raise ValueError("cut short")
        if wire == 2:
            yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("varint too long")
