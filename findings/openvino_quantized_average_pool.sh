#!/usr/bin/env bash
# A quantized volume (uint8, zero point 128) through AveragePool with pads of one that count (count_include_pad = 1).
#
# Guessed: as QuantizeLinear, DequantizeLinear and AveragePool say one after another: what is padded counts as 0.
# Seen: onnxruntime 1.31.1 does so. OpenVINO 2026.4.1 takes the zero point off after pooling, also where there was
# padding: of an image of zeros the rim comes out at -2.2 at the edges' corners, -4 being the darkest value there is. With
# zero point 0, or without padding, it is right.
# Why hz cares: a dark rim around a volume of features is no anatomy. hz quantizes convolutions alone,
# with zero point 0, and holds every int8 file to float32 on real volumes.
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
    for zero, pads in ((128, 1), (128, 0), (0, 1)):
        settings = {"kernel_shape": [3] * dimensions, "strides": [2] * dimensions, "pads": [pads] * 2 * dimensions}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
            helper.make_node("AveragePool", ["a"], ["y"], count_include_pad=1, **settings),
        ]
        scan = np.zeros((1, 4) + (7,) * dimensions, np.float32)
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.float32(1 / 32), "scale"), numpy_helper.from_array(np.uint8(zero), "zero")],
        )
        text = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
        compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        lowest = tuple(round(float(answer.min()), 2) for answer in (session.run(None, {"x": scan})[0], compiled(scan)[0]))
        found[dimensions, zero, pads] = lowest
        print(f"{dimensions} dimensions, zero point {zero}, pads {pads}: zeros become {lowest[0]} by onnxruntime, {lowest[1]} by OpenVINO")
expected = {key: (0.0, 0.0) for key in found} | {(2, 128, 1): (0.0, -2.22), (3, 128, 1): (0.0, -2.81)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
