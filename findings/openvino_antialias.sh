#!/usr/bin/env bash
# ONNX's Resize with antialias = 1, which shrinks lines, images and volumes to half, linearly.
#
# The operator's text (since opset 18): with antialias, what is shrunk is filtered first, as Pillow does.
# Guessed: an engine that cannot do so refuses the network.
# Seen: onnxruntime 1.31.1 filters in one, two and three dimensions. OpenVINO 2026.4.1 reads the network without a
# word and gives, bit for bit, what it gives without antialias: every second voxel's mean with its neighbour, aliases and all.
# Why hz cares: a network that shrinks its own input would see other scans on each engine. hz resizes outside of the
# network, in one place for training and running, and measures parity of each engine on real volumes.
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


def resized(values, antialias):
    """Half as many along each axis, by onnxruntime and by OpenVINO."""
    scales = np.array([1, 1] + [0.5] * (values.ndim - 2), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=antialias)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(values.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scales, "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values})[0], compiled(values)[0]


as_guessed = True
for dimensions in (1, 2, 3):
    values = np.random.default_rng(0).random((1, 1) + (8,) * dimensions, np.float32)
    (ort, ov), (ort_plain, ov_plain) = resized(values, 1), resized(values, 0)
    changes = float(np.abs(ort - ort_plain).max()), float(np.abs(ov - ov_plain).max())
    print(f"{dimensions} dimensions: antialias changes onnxruntime's values by {changes[0]:.3f}, OpenVINO's by {changes[1]:g}")
    as_guessed &= changes[0] > 0.01 and changes[1] == 0
sys.exit(0 if as_guessed else "changed: OpenVINO heeds antialias, or onnxruntime does not")
PY
