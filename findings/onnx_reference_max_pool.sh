#!/usr/bin/env bash
# MaxPool as onnx's own reference (onnx.reference.ReferenceEvaluator) computes it, with windows of 2 and padding.
#
# Guessed: the reference is right, so that an engine that differs from it is wrong.
# Seen (onnx 1.23.2): over 5 voxels with pads of one and stride 1 it raises an IndexError; with auto_pad SAME_LOWER and
# stride 2 it gives 2 voxels, where onnx's own shape inference says 3. onnxruntime 1.31.1 and OpenVINO 2026.4.1 give
# what a maximum by hand gives, in both.
# Why hz cares: whoever holds an engine to a second implementation must choose another one for pooling. hz's tests
# compute such truths in numpy or torch.
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
from onnx import TensorProto, helper, shape_inference
from onnx.reference import ReferenceEvaluator

line = np.array([3, 1, 4, 1, 5], np.float32)
cases = {
    "pads 1 and 1, stride 1": ({"pads": [1, 1], "strides": [1]}, [3, 3, 4, 4, 5, 5]),
    "SAME_LOWER, stride 2": ({"auto_pad": "SAME_LOWER", "strides": [2]}, [3, 4, 5]),
}
core, as_seen = openvino.Core(), True
for name, (settings, by_hand) in cases.items():
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], **settings)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    text, scan = model.SerializeToString(), line.reshape(1, 1, 5)
    inferred = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[2].dim_value
    try:
        reference = str(ReferenceEvaluator(model).run(None, {"x": scan})[0].ravel().tolist())
    except IndexError as error:
        reference = f"IndexError ({error})"
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    compiled = core.compile_model(core.read_model(text), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    engines = [answer.ravel().tolist() for answer in (session.run(None, {"x": scan})[0], compiled(scan)[0])]
    print(f"{name}: {inferred} voxels inferred; reference {reference}; engines {engines[0]}")
    as_seen &= engines == [by_hand, by_hand] and inferred == len(by_hand) and reference != str(list(map(float, by_hand)))
sys.exit(0 if as_seen else "changed: the reference agrees, or the engines do not")
PY
