#!/usr/bin/env bash
# A float16 network whose middle does not fit into float16: a convolution of volumes that gives 216,000 (65,504 is the
# largest), and a multiplication that brings it back to 216. Every tensor of it is declared float16.
#
# Guessed: infinite, as onnx's own reference says and as a GPU's float16 units give.
# Seen: onnx 1.23.2 (reference): infinite. onnxruntime 1.31.1 and OpenVINO 2026.4.1 on a CPU, also where OpenVINO is asked
# for f16: 216. Both compute in float32 and round where they hand out.
# Why hz cares: parity on a CPU proves nothing of a float16 network's overflows. hz-export holds such a file to its
# tolerance once more with every rounding written out as casts, which both engines keep.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys, warnings

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")  # the reference's overflow
nodes = [
    helper.make_node("Conv", ["x", "weights"], ["loud"]),
    helper.make_node("Mul", ["loud", "thousandth"], ["y"]),
]
scan = np.ones((1, 8, 6, 6, 6), np.float16)
graph = helper.make_graph(
    nodes,
    "network",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT16, list(scan.shape))],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 8, 4, 4, 4])],
    [
        numpy_helper.from_array(np.full((8, 8, 3, 3, 3), 1000, np.float16), "weights"),
        numpy_helper.from_array(np.float16(0.001), "thousandth"),
    ],
    value_info=[helper.make_tensor_value_info("loud", TensorProto.FLOAT16, [1, 8, 4, 4, 4])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
text, core = model.SerializeToString(), openvino.Core()
answers = {
    "onnx": ReferenceEvaluator(model).run(None, {"x": scan})[0],
    "onnxruntime": onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"]).run(None, {"x": scan})[0],
}
for hint in ("f32", "f16"):
    compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    answers[f"OpenVINO, {hint}"] = compiled(scan)[0]
found = {name: str(round(float(answer.max()))) if np.isfinite(answer).all() else "infinite" for name, answer in answers.items()}
print(found)
expected = {name: "infinite" if name == "onnx" else "216" for name in found}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
