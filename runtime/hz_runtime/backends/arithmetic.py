"""In which types a network is computed, from the graph that an engine really runs, not from the file it got.

The convolutions and matrix products count, which are nearly all of the work; where there are none, all
operations do. An engine may compute in float32 what a file holds as int8: then the answer is "fp32". Beside
it stands the share of all operators that is computed in each type.
Knows ONNX graphs; engines with graphs of their own hand in types (`executed_types`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hz_runtime.backends.protobuf import fields, inside, texts

# The words of `Backend.precision`, narrowest first; several are joined by "+", e.g. "int8+fp32".
WORDS = ("int8", "fp16", "bf16", "fp32")
# TensorProto.DataType of tensors that arithmetic is done on; counts and shapes (integers) are none.
_TYPES = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16"}
_HEAVY = ("Conv", "MatMul", "Gemm")  # in the names of operators, fused and quantized ones, too
_QUANTIZED = ("QLinear", "QGemm", "QAttention", "Integer", "DynamicQuantize")
_CONVERTS = ("Cast", "QuantizeLinear", "DequantizeLinear", "Constant", "Identity")
# GraphProto: 1 nodes, 5 initializers, 11 inputs, 12 outputs, 13 value infos.  NodeProto: 1 inputs, 2 outputs,
# 4 operator.  TensorProto: 2 type, 8 name.  ValueInfoProto: 1 name, 2 type > 1 tensor > 1 element type.
_NODES, _TENSORS, _VALUES = 1, 5, (11, 12, 13)


@dataclass(frozen=True)
class Executed:
    """What an engine's own graph says.

    precision : one of WORDS, or several joined by "+": the types that the counting operations compute in.
    operators : share of all operators that compute, by type, narrowest first; they add up to 1.
    """

    precision: str
    operators: Mapping[str, float]


ALL_FLOAT32 = Executed("fp32", {"fp32": 1.0})


def executed_types(operators: Iterable[tuple[bool, str]]) -> Executed:
    """Of every operator that computes: whether it is a convolution or matrix product, and its type.

    Types that are none of WORDS, those of counts and shapes, are passed over.
    """
    known = [(heavy, word) for heavy, word in operators if word in WORDS]
    counting = [word for heavy, word in known if heavy] or [word for _, word in known]
    counts = Counter(word for _, word in known)
    return Executed(precision_of(counting), shares(counts) or ALL_FLOAT32.operators)


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Of operators counted by type, the share of each type, narrowest first; of WORDS alone."""
    whole = sum(counts.get(word, 0) for word in WORDS)
    return {word: round(counts[word] / whole, 4) for word in WORDS if counts.get(word, 0)}


def precision_of(types: Iterable[str]) -> str:
    """One of WORDS, or several joined by "+"; types that are none of them are passed over."""
    found = set(types)
    return "+".join(word for word in WORDS if word in found) or "fp32"


def holds_only_float32(model: bytes) -> bool:
    """Whether an ONNX file has float32 tensors alone, and nothing that makes others of them.

    Such a file is computed in float32 by an engine that is told so, with no need to look.
    """
    for graph in inside(memoryview(model), 7):
        for node in inside(graph, _NODES):
            if any(word in name for name in texts(node, 4) for word in ("Cast", "Quantize", *_QUANTIZED)):
                return False
        if any(_TYPES.get(kind, "fp32") != "fp32" for _, kind in _initializers(graph)):
            return False
    return True


def executed_graph(graph: bytes) -> Executed:
    """Of an ONNX model as an engine has optimized it: what it runs, node by node."""
    types: dict[str, str] = {}
    nodes: list[tuple[str, list[str]]] = []
    for part in inside(memoryview(graph), 7):
        types.update((name, _TYPES[kind]) for name, kind in _initializers(part) if kind in _TYPES)
        types.update((name, _TYPES[kind]) for name, kind in _values(part) if kind in _TYPES)
        for node in inside(part, _NODES):
            nodes.append(("".join(texts(node, 4)), texts(node, 1) + texts(node, 2)))
    return executed_types(
        (any(word in operator for word in _HEAVY), _type_of(operator, tensors, types))
        for operator, tensors in nodes
        if operator not in _CONVERTS
    )


def _type_of(operator: str, tensors: list[str], types: dict[str, str]) -> str:
    if any(word in operator for word in _QUANTIZED):
        return "int8"
    return next((types[name] for name in tensors if name in types), "")


def _initializers(graph: memoryview) -> Iterator[tuple[str, int]]:
    for tensor in inside(graph, _TENSORS):
        kind = next((value for field, value in fields(tensor) if field == 2), 0)
        yield "".join(texts(tensor, 8)), kind if isinstance(kind, int) else 0


def _values(graph: memoryview) -> Iterator[tuple[str, int]]:
    for place in _VALUES:
        for value in inside(graph, place):
            for kind in inside(value, 2):
                for tensor in inside(kind, 1):
                    element = next((number for field, number in fields(tensor) if field == 1), 0)
                    yield "".join(texts(value, 1)), element if isinstance(element, int) else 0
