"""The precision policy: a float32 ONNX graph to a float16 or bfloat16 one.

Engines that are strongly typed (TensorRT 11) take precision from the graph, so it is decided here:

- convolutions, and the pointwise, pooling and joining operations between them, compute in the reduced type;
- normalisations stay in float32: their sums over whole volumes overflow float16 and drown in bfloat16;
- everything after the last convolution (an output activation, an age network's linear layers) and both
  ends of the graph stay in float32;
- a Cast stands at each border, once per tensor, and weights are stored in the type they are used in: no
  Cast ever feeds a weight, and none stands between a Concat and the ConvTranspose that reads it.

Bfloat16 has float32's range and 8 bits of precision. ONNX has bfloat16 convolutions since opset 22, so that
such a graph is of opset 22; its transposed convolutions stay in float32, because TensorRT for RTX 1.7 has
no bfloat16 kernel for them ("Could not infer output types for operation: deconv").

Nothing here trusts what was asked for: see `hz_export.graph_report`. Pure onnx and numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hz_export.graph_report import (
    CONVOLUTIONS,
    WEIGHTED,
    WORDS,
    Precision,
    achieved,
    checked,
    require,
    tensor_types,
)
from hz_runtime.errors import HzError

__all__ = ["Precision", "achieved", "checked", "half_weights", "require", "to_half", "to_reduced"]

BETWEEN = frozenset({"Relu", "LeakyRelu", "Concat", "Add", "MaxPool", "Pad"})
SMALLEST_STORED = 1024  # values; halving less than that saves nothing
_FLOAT = int(TensorProto.FLOAT)


@dataclass(frozen=True)
class Reduced:
    """A 16-bit type as the policy uses it.

    kind : of onnx.TensorProto.  largest : finite value.  operations : that compute in it.
    opset : the first whose convolutions take it.
    """

    word: str
    kind: int
    largest: float
    operations: frozenset[str]
    opset: int

    def tensor(self, values: np.ndarray, name: str, label: str) -> TensorProto:
        """Values (float32) rounded to this type. Raises HzError, naming `label`, where one does not fit."""
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= self.largest:  # also true for NaN
            long = {"fp16": "float16", "bf16": "bfloat16"}[self.word]
            raise HzError(
                f"Weight {label}: {largest:g} does not fit into {long} (largest {self.largest:g}).",
                f"The training diverged, or this network needs float32: export without --{self.word} and "
                "--half-weights.",
            )
        if self.word == "fp16":
            return numpy_helper.from_array(values.astype(np.float16), name)
        return helper.make_tensor(name, self.kind, values.shape, bfloat16_bytes(values), raw=True)


REDUCED = {
    "fp16": Reduced("fp16", int(TensorProto.FLOAT16), 65504.0, CONVOLUTIONS | BETWEEN, 1),
    "bf16": Reduced("bf16", int(TensorProto.BFLOAT16), 3.3895313892515355e38, BETWEEN | {"Conv"}, 22),
}


def to_half(model: ModelProto) -> ModelProto:
    """The same network in float16; see `to_reduced`."""
    return to_reduced(model, "fp16")


def to_reduced(model: ModelProto, precision: str) -> ModelProto:
    """The same network in "fp16" or "bf16" by this module's policy; a new, checked, sorted model.

    Raises HzError for a graph with branches or one that is not float32, and where a weight of a reduced
    operation is not finite or too large for the type.
    """
    reduced = REDUCED[precision]
    opsets = {item.domain: item.version for item in model.opset_import}
    if opsets.get("", 0) < reduced.opset:
        model = onnx.version_converter.convert_version(checked(_copy(model)), reduced.opset)
    return _Typing(model, reduced).typed()


def bfloat16_bytes(values: np.ndarray) -> bytes:
    """Finite float32 values rounded to bfloat16, to the nearest and ties to even; little-endian bytes."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def half_weights(model: ModelProto) -> ModelProto:
    """The same float32 arithmetic with large weights stored as float16: about half the file.

    Each such weight becomes a float16 initializer and a Cast, which every engine folds when it opens the
    file. Raises HzError as `to_reduced` does.
    """
    model = _copy(model)
    graph = model.graph
    used = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input}
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name not in used or tensor.data_type != _FLOAT or values.size < SMALLEST_STORED:
            continue
        name = tensor.name
        stored = f"{name}_stored"
        tensor.CopyFrom(REDUCED["fp16"].tensor(values, stored, name))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}_widen", to=_FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return checked(model)


