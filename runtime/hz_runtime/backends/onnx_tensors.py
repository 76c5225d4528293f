"""The inputs and outputs that an ONNX file declares, read without an engine and without the onnx package.

Engines say theirs themselves; this is for an engine that is elsewhere (remote.py).
"""

from __future__ import annotations

from hz_runtime.backends.protobuf import fields, inside, texts
from hz_runtime.bundle.manifest import TensorSpec

# ModelProto: 7 graph.  GraphProto: 5 initializers, 11 inputs, 12 outputs.  TensorProto: 8 name.
# ValueInfoProto: 1 name, 2 type > 1 tensor > 1 element type, 2 shape > 1 axes > 1 length or 2 name.
_GRAPH, _TENSORS, _INPUTS, _OUTPUTS = 7, 5, 11, 12
_DTYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


def tensors(model: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) of ONNX bytes; weights are no inputs. ValueError or IndexError for other bytes."""
    graph = next(inside(memoryview(model), _GRAPH), None)
    if graph is None:
        raise ValueError("no graph")
    weights = {name for tensor in inside(graph, _TENSORS) for name in texts(tensor, 8)}
    found = tuple(tuple(_spec(value) for value in inside(graph, place)) for place in (_INPUTS, _OUTPUTS))
    return tuple(spec for spec in found[0] if spec.name not in weights), found[1]


def _spec(value: memoryview) -> TensorSpec:
    name, dtype = "".join(texts(value, 1)), ""
    shape: list[int | str] = []
    for kind in inside(value, 2):
        for tensor in inside(kind, 1):
            element = next((number for field, number in fields(tensor) if field == 1), 0)
            dtype = _DTYPES.get(element if isinstance(element, int) else 0, "unknown")
            shape += [_axis(axis) for axes in inside(tensor, 2) for axis in inside(axes, 1)]
    return TensorSpec(name, tuple(shape), dtype)


def _axis(axis: memoryview) -> int | str:
    for field, value in fields(axis):
        if field == 1 and isinstance(value, int):
            return value
        if field == 2 and not isinstance(value, int):
            return bytes(value).decode()
    return "N"
