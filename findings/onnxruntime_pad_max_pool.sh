#!/usr/bin/env bash
# A volume of -1 throughout, padded with zeros by a Pad of its own (as Keras's ZeroPadding3D, or torch's pad), and the largest of
# each window of two (MaxPool, without pads). Plain float32.
#
# Guessed: the outermost windows hold zeros, so that their largest value is 0; optimizations change the last digits at most.
# Seen (onnxruntime 1.31.1): with the optimizations that are on by default it is -1 everywhere: the zeros were taken for
# MaxPool's own padding, which counts for nothing. Without optimizations, and with a padding of .5, it is right; so is
# OpenVINO 2026.4.1 throughout, and so is AveragePool. Behind a Relu, which leaves nothing below 0, nobody notices.
# Why hz cares: behind a leaky Relu or a norm a rim of wrong values goes on into the network. hz's own networks pad in MaxPool
# itself, Keras's "same" is imported as a repeated edge, and each file is held to torch as the engine optimizes it.
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

core, found = openvino.Core(), {}
for dimensions in (2, 3):
    scan = np.full((1, 1) + (4,) * dimensions, -1, np.float32)
    for pool, padded in (("MaxPool", 0.0), ("MaxPool", 0.5), ("AveragePool", 0.0)):
        nodes = [
            helper.make_node("Pad", ["x", "pads", "value"], ["wide"]),
            helper.make_node(pool, ["wide"], ["y"], kernel_shape=[2] * dimensions, strides=[2] * dimensions),
        ]
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1] + [3] * dimensions)],
            [
                numpy_helper.from_array(np.array(([0, 0] + [1] * dimensions) * 2), "pads"),
                numpy_helper.from_array(np.float32(padded), "value"),
            ],
        )
        text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answers = {
            "onnxruntime": onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"]).run(None, {"x": scan})[0],
            "onnxruntime, plain": onnxruntime.InferenceSession(text, plain, providers=["CPUExecutionProvider"]).run(None, {"x": scan})[0],
            "OpenVINO": compiled(scan)[0],
        }
        wide = np.pad(scan[0, 0], 1, constant_values=padded).reshape((3, 2) * dimensions)
        truth = (wide.max if pool == "MaxPool" else wide.mean)(tuple(range(1, 2 * dimensions, 2)))
        for name, answer in answers.items():
            found[name, pool, padded, dimensions] = bool(np.allclose(answer[0, 0], truth, atol=1e-6))
            corner, by_hand = answer.flat[0], truth.flat[0]
            print(f"{pool}, {dimensions} dimensions, padded with {padded}, {name}: a corner is {corner:.3g}, by hand {by_hand:.3g}")
expected = {(n, pool, p, d): (n, pool, p) != ("onnxruntime", "MaxPool", 0.0) for n, pool, p, d in found}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
