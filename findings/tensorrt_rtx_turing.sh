#!/usr/bin/env bash
# TensorRT for RTX 1.7.1.116, asked for an engine for Turing (compute capability 7.5), which is the first of the GPUs
# that it says it knows (`ComputeCapability.SM75`); no GPU is needed to build.
#
# Guessed: slower engines than for Ampere, and bfloat16 refused, which Turing does not have.
# Seen: neither a float32 convolution of volumes nor a float32 matrix product is built, the plainest arithmetic
# there is; a float32 convolution of images is, and so is everything in float16. For Ampere (8.6) all are.
# Why hz cares: precision policies keep a network's last layer in float32, so that even a float16 network may have
# no engine there. `hz-export --engine rtx --capability 7.5` builds what can be, and says what cannot.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  tensorrt_rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


class Silent(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        pass


LOGGER = Silent()


def model(what: str, word: str) -> bytes:
    """One convolution of volumes or images with a 3-voxel kernel, or one product with a matrix."""
    kind = TYPES[word]
    if what == "product":
        ends, weights, node = ([4, 64], [4, 8]), [64, 8], helper.make_node("MatMul", ["x", "w"], ["y"], "node")
    else:
        axes = 3 if what == "volumes" else 2
        ends = ([1, 16] + [16] * axes, [1, 16] + [16] * axes)
        weights = [16, 16] + [3] * axes
        node = helper.make_node("Conv", ["x", "w"], ["y"], "node", pads=[1] * 2 * axes)
    w = helper.make_tensor("w", kind, weights, np.full(int(np.prod(weights)), 0.5, np.float32))
    x, y = (helper.make_tensor_value_info(n, kind, e) for n, e in zip("xy", ends))
    graph = helper.make_graph([node], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def builds(data: bytes, capability) -> bool:
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOGGER)
    assert parser.parse(data)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    return builder.build_serialized_network(network, config) is not None


found = {}
for name in ("SM75", "SM86"):
    for what in ("volumes", "images", "product"):
        for word in TYPES:
            found[name, what, word] = builds(model(what, word), getattr(trt.ComputeCapability, name))
            print(f"{name} {what:8} {word:9} {'builds' if found[name, what, word] else 'does not build'}", flush=True)
refused = {key for key, built in found.items() if not built}
expected = {("SM75", "volumes", "float32"), ("SM75", "product", "float32")}
expected |= {("SM75", what, "bfloat16") for what in ("volumes", "images", "product")}
sys.exit(0 if refused == expected else f"changed: expected {sorted(expected)}, not {sorted(refused)}")
PY
