#!/usr/bin/env bash
# An int8 convolution of volumes (uint8 activations, int8 weights, 8 channels, 3 x 3 x 3) on OpenVINO, held to the
# instructions of a CPU without VNNI (ONEDNN_MAX_CPU_ISA=AVX2): every weight at its largest, the volume all white.
#
# Guessed: int8 products are added in 32 bits, so that the answer is 216 on every CPU, as by hand.
# Seen (OpenVINO 2026.4.1): 109, half of it: pairs of products are added in 16 bits and cut at 32,767. A volume half as
# bright is right, and so is the white one where weights use 7 of their 8 bits (63 steps). Nothing is said.
# Why hz cares: one int8 file gives other ages on an older server. Precision plans may ask for 7 bits, and an int8 file
# runs only where parity was measured with that engine and those instructions.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

core, found = openvino.Core(), {}
for steps in (127, 63):
    constants = {
        "scale": np.float32(1 / 255), "zero": np.uint8(0),
        "weights": np.full((8, 8, 3, 3, 3), steps, np.int8), "weight_scale": np.float32(1 / steps), "none": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weights", "weight_scale", "none"], ["w"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for brightness in (1.0, 0.4):
        scan = np.full((1, 8, 8, 8, 8), brightness, np.float32)
        answer, by_hand = float(compiled(scan)[0].max()), 8 * 27 * brightness
        found[steps, brightness] = round(answer / by_hand, 2)
        print(f"weights of {steps} steps, a volume of {brightness}: {answer:.1f}, by hand {by_hand:.1f}")
expected = {(127, 1.0): 0.51, (127, 0.4): 1.0, (63, 1.0): 1.0, (63, 0.4): 1.0}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
