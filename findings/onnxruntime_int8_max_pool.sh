#!/usr/bin/env bash
# A valid network that quantizes its input to int8 and takes the largest of each window (MaxPool) of the dequantized values.
#
# Guessed: it runs, quantized or not.
# Seen (onnxruntime 1.31.1): with the optimizations that are on by default the session does not open: its own rewriting
# leaves a QuantizeLinear whose output type contradicts its zero point, and is then refused as the network's fault.
# With uint8 in place of int8, or without optimizations, it runs, and is right.
# Why hz cares: a bundle that one engine refuses is not broken. hz quantizes convolutions alone, and an engine that fails
# to open a file is named, and another one taken.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

onnxruntime.set_default_logger_severity(4)
scan, found = np.random.default_rng(0).random((1, 2, 6, 6, 6), np.float32), {}
for kind, zero in (("int8", np.int8(0)), ("uint8", np.uint8(0))):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[3] * 3, strides=[2] * 3, pads=[1] * 6),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(scan.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 3, 3])],
        [numpy_helper.from_array(np.float32(1 / 64), "scale"), numpy_helper.from_array(zero, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            largest = float(session.run(None, {"x": scan})[0].max())
            found[kind, level] = "right" if largest == np.round(scan.max() * 64) / 64 else f"wrong: {largest}"
        except Exception as error:
            found[kind, level] = "TypeInferenceError" if "TypeInferenceError" in str(error) else repr(error)
        print(f"{kind}, {level}: {found[kind, level]}")
expected = {key: "right" for key in found} | {("int8", "ORT_ENABLE_ALL"): "TypeInferenceError"}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
