#!/usr/bin/env bash
# AveragePool 3 x 3 (x 3) with stride 2, pads 1, count_include_pad = 1 and ceil_mode = 1 over an image of ones, 6 to a side.
# The last window of each row hangs one step over the padded edge.
#
# Guessed: one answer, that of the operator's own reference.
# Seen: onnx 1.23.2 (its reference) and onnxruntime 1.31.1 divide by the voxels of the window that lie in
# the padded image: 1/2 and 1/4 there. OpenVINO 2026.4.1 divides by the whole window: 1/3 and 1/9. Without
# ceil_mode, or without pads, all agree.
# Why hz cares: pooling of this kind is a line in a torch network that is exported unchanged. hz's own networks have
# none; what is exported is held to torch on real volumes before it is in a bundle.
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
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

core, as_seen = openvino.Core(), True
for dimensions in (2, 3):
    image = np.ones((1, 1) + (6,) * dimensions, np.float32)
    settings = {"kernel_shape": [3] * dimensions, "strides": [2] * dimensions, "pads": [1] * 2 * dimensions}
    graph = helper.make_graph(
        [helper.make_node("AveragePool", ["x"], ["y"], count_include_pad=1, ceil_mode=1, **settings)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    text = model.SerializeToString()
    compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    corners = {
        "onnx": ReferenceEvaluator(model).run(None, {"x": image})[0],
        "onnxruntime": session.run(None, {"x": image})[0],
        "OpenVINO": compiled(image)[0],
    }
    last = {name: round(float(answer.flat[-1]), 4) for name, answer in corners.items()}
    print(f"{dimensions} dimensions, last value: {last}")
    whole, within = round(3.0**-dimensions, 4), 2.0**-dimensions
    as_seen &= last == {"onnx": within, "onnxruntime": within, "OpenVINO": whole}
sys.exit(0 if as_seen else "changed: the engines agree, or differ otherwise")
PY
