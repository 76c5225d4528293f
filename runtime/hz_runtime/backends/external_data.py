"""ONNX bytes that point at other files are refused: no engine sees a model whose weights nobody has hashed.

A tensor may say that its values lie in another file; a model with such a tensor is not opened. The few fields
that lead to a tensor are walked, and everything else is passed over.
"""

from __future__ import annotations

from hz_runtime.backends.protobuf import fields, texts
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
    graphs = [value for field, value in fields(memoryview(model)) if field == 7]
    for graph in graphs:
        if isinstance(graph, memoryview) and (found := _early_in(list(fields(graph)))):
            return found
    return None


def _early_in(graph: list[tuple[int, memoryview | int]]) -> tuple[str, str] | None:
    # GraphProto: 1 nodes, 5 initializers, 11 inputs; a TensorProto's name is 8, a ValueInfoProto's is 1
    ready = {""}
    for place, name in ((5, 8), (11, 1)):
        ready.update(text for field, value in graph if field == place for text in texts(value, name))
    for node in (value for field, value in graph if field == 1):
        early = next((name for name in texts(node, 1) if name not in ready), None)
        if early is not None:
            return " ".join(texts(node, 4) + texts(node, 3)), early  # operation and name
        ready.update(texts(node, 2))
    return None


def _points_outside(model: memoryview) -> bool:
    pending = [(model, "model", 0)]
    while pending:
        message, kind, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        leads = _LEADS_TO.get(kind, {})
        for field, value in fields(message):
            if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
                return True
            if field in leads and isinstance(value, memoryview):
                pending.append((value, leads[field], depth + 1))
    return False
