"""What an ONNX graph really computes in, read back from its inferred types, and what breaks the policy.

Nothing here trusts what was asked for: `achieved` reports, `require` refuses a graph that is not what it is
called. The policy itself is in `graph_precision` (16-bit types) and `quantize` (int8). A convolution computes
in int8 where both its input and its weights come from a DequantizeLinear of int8: that is what engines fuse.
Pure onnx and numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from hz_export.label import label, share
from hz_runtime.errors import HzError

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
NORMS = frozenset(
    {
        "InstanceNormalization", "BatchNormalization", "GroupNormalization", "LayerNormalization",
        "LpNormalization", "MeanVarianceNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare",
        "ReduceL2", "GlobalAveragePool",
    }
)  # fmt: skip
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}
MOVES = frozenset(
    {"Cast", "Constant", "Shape", "Reshape", "Flatten", "QuantizeLinear", "DequantizeLinear"}
)  # nodes that compute nothing
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
WORDS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Precision:
    """What a graph computes in.

    precision : "fp16", "bf16", "int8", "fp32", or "mixed" for a graph that is none of them; see `label`.
    operations : per operation type, how many nodes compute in which type.
    conv_flops : of all convolutions for one volume.  conv_flops_fp16, ..._bf16, ..._int8 : shares of them in
        [0, 1].  conv_weights_fp16 : share of the convolutions' weights used in float16.
    stored_bytes : of all initializers, per type.  casts : Cast nodes.
    faults : what contradicts the policy, one line each; empty for a graph that keeps it.
    """

    precision: str
    operations: dict[str, dict[str, int]]
    conv_flops: int
    conv_flops_fp16: float
    conv_flops_bf16: float
    conv_flops_int8: float
    conv_weights_fp16: float
    stored_bytes: dict[str, int]
    casts: int
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the manifest."""
        return {**self.__dict__, "faults": list(self.faults)}


def achieved(model: ModelProto) -> Precision:
    """Read back what every node of a graph computes in. Raises HzError for a graph that is not sound: not in
    topological order, or of types or shapes that do not fit."""
    return _read_back(model, "the graph")[0]


