#!/usr/bin/env bash
# One voxel that is not a number, through Relu, Clip and MaxPool, and through Conv, InstanceNormalization and Relu.
#
# ONNX describes Relu as max(0, x) and says nothing of NaN. Guessed: a NaN stays one, so that an answer without NaN
# proves that none arose inside.
# Seen: onnxruntime 1.31.1 keeps it in all four (after InstanceNormalization every voxel is NaN). OpenVINO 2026.4.1 on a
# CPU, told to compute in float32, makes it 0 or forgets it in all four: of a volume that was lost whole, zeros are
# left, which look like an answer.
# Why hz cares: outputs that are finite prove nothing there. hz refuses inputs and weights that are not finite before
# the engine sees them, and adds what the last Relu or Clip reads to the outputs that it checks.
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

constants = {
    "low": np.float32(0),
    "high": np.float32(1),
    "ones": np.ones(2, np.float32),
    "kernel": np.full((2, 2, 3, 3, 3), 0.1, np.float32),
}
node = helper.make_node
networks = {
    "Relu": [node("Relu", ["x"], ["y"])],
    "Clip": [node("Clip", ["x", "low", "high"], ["y"])],
    "MaxPool": [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2, 2], strides=[2, 2, 2])],
    "Conv, InstanceNormalization, Relu": [
        node("Conv", ["x", "kernel"], ["a"], pads=[1] * 6),
        node("InstanceNormalization", ["a", "ones", "ones"], ["b"]),
        node("Relu", ["b"], ["y"]),
    ],
}
scan = np.random.default_rng(0).random((1, 2, 8, 8, 8), np.float32)
scan[0, :, 3, 3, 3] = np.nan
core, found = openvino.Core(), {}
for name, nodes in networks.items():
    used = {i for n in nodes for i in n.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items() if key in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = (session.run(None, {"x": scan})[0], compiled(scan)[0])
    found[name] = tuple(int(np.isnan(answer).sum()) for answer in answers)
    print(f"{name}: {found[name][0]} NaN from onnxruntime, {found[name][1]} from OpenVINO")
expected = {"Relu": (2, 0), "Clip": (2, 0), "MaxPool": (2, 0), "Conv, InstanceNormalization, Relu": (1024, 0)}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
