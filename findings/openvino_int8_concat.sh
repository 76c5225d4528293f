#!/usr/bin/env bash
# The skip connection of a U-Net in int8: two branches, each quantized to steps of 1/32, joined by Concat, and a convolution
# that gives on the first of them as it is. The first holds 0, .3125, .625 and so on (10 steps apart).
#
# Guessed: those come out, as by onnxruntime; each of them is a whole number of steps.
# Seen (OpenVINO 2026.4.1): signed int8 comes out rounded to whole units: 0, 0, 1, 1, 1, 2, 2, 2. In lines, images and
# volumes, and nothing is said. uint8 is right, and so is int8 with a Clip to its own range behind the Concat, without a
# Concat, or with a ConvTranspose that reads it.
# Why hz cares: of a network whose activations lie below .5 nothing is left. `hz-export` puts that Clip wherever
# a quantized Conv reads a Concat (export/hz_export/quantize.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

STEP, TYPES = np.float32(1 / 32), {"int8": np.int8, "uint8": np.uint8}
line = np.arange(8, dtype=np.float32) * 10 * STEP


def network(shape, kind, join, convolution):
    """Two quantized branches, `join`ed or only the first, and a convolution that gives on the first channel."""
    zero = TYPES[kind](0)
    tensors = {"step": STEP, "zero": zero, "unit": np.float32(1 / 64), "none": np.int8(0)}
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["x"], ["b"])]

    def quantized(name, done):
        nodes.append(helper.make_node("QuantizeLinear", [name, "step", "zero"], [name + "_steps"]))
        nodes.append(helper.make_node("DequantizeLinear", [name + "_steps", "step", "zero"], [done]))

    quantized("a", "first")
    if join:
        quantized("b", "second")
        nodes.append(helper.make_node("Concat", ["first", "second"], ["joined"], axis=1))
        if "Clip" in join:
            tensors |= {"low": np.float32(-127 * STEP), "high": np.float32(127 * STEP)}
            nodes.append(helper.make_node("Clip", ["joined", "low", "high"], ["kept"]))
            quantized("kept", "read")
        else:
            quantized("joined", "read")
    channels = 2 if join else 1
    weights = np.zeros((1, channels) if convolution == "Conv" else (channels, 1), np.int8)
    weights[0, 0] = 64
    tensors["weights_int8"] = weights.reshape(weights.shape + (1,) * (len(shape) - 2))
    nodes.append(helper.make_node("DequantizeLinear", ["weights_int8", "unit", "none"], ["weights"]))
    nodes.append(helper.make_node(convolution, ["read" if join else "first", "weights"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


core, found = openvino.Core(), {}
for dimensions, kind, join, convolution in (
    (1, "int8", "Concat", "Conv"),
    (2, "int8", "Concat", "Conv"),
    (3, "int8", "Concat", "Conv"),
    (3, "uint8", "Concat", "Conv"),
    (3, "int8", "Concat, Clip", "Conv"),
    (3, "int8", "Concat", "ConvTranspose"),
    (3, "int8", "", "Conv"),
):
    scan = np.broadcast_to(line, (1, 1) + (4,) * (dimensions - 1) + (8,)).copy()
    text = network(scan.shape, kind, join, convolution)
    compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    answers = {"onnxruntime": session.run(None, {"x": scan})[0], "OpenVINO": compiled(scan)[0]}
    for engine, answer in answers.items():
        exact, whole = np.abs(answer - scan).max() < 1e-4, np.abs(answer - np.rint(scan)).max() < 1e-4
        found[engine, dimensions, kind, join, convolution] = "right" if exact else "whole units" if whole else "odd"
        shown = [round(float(v), 2) for v in answer.reshape(-1, 8)[0]]
        print(f"{dimensions} dimensions, {kind}, {join or 'no Concat'}, {convolution}, {engine}: {shown}")
expected = {key: "right" for key in found} | {("OpenVINO", d, "int8", "Concat", "Conv"): "whole units" for d in (1, 2, 3)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
