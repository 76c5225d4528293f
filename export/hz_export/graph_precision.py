"""The precision policy: a float32 ONNX graph to a float16 one, and what any graph really computes in.

Engines that are strongly typed (TensorRT 11) take precision from the graph, so it is decided here:

- convolutions, and the pointwise, pooling and joining operations between them, compute in float16;
- normalisations stay in float32: their sums over 64^3 voxels overflow float16;
- everything after the last convolution (an output activation, an age network's linear layers) and both
  ends of the graph stay in float32;
- a Cast stands at each border, once per tensor, and weights are stored in the type they are used in: no
  Cast ever feeds a weight, and none stands between a Concat and the ConvTranspose that reads it.

Nothing here trusts what was asked for: `achieved` reads the types back from the finished graph, and
`require` refuses a graph that is not what it is called. Pure onnx and numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hz_runtime.errors import HzError

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
NORMS = frozenset(
    {
        "InstanceNormalization", "BatchNormalization", "GroupNormalization", "LayerNormalization",
        "LpNormalization", "MeanVarianceNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare",
        "ReduceL2", "GlobalAveragePool",
    }
)  # fmt: skip
HALF_OPERATIONS = CONVOLUTIONS | {"Relu", "LeakyRelu", "Concat", "Add", "MaxPool"}
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}
LARGEST_HALF = 65504.0
LEAST_FP16_FLOPS = 0.9  # share of the convolutions' arithmetic below which a graph is not called fp16
SMALLEST_STORED = 1024  # values; halving less than that saves nothing

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_WORD: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Precision:
    """What a graph computes in, read back from its inferred types.

    precision : "fp16", "fp32", or "mixed" for a graph that is neither.
    operations : per operation type, how many nodes compute in which type.
    conv_flops : of all convolutions for one volume.  conv_flops_fp16, conv_weights_fp16 : shares in [0, 1]
        computed in float16.
    stored_bytes : of all initializers, per type.  casts : Cast nodes.
    faults : what contradicts the policy, one line each; empty for a graph that keeps it.
    """

    precision: str
    operations: dict[str, dict[str, int]]
    conv_flops: int
    conv_flops_fp16: float
    conv_weights_fp16: float
    stored_bytes: dict[str, int]
    casts: int
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the manifest."""
        return {**self.__dict__, "faults": list(self.faults)}


def to_half(model: ModelProto) -> ModelProto:
    """The same network in float16 by this module's policy; a new, checked, topologically sorted model.

    Raises HzError for a graph with branches or one that is not float32, and where a weight of a float16
    operation is not finite or above 65504.
    """
    return _Typing(model).typed()


def half_weights(model: ModelProto) -> ModelProto:
    """The same float32 arithmetic with large weights stored as float16: about half the file.

    Each such weight becomes a float16 initializer and a Cast, which every engine folds when it opens the
    file. Raises HzError as `to_half` does.
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
        tensor.CopyFrom(_half_tensor(values, stored, name))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}_widen", to=_FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return checked(model)


def achieved(model: ModelProto) -> Precision:
    """Read back what every node of a graph computes in."""
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    types, shapes = tensor_types(model), _shapes(model)
    operations: dict[str, Counter[str]] = {}
    flops: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    faults = []
    for node in model.graph.node:
        word = _computes_in(node, types)
        if word is None or node.op_type in ("Cast", "Constant", "Shape", "Reshape", "Flatten"):
            continue
        operations.setdefault(node.op_type, Counter())[word] += 1
        if node.op_type in CONVOLUTIONS:
            flops[word] += _conv_flops(node, shapes)
            weights[word] += int(np.prod(shapes[node.input[1]]))
        if node.op_type in NORMS and word != "fp32":
            faults.append(f"{node.op_type} {node.name} computes in {word}")
    faults += [
        f"{end.name} is not float32"
        for end in _ends(model)
        if types[end.name] in (_HALF, TensorProto.BFLOAT16)
    ]
    return Precision(
        precision=_label(flops, operations),
        operations={kind: dict(sorted(count.items())) for kind, count in sorted(operations.items())},
        conv_flops=sum(flops.values()),
        conv_flops_fp16=_share(flops),
        conv_weights_fp16=_share(weights),
        stored_bytes=_stored(model),
        casts=sum(node.op_type == "Cast" for node in model.graph.node),
        faults=tuple(faults),
    )


def require(model: ModelProto, asked: str, where: str) -> Precision:
    """`achieved`, or HzError where that is not the precision asked for or the policy is broken."""
    found = achieved(model)
    if found.precision != asked:
        share = f"{found.conv_flops_fp16:.0%} of the convolutions' arithmetic is float16"
        raise HzError(
            f"{where}: asked for {asked}, the graph computes in {found.precision} ({share}).",
            "This network has operations that the precision policy does not know; export it without --fp16.",
        )
    if found.faults:
        raise HzError(
            f"{where}: {'; '.join(found.faults)}.", "Report this: the precision policy was not kept."
        )
    return found


def checked(model: ModelProto) -> ModelProto:
    """The model with its value types inferred anew, after onnx's full check (which includes node order)."""
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def tensor_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of an inferred model, by name."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**types, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