def require(model: ModelProto, asked: str, where: str) -> Precision:
    """`achieved`, or HzError where that is not the precision asked for or the policy is broken."""
    found, flops = _read_back(model, where)
    if found.precision != asked:
        raise HzError(
            f"{where}: asked for {asked}, the graph computes in {found.precision} "
            f"({share(flops, asked):.0%} of the convolutions' arithmetic is {asked}).",
            "Its plan keeps too much in float32: calibrate with a wider budget, or export it in float16."
            if asked == "int8"
            else "This network has operations that the precision policy does not know; export it in float32.",
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


def _read_back(model: ModelProto, where: str) -> tuple[Precision, Counter[str]]:
    model = _sound(model, where)
    reader = _Reader(model)
    operations: dict[str, Counter[str]] = {}
    flops: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for node in model.graph.node:
        word = reader.computes_in(node)
        if word is None or node.op_type in MOVES:
            continue
        operations.setdefault(node.op_type, Counter())[word] += 1
        if node.op_type in CONVOLUTIONS:
            flops[word] += reader.conv_flops(node)
            weights[word] += int(np.prod(reader.shapes[node.input[1]]))
    found = Precision(
        precision=label(flops, {word for count in operations.values() for word in count}),
        operations={kind: dict(sorted(count.items())) for kind, count in sorted(operations.items())},
        conv_flops=sum(flops.values()),
        conv_flops_fp16=share(flops, "fp16"),
        conv_flops_bf16=share(flops, "bf16"),
        conv_flops_int8=share(flops, "int8"),
        conv_weights_fp16=share(weights, "fp16"),
        stored_bytes=_stored(model),
        casts=sum(node.op_type == "Cast" for node in model.graph.node),
        faults=tuple(reader.faults()),
    )
    return found, flops


def _sound(model: ModelProto, where: str) -> ModelProto:
    """The model with inferred types. TensorRT for RTX 1.7 sorts an unsorted graph without a word, others do
    not: it is refused here, by node."""
    ready = {value.name for value in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    for node in model.graph.node:
        early = next((name for name in node.input if name not in ready), None)
        if early is not None:
            raise HzError(
                f"{where}: not in topological order: {node.op_type} {node.name} reads {early}, which no node "
                "before it makes.",
                "Export it again:  hz-export --help",
            )
        ready.update(node.output)
    try:
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        brief = " ".join(str(error).split())[:300]
        raise HzError(
            f"{where}: not a sound ONNX graph ({brief}).", "Export it again:  hz-export --help"
        ) from None


class _Reader:
    """Types, shapes and makers of one graph's tensors."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.types = tensor_types(model)
        self.shapes = _shapes(model)
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}

    def computes_in(self, node: NodeProto) -> str | None:
        """fp32, fp16, int8, ... or "mixed"; None for a node without floating-point tensors."""
        if node.op_type in WEIGHTED and all(self._dequantized(name) for name in node.input[:2]):
            return "int8"
        names = [*node.input, *node.output]
        words = {WORDS[self.types[name]] for name in names if self.types.get(name) in WORDS}
        return words.pop() if len(words) == 1 else ("mixed" if words else None)

    def conv_flops(self, node: NodeProto) -> int:
        """Two per weight and position: output voxels of a Conv, input voxels of a ConvTranspose."""
        where = node.output[0] if node.op_type == "Conv" else node.input[0]
        return 2 * int(np.prod(self.shapes[node.input[1]])) * int(np.prod(self.shapes[where][2:]))

    def faults(self) -> Iterator[str]:
        """What contradicts the policy, in the order of the nodes."""
        heads = self._heads()
        for node in self.model.graph.node:
            name = f"{node.op_type} {node.name}"
            word = self.computes_in(node)
            if node.op_type in NORMS:
                if word not in ("fp32", None):
                    yield f"{name} computes in {word}"
                if any(map(self._dequantized, node.input)):
                    yield f"{name} reads quantized values"
            if word == "int8" and node.name in heads:
                yield f"{name} is the network's head and computes in int8"
            if node.op_type in QUANTIZERS:
                yield from self._quantizer_faults(node, name)
        for end in (*self.model.graph.input, *self.model.graph.output):
            if self.types[end.name] in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8):
                yield f"{end.name} is not float32"

    def _dequantized(self, name: str) -> bool:
        maker = self.made_by.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _quantizer_faults(self, node: NodeProto, where: str) -> Iterator[str]:
        quantized = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
        kind = self.types.get(quantized)
        if kind == TensorProto.INT32:
            yield f"{where} reads an int32 bias, which TensorRT refuses: biases stay in floating point"
        elif kind != TensorProto.INT8:
            yield f"{where} quantizes to {TensorProto.DataType.Name(kind or 0).lower()}, not to int8"
        zero = self.weights.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None and numpy_helper.to_array(zero).any():
            yield f"{where} is not symmetric: its zero point is not 0"

    def _heads(self) -> set[str]:
        """Names of the weighted nodes that no other weighted node comes after."""
        leads: set[str] = set()
        heads = set()
        for node in reversed(self.model.graph.node):
            before = any(name in leads for name in node.output)
            if node.op_type in WEIGHTED and not before:
                heads.add(node.name)
            if node.op_type in WEIGHTED or before:
                leads.update(node.input)
        return heads


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Shape of every tensor; a free axis counts as 1."""
    graph = model.graph
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    return {**shapes, **{tensor.name: list(tensor.dims) for tensor in graph.initializer}}


def _stored(model: ModelProto) -> dict[str, int]:
    stored: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        word = WORDS.get(tensor.data_type, TensorProto.DataType.Name(tensor.data_type).lower())
        # onnx before 1.19 gives bfloat16 as float32 arrays
        width = 2 if word == "bf16" else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        stored[word] += int(np.prod(tensor.dims)) * width
    return dict(sorted(stored.items()))