class _Typing:
    """One pass over the nodes in order; `made` says under which name a tensor exists in which type."""

    def __init__(self, model: ModelProto, reduced: Reduced) -> None:
        self.model = checked(_copy(model))
        self.reduced = reduced
        graph = self.model.graph
        self.types = tensor_types(self.model)
        _refuse_unsuitable(self.model, self.types)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.results = {value.name for value in graph.output}
        self.made: dict[tuple[str, int], str] = {(value.name, _FLOAT): value.name for value in graph.input}
        self.nodes: list[NodeProto] = []
        self.kept: dict[str, TensorProto] = {}
        self.chosen = _reduced_nodes(graph.node, reduced)

    def typed(self) -> ModelProto:
        for index, node in enumerate(self.model.graph.node):
            self._add(node, self.reduced.kind if index in self.chosen else _FLOAT)
        for name in self.results:
            if self.types[name] == _FLOAT:
                self._tensor(name, _FLOAT)
        graph = self.model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.kept.values())
        return checked(self.model)

    def _add(self, node: NodeProto, kind: int) -> None:
        inputs = [self._tensor(name, kind) for name in node.input]
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[:], new.output[:]
        new.input.extend(inputs)
        new.output.extend(self._output(name, kind) for name in node.output)
        self.nodes.append(new)

    def _output(self, name: str, kind: int) -> str:
        if self.types.get(name) != _FLOAT:
            return name
        # A result of the network keeps its name for its float32 form.
        taken = kind != _FLOAT and name in self.results
        self.made[name, kind] = f"{name}_{self.reduced.word}" if taken else name
        return self.made[name, kind]

    def _tensor(self, name: str, kind: int) -> str:
        """The name under which `name` is at hand in type `kind`, a copy or a Cast made where needed."""
        if name in self.weights:
            return self._weight(name, kind)
        if self.types.get(name) != _FLOAT or (name, kind) in self.made:
            return self.made.get((name, kind), name)
        source = self.made[name, self.reduced.kind if kind == _FLOAT else _FLOAT]
        suffix = "fp32" if kind == _FLOAT else self.reduced.word
        target = name if name in self.results and kind == _FLOAT else f"{name}_{suffix}"
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{name}_to_{suffix}", to=kind))
        self.made[name, kind] = target
        return target

    def _weight(self, name: str, kind: int) -> str:
        tensor = self.weights[name]
        if tensor.data_type != _FLOAT or kind == _FLOAT:
            self.kept[name] = tensor
            return name
        small = f"{name}_{self.reduced.word}"
        if small not in self.kept:
            self.kept[small] = self.reduced.tensor(numpy_helper.to_array(tensor), small, name)
        return small


def _reduced_nodes(nodes: Any, reduced: Reduced) -> set[int]:
    """Indices of the nodes that compute in the reduced type: of its operations, at or before a convolution.

    A Concat whose readers all stay in float32 stays there too: no Cast between it and a ConvTranspose.
    """
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    leads: set[str] = set()  # tensors that a convolution depends on
    chosen: set[int] = set()
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if node.op_type not in CONVOLUTIONS and not any(name in leads for name in node.output):
            continue
        leads.update(node.input)
        only_wide = chosen.isdisjoint(readers.get(node.output[0], []))
        if node.op_type in reduced.operations and not (node.op_type == "Concat" and only_wide):
            chosen.add(index)
    return chosen


def _refuse_unsuitable(model: ModelProto, types: dict[str, int]) -> None:
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise HzError(
                f"{node.op_type} {node.name}: graphs with branches are not typed.", "Export it in float32."
            )
    other = sorted({WORDS[t] for t in types.values() if t in WORDS and t != _FLOAT})
    if other:
        raise HzError(
            f"The graph is not float32 throughout (found {', '.join(other)}).",
            "Start from the float32 graph.",
        )


def _copy(model: ModelProto) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(model)
    return new
