#!/usr/bin/env bash
# MaxPool with ceil_mode = 1 over images and volumes of 91 voxels to a side (the 2 mm grid of MNI152), windows of 2, stride 2,
# pads 1: the 47th window would begin in the padding behind the last voxel.
#
# ONNX (MaxPool): "Sliding windows that would start in the right padded region are ignored". Guessed: 46 to a side, as
# onnx's own shape inference says.
# Seen: onnxruntime 1.31.1 gives 46. OpenVINO 2026.4.1 gives 47, and its last layer along every axis is -3.4e38, the
# lowest number of float32: the mean over the volume is no number of a scan any more. A Relu behind it makes a rim of
# zeros of it. AveragePool of the same windows is right.
# Why hz cares: torch.onnx (2.13.0) writes MaxPool3d(2, 2, padding=1, ceil_mode=True) so. Of the networks that hz trains or
# imports none pools with ceil_mode, and what is exported is held to torch on every engine before it is in a bundle.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

core, found = openvino.Core(), {}
for dimensions in (2, 3):
    scan = np.random.default_rng(0).random((1, 1) + (91,) * dimensions, np.float32)
    for operator in ("MaxPool", "AveragePool"):
        settings = {"kernel_shape": [2] * dimensions, "strides": [2] * dimensions, "pads": [1] * 2 * dimensions}
        graph = helper.make_graph(
            [helper.make_node(operator, ["x"], ["y"], ceil_mode=1, **settings)],
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        said = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        text = model.SerializeToString()
        compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
        answers = session.run(None, {"x": scan})[0], compiled(scan)[0]
        within = (slice(46),) * dimensions
        assert said == 46 and np.allclose(answers[0], answers[1][(0, 0, *within)], atol=1e-6)
        found[operator, dimensions] = tuple((a.shape[-1], f"{a.min():.1e}"[:2] == "-3") for a in answers)
        for engine, answer in zip(("onnxruntime", "OpenVINO"), answers):
            print(f"{operator}, {dimensions} dimensions, {engine}: {answer.shape[-1]} to a side, least {answer.min():.3g}")
expected = {
    (operator, dimensions): ((46, False), (47, True) if operator == "MaxPool" else (46, False)) for operator, dimensions in found
}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
