"""ONNX graphs as calibration needs them: folded, named by content, with more outputs, with nodes reduced."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hz_runtime.errors import HzError, UsageError

CONVOLUTIONS = ("Conv", "ConvTranspose")


def read_graph(data: bytes, where: str) -> ModelProto:
    """The float32 graph in an ONNX file's bytes, its stored weights widened (`folded`).

    Raises UsageError where the bytes are no ONNX model, or one with weights in other files.
    """
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise UsageError(
            f"{where} is not a sound ONNX model: {' '.join(str(error).split())[:200]}.",
            "Export it again:  hz-export CHECKPOINT... --out NAME.hz",
        ) from None
    return folded(model)


def folded(model: ModelProto) -> ModelProto:
    """A copy in which weights that are stored in float16 behind a Cast are float32 weights.

    Raises UsageError for a graph that is not float32, is already quantized or has branches: calibration
    compares with float32 arithmetic.
    """
    new = ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
            weights[node.output[0]] = numpy_helper.from_array(values, node.output[0])
        else:
            nodes.append(node)
    _refuse_unsuitable(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return new


def fingerprint(model: ModelProto) -> str:
    """Hex sha256 of a float32 network: its operations, how they are joined, and its weights as float16.

    Float16, so that a file with weights stored in half and the file they came from are one network: they
    round to the same numbers. Names of nodes count, because plans speak of them.
    """
    model = folded(model)
    digest = hashlib.sha256()
    for node in model.graph.node:
        attributes = sorted(f"{a.name}={helper.get_attribute_value(a)!r}" for a in node.attribute)
        digest.update(repr((node.op_type, node.name, *node.input, "->", *node.output, attributes)).encode())
    for tensor in sorted(model.graph.initializer, key=lambda t: str(t.name)):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                values = values.astype(np.float16)
        digest.update(repr((tensor.name, values.shape, values.dtype.str)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def convolutions(model: ModelProto) -> tuple[NodeProto, ...]:
    """The Conv and ConvTranspose nodes with constant weights, in order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(n for n in model.graph.node if n.op_type in CONVOLUTIONS and n.input[1] in weights)


def with_outputs(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy that also gives these tensors; those that it gives or takes anyway are left out."""
    new = ModelProto()
    new.CopyFrom(model)
    ends = {value.name for value in (*new.graph.output, *new.graph.input)}
    for name in dict.fromkeys(tensors):
        if name not in ends:
            new.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return new


def in_half(model: ModelProto, nodes: Collection[str], kind: int = TensorProto.FLOAT16) -> ModelProto:
    """A copy in which the named nodes compute in float16 as a GPU's tensor cores do: inputs, weights and
    results are float16 numbers, sums are formed in float32; what is past 65504 becomes infinite.

    Written as float32 arithmetic between roundings (a Cast down and one up), because engines on a CPU have no
    float16 convolutions: onnxruntime 1.31 widens such a node itself and drops the rounding of its result.
    kind : of TensorProto, FLOAT16 or BFLOAT16, for which the same holds.
    """
    new = ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    _refuse_unknown(nodes, graph.node)
    made: list[NodeProto] = []
    for node in graph.node:
        made += _half_node(node, weights, kind) if node.name in nodes else [node]
    used = {name for node in made for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(made)
    graph.initializer.extend(kept)
    return new


def _half_node(node: NodeProto, weights: dict[str, TensorProto], kind: int) -> list[NodeProto]:
    """[roundings of its inputs and weights, the node, rounding of its results]."""
    half = NodeProto()
    half.CopyFrom(node)
    before: dict[str, list[NodeProto]] = {}
    after: list[NodeProto] = []
    for place, name in enumerate(node.input):
        whole = name in weights and weights[name].data_type != TensorProto.FLOAT  # axes and shapes
        if name and not whole:
            half.input[place] = f"{name}_for_{node.name}"
            before[name] = _rounding(name, half.input[place], kind)
    for place, name in enumerate(node.output):
        half.output[place] = f"{name}_of_{node.name}"
        after += _rounding(half.output[place], name, kind)
    return [*(cast for casts in before.values() for cast in casts), half, *after]


def _rounding(source: str, target: str, kind: int) -> list[NodeProto]:
    """Two Casts that leave of `source` what this type holds of it, as `target`."""
    return [
        helper.make_node("Cast", [source], [f"{target}_in_half"], to=kind),
        helper.make_node("Cast", [f"{target}_in_half"], [target], to=TensorProto.FLOAT),
    ]


def _refuse_unknown(nodes: Collection[str], present: Iterable[NodeProto]) -> None:
    unknown = sorted(set(nodes) - {node.name for node in present})
    if unknown:
        raise HzError(f"The graph has no node {unknown[0]!r}.", "Use names of this very graph.")


def _refuse_unsuitable(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "If", "Loop"):
            raise UsageError(
                f"{node.op_type} {node.name}: calibration starts from a plain float32 graph.",
                "Give the checkpoint, or a bundle that holds the float32 network.",
            )