class _Typing:
    """One pass over the nodes in order; `made` says under which name a tensor exists in which type."""

    def __init__(self, model: ModelProto) -> None:
        self.model = checked(_copy(model))
        graph = self.model.graph
        self.types = tensor_types(self.model)
        _refuse_unsuitable(self.model, self.types)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.results = {value.name for value in graph.output}
        self.made: dict[tuple[str, int], str] = {(value.name, _FLOAT): value.name for value in graph.input}
        self.nodes: list[NodeProto] = []
        self.kept: dict[str, TensorProto] = {}
        self.half = _half_nodes(graph.node)

    def typed(self) -> ModelProto:
        for index, node in enumerate(self.model.graph.node):
            self._add(node, _HALF if index in self.half else _FLOAT)
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
        self.made[name, kind] = f"{name}_fp16" if kind == _HALF and name in self.results else name
        return self.made[name, kind]

    def _tensor(self, name: str, kind: int) -> str:
        """The name under which `name` is at hand in type `kind`, a copy or a Cast made where needed."""
        if name in self.weights:
            return self._weight(name, kind)
        if self.types.get(name) != _FLOAT or (name, kind) in self.made:
            return self.made.get((name, kind), name)
        source = self.made[name, _FLOAT if kind == _HALF else _HALF]
        suffix = "fp16" if kind == _HALF else "fp32"
        target = name if name in self.results and kind == _FLOAT else f"{name}_{suffix}"
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{name}_to_{suffix}", to=kind))
        self.made[name, kind] = target
        return target

    def _weight(self, name: str, kind: int) -> str:
        tensor = self.weights[name]
        if tensor.data_type != _FLOAT or kind == _FLOAT:
            self.kept[name] = tensor
            return name
        half = f"{name}_fp16"
        if half not in self.kept:
            self.kept[half] = _half_tensor(numpy_helper.to_array(tensor), half, name)
        return half


def _half_nodes(nodes: Any) -> set[int]:
    """Indices of the nodes that compute in float16: of a half operation, at or before a convolution."""
    leads: set[str] = set()  # tensors that a convolution depends on
    half = set()
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if node.op_type in CONVOLUTIONS or any(name in leads for name in node.output):
            leads.update(node.input)
            if node.op_type in HALF_OPERATIONS:
                half.add(index)
    return half


def _refuse_unsuitable(model: ModelProto, types: dict[str, int]) -> None:
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise HzError(
                f"{node.op_type} {node.name}: graphs with branches are not typed.", "Export it in float32."
            )
    other = sorted({_WORD[t] for t in types.values() if t in _WORD and t != _FLOAT})
    if other:
        raise HzError(
            f"The graph is not float32 throughout (found {', '.join(other)}).",
            "Start from the float32 graph.",
        )


def _half_tensor(values: np.ndarray, name: str, label: str) -> TensorProto:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= LARGEST_HALF:  # also true for NaN
        raise HzError(
            f"Weight {label}: {largest:g} does not fit into float16 (largest {LARGEST_HALF:g}).",
            "The training diverged, or this network needs float32: export without --fp16 and --half-weights.",
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _copy(model: ModelProto) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(model)
    return new


def _ends(model: ModelProto) -> Iterator[Any]:
    yield from model.graph.input
    yield from model.graph.output


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Shape of every tensor; a free axis counts as 1."""
    graph = model.graph
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    return {**shapes, **{tensor.name: list(tensor.dims) for tensor in graph.initializer}}


def _computes_in(node: NodeProto, types: dict[str, int]) -> str | None:
    """fp32, fp16, ... or "mixed"; None for a node without floating-point tensors."""
    words = {_WORD[types[name]] for name in [*node.input, *node.output] if types.get(name) in _WORD}
    return words.pop() if len(words) == 1 else ("mixed" if words else None)


def _conv_flops(node: NodeProto, shapes: dict[str, list[int]]) -> int:
    """Two per weight and position: output voxels of a Conv, input voxels of a ConvTranspose."""
    where = node.output[0] if node.op_type == "Conv" else node.input[0]
    return 2 * int(np.prod(shapes[node.input[1]])) * int(np.prod(shapes[where][2:]))


def _share(count: Counter[str]) -> float:
    total = sum(count.values())
    return round(count["fp16"] / total, 6) if total else 0.0


def _label(flops: Counter[str], operations: dict[str, Counter[str]]) -> str:
    used = {word for count in operations.values() for word in count}
    if used <= {"fp32"}:
        return "fp32"
    if _share(flops) >= LEAST_FP16_FLOPS:
        return "fp16"
    return "mixed"


def _stored(model: ModelProto) -> dict[str, int]:
    stored: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        word = _WORD.get(tensor.data_type, TensorProto.DataType.Name(tensor.data_type).lower())
        stored[word] += numpy_helper.to_array(tensor).nbytes
    return dict(sorted(stored.items()))
