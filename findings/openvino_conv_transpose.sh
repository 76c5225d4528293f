#!/usr/bin/env bash
# ConvTranspose of stride 2 that states its output_shape, with auto_pad SAME_UPPER: what converters write for a transposed
# convolution with padding "same". 4 voxels with a kernel of two, wanted are 7.
#
# ONNX (ConvTranspose, since version 11): of the padding, SAME_UPPER puts the smaller half before and the larger behind.
# Here one voxel too many is made, and the last is cut. Guessed: all engines follow.
# Seen: onnx 1.23.2 (its reference) and onnxruntime 1.31.1 cut the last. OpenVINO 2026.4.1 cuts the first: the whole
# answer lies one voxel off, in volumes as in lines. SAME_LOWER is the same for all three.
# Why hz cares: a harmonized volume that is shifted by one fine voxel looks right. hz's networks and those that it
# imports state their pads instead, and their parity is measured on both engines.
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
from onnx.reference import ReferenceEvaluator

core, found = openvino.Core(), {}
for dimensions in (1, 3):
    line = np.arange(1, 5, dtype=np.float32).reshape((4,) + (1,) * (dimensions - 1))
    scan = np.broadcast_to(line, (1, 1) + (4,) * dimensions).copy()  # 1 to 4 along the first axis, equal across it
    kernel = np.ones((1, 1) + (2,) * dimensions, np.float32)
    for padding in ("SAME_UPPER", "SAME_LOWER"):
        settings = {"strides": [2] * dimensions, "output_shape": [7] * dimensions, "auto_pad": padding}
        graph = helper.make_graph(
            [helper.make_node("ConvTranspose", ["x", "kernel"], ["y"], **settings)],
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(kernel, "kernel")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        text = model.SerializeToString()
        compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
        answers = {
            "onnx": ReferenceEvaluator(model).run(None, {"x": scan})[0],
            "onnxruntime": session.run(None, {"x": scan})[0],
            "OpenVINO": compiled(scan)[0],
        }
        for name, answer in answers.items():
            middle = answer[(0, 0, slice(None)) + (3,) * (dimensions - 1)]
            found[dimensions, padding, name] = "".join(str(round(float(v))) for v in middle)
            print(f"{dimensions} dimensions, {padding}, {name}: {found[dimensions, padding, name]}")
first_cut, last_cut = "1223344", "1122334"
expected = {
    (dimensions, padding, name): first_cut if padding == "SAME_LOWER" or name == "OpenVINO" else last_cut
    for dimensions, padding, name in found
}
sys.exit(0 if found == expected else "changed: the engines agree, or differ otherwise")
PY
