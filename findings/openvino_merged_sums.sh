#!/usr/bin/env bash
# A sum over the three axes of a volume behind a convolution, in one ReduceSum or in three, one axis after another.
#
# Guessed: three sums of 160, 192 and 20 values each lose less to float32's rounding than one of 614,400 values.
# Seen: OpenVINO 2026.4.1 makes one of the three, and gives bit for bit what the one gives: 2.5e-5 of the sum off, of
# 8 channels, whose layout is blocked behind a convolution. With a ReduceMean amid the three they stay apart: 2e-8 off.
# Why hz cares: instance norms divide by such sums, layer after layer. IGUANe's generator of random weights strayed by
# 6e-4 from float64 on OpenVINO, by 3e-6 with the mean amid its sums (export/hz_export/imported/iguane.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 8, 20, 192, 160)


def total(values, steps):
    """(the first channel's sum by OpenVINO, in how many operations).  steps : (operation, axes)."""
    weights = np.eye(SHAPE[1], dtype=np.float32).reshape(SHAPE[1], SHAPE[1], 1, 1, 1)
    constants = [numpy_helper.from_array(weights, "w")]
    constants += [numpy_helper.from_array(np.array(axes, np.int64), f"a{k}") for k, (_, axes) in enumerate(steps)]
    names = ["c", *(f"t{k}" for k in range(len(steps) - 1)), "y"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    for k, (operation, _) in enumerate(steps):
        nodes.append(helper.make_node(operation, [names[k], f"a{k}"], [names[k + 1]], keepdims=1))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = [str(node.get_rt_info()["layerType"].value) for node in compiled.get_runtime_model().get_ordered_ops()]
    return float(compiled(values)[0].ravel()[0]), sum("Reduce" in kind for kind in ran)


values = np.random.default_rng(0).uniform(0, 1, SHAPE).astype(np.float32)
true = float(values[0, 0].astype(np.float64).sum())
ways = {
    "one": ([("ReduceSum", [2, 3, 4])], 1),
    "three": ([("ReduceSum", [4]), ("ReduceSum", [3]), ("ReduceSum", [2])], 1),
    "three, a mean amid them": ([("ReduceSum", [4]), ("ReduceMean", [3]), ("ReduceSum", [2])], SHAPE[3]),
}
off, operations = {}, {}
for name, (steps, factor) in ways.items():
    found, operations[name] = total(values, steps)
    off[name] = abs(found * factor / true - 1)
    print(f"{name}: {operations[name]} operations run, {off[name]:.1e} off")
as_seen = operations["three"] == 1 and off["three"] == off["one"] and off["three, a mean amid them"] < 3e-7
sys.exit(0 if as_seen else "changed: OpenVINO keeps sums apart, or adds them up otherwise")
PY
