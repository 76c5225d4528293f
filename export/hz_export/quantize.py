"""A float32 graph to int8 by a precision plan: explicit QuantizeLinear/DequantizeLinear pairs.

Symmetric throughout: activations per tensor, weights per output channel, zero points 0; biases stay float32
(TensorRT refuses an int32 bias). Only the inputs of planned convolutions are quantized: norms, the joins
between blocks, and everything from the last convolution on compute in float32, with the residual sums
unrounded.

What naive Q/DQ got wrong (generator A, trained weights, one real scan; difference over the brain's mean
intensity, in onnxruntime 1.31 and in OpenVINO 2026.4):

- Quantizing the last convolution alone costs 8.8 % and 44 %; all between first and last 0.7 % and 0.7 %.
- The gap between the two engines is a fault in OpenVINO. It moves the quantizer of a Concat's result to the
  Concat's inputs. Where a Conv reads that (a ConvTranspose is right), its low-precision passes then store
  dequantized values as 8-bit integers: every activation is rounded to a whole unit instead of a step.
  Quantizing the branches does not help. Unsigned int8 does, but TensorRT takes none. A Clip to the
  quantizer's range, -127 to 127 steps, keeps the quantizer behind the Concat, and OpenVINO folds the Clip
  into it: `_guard`.
- On CPUs without VNNI or AMX, oneDNN adds pairs of u8 x s8 products in 16 bits and cuts the sums: 1 to 4 % of
  error in single random layers, with oneDNN held to AVX2. Weights of 7 bits (at most 63) cannot
  overflow there: `weight_bits` of the plan.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hz_calibration.graph import fingerprint, folded
from hz_calibration.plan import PrecisionPlan
from hz_calibration.ranges import LEVELS
from hz_export.graph_precision import checked
from hz_runtime.errors import HzError, UsageError

CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of the output channels, in the weights
WEIGHT_LEVELS = {8: 127, 7: 63}
_REMEDY = "Make the plan again:  hz-calibrate CHECKPOINT SCANS... --out PLAN.json"
# Operations through which OpenVINO moves a quantizer.
PASSED = frozenset({"Relu", "LeakyRelu", "Clip", "MaxPool", "Identity"})


def to_int8(model: ModelProto, plan: PrecisionPlan) -> ModelProto:
    """The network with the plan's nodes in int8; a new, checked, topologically sorted model.

    model : the float32 graph, its weights in float32 or stored as float16.
    Raises UsageError where the plan was made for another network, HzError where it names a node that cannot
    be quantized or lacks a range.
    """
    new = folded(model)
    if fingerprint(new) != plan.network:
        raise UsageError(
            f"the precision plan was made for another {plan.role} network than this one.",
            "Make one for this network:  hz-calibrate CHECKPOINT SCANS... --out PLAN.json",
        )
    return _Quantizing(new, plan).quantized()


class _Quantizing:
    """One pass over the nodes; `made` says which tensors exist quantized already."""

    def __init__(self, model: ModelProto, plan: PrecisionPlan) -> None:
        self.model = model
        self.plan = plan
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.made: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self._check()
        self.read_by_conv = {
            node.input[0] for node in model.graph.node if node.op_type == "Conv" and node.name in plan.int8
        }

    def quantized(self) -> ModelProto:
        for node in self.model.graph.node:
            if node.name in self.plan.int8:
                node.input[0] = self._activation(node.input[0])
                node.input[1] = self._weight(node)
            self.nodes.append(node)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for name, tensor in self.weights.items() if name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(kept)
        return checked(self.model)

    def _activation(self, name: str) -> str:
        """Put a Q/DQ pair behind a tensor, once; its dequantized name."""
        if name not in self.made:
            scale = self.plan.ranges[name].scale
            source = self._guard(name, scale) if name in self.read_by_conv and self._is_joined(name) else name
            self._add(f"{name}_scale", np.float32(scale))
            self._add(f"{name}_zero", np.int8(0))
            pair = [f"{name}_scale", f"{name}_zero"]
            quantized, done = f"{name}_int8", f"{name}_dequantized"
            self.nodes += [
                helper.make_node("QuantizeLinear", [source, *pair], [quantized], f"{name}_quantize"),
                helper.make_node("DequantizeLinear", [quantized, *pair], [done], f"{name}_dequantize"),
            ]
            self.made[name] = done
        return self.made[name]

    def _guard(self, name: str, scale: float) -> str:
        """A Clip to the quantizer's own range; see the module's docstring."""
        for end, sign in (("low", -1), ("high", 1)):
            self._add(f"{name}_{end}", np.float32(sign * LEVELS * np.float32(scale)))
        bounds = [f"{name}_low", f"{name}_high"]
        self.nodes.append(helper.make_node("Clip", [name, *bounds], [f"{name}_held"], f"{name}_hold"))
        return f"{name}_held"

    def _is_joined(self, name: str) -> bool:
        """Whether a tensor comes out of a Concat, directly or through operations that pass values on."""
        node = self.maker.get(name)
        while node is not None and node.op_type in PASSED:
            node = self.maker.get(node.input[0])
        return node is not None and node.op_type == "Concat"

    def _weight(self, node: NodeProto) -> str:
        """Store a convolution's weights in int8, one scale per output channel; their dequantized name."""
        name = f"{node.name}_weight"
        values = numpy_helper.to_array(self.weights[node.input[1]]).astype(np.float32)
        axis = CHANNEL_AXIS[node.op_type]
        levels = WEIGHT_LEVELS[self.plan.weight_bits]
        largest = np.abs(values).max(tuple(k for k in range(values.ndim) if k != axis))
        scale = (largest / levels).astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1.0  # a dead channel: all of it is 0, and no step may be
        steps = values / scale.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        self._add(f"{name}_int8", np.clip(np.rint(steps), -levels, levels).astype(np.int8))
        self._add(f"{name}_scale", scale)
        self._add(f"{name}_zero", np.zeros(scale.shape, np.int8))
        parts = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        done = f"{name}_dequantized"
        self.nodes.append(
            helper.make_node("DequantizeLinear", parts, [done], f"{name}_dequantize", axis=axis)
        )
        return done

    def _add(self, name: str, values: np.ndarray | np.generic) -> None:
        self.weights[name] = numpy_helper.from_array(np.asarray(values), name)

    def _check(self) -> None:
        nodes = {node.name: node for node in self.model.graph.node}
        for name in self.plan.int8:
            node = nodes.get(name)
            if node is None or node.op_type not in CHANNEL_AXIS or node.input[1] not in self.weights:
                raise HzError(f"The plan quantizes {name}, which is no convolution of this graph.", _REMEDY)
            if any(a.name == "group" and a.i != 1 for a in node.attribute):
                raise HzError(f"{name} is a grouped convolution, which int8 does not know here.", _REMEDY)
            if not np.isfinite(numpy_helper.to_array(self.weights[node.input[1]])).all():
                raise HzError(f"The weights of {name} are not finite.", "The training diverged; train again.")
            if node.input[0] not in self.plan.ranges:
                raise HzError(f"The plan holds no range for {node.input[0]}, which {name} reads.", _REMEDY)
        if any(t.data_type == TensorProto.FLOAT16 for t in self.weights.values()):
            raise HzError(
                "The graph holds float16 weights that no Cast widens.", "Start from the float32 graph."
            )
