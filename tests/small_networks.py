"""Small ONNX networks with the operations of the real ones: norms, a residual sum, Concats, a ConvTranspose.

Made by onnx alone, on a grid of 16^3, with seeded weights. No torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

GRID = (16, 16, 16)
WIDTH = 8
# Convolutions of the harmonizer that may be quantized: all but the first and the last.
INNER = ("down", "block", "up", "join")


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def conv(
        self, name: str, read: str, channels: tuple[int, int], op: str = "Conv", **attributes: Any
    ) -> str:
        shape = (channels[0], channels[1]) if op == "ConvTranspose" else (channels[1], channels[0])
        fan = channels[0] * 27
        self.weights[f"{name}.weight"] = self.rng.normal(0, np.sqrt(2 / fan), (*shape, 3, 3, 3)).astype(
            np.float32
        )
        self.weights[f"{name}.bias"] = self.rng.normal(0, 0.1, channels[1]).astype(np.float32)
        read_all = [read, f"{name}.weight", f"{name}.bias"]
        self.node(op, read_all, name, pads=[1] * 6, **attributes)
        return f"{name}_out"

    def norm_relu(self, name: str, read: str, channels: int) -> str:
        self.weights[f"{name}.scale"] = np.ones(channels, np.float32)
        self.weights[f"{name}.shift"] = np.full(channels, 0.1, np.float32)
        self.node(
            "InstanceNormalization", [read, f"{name}.scale", f"{name}.shift"], f"{name}_norm", epsilon=1e-5
        )
        return self.node("Relu", [f"{name}_norm_out"], f"{name}_relu")

    def node(self, op: str, read: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, read, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def model(self, end: str, output: str, shape: list[Any]) -> ModelProto:
        last = next(node for node in self.nodes if node.output[0] == end)
        last.output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, *GRID])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def harmonizer(seed: int = 0, width: int = WIDTH) -> ModelProto:
    """stem, down (stride 2), block with a residual sum, Concat, up (ConvTranspose), Concat, join, last, Clip.

    `join` is a Conv that reads a Concat: what OpenVINO gets wrong where it is quantized naively.
    """
    g = _Graph(seed)
    stem = g.norm_relu("stem", g.conv("stem", "volume", (1, width)), width)
    down = g.norm_relu("down", g.conv("down", stem, (width, 2 * width), strides=[2] * 3), 2 * width)
    block = g.norm_relu("block", g.conv("block", down, (2 * width, 2 * width)), 2 * width)
    total = g.node("Add", [down, block], "sum")
    cat = g.node("Concat", [total, down], "cat", axis=1)
    up = g.conv("up", cat, (4 * width, width), "ConvTranspose", strides=[2] * 3, output_padding=[1] * 3)
    wide = g.node("Concat", [g.norm_relu("up", up, width), "volume"], "cat2", axis=1)
    join = g.norm_relu("join", g.conv("join", wide, (width + 1, width)), width)
    last = g.conv("last", join, (width, 1))
    g.weights["last.weight"] *= 0.1
    g.weights["last.bias"] += 0.4
    g.weights["low"], g.weights["high"] = np.float32(0).reshape(()), np.float32(1).reshape(())
    return g.model(g.node("Clip", [last, "low", "high"], "clip"), "harmonized", ["N", 1, *GRID])


def age(seed: int = 1, width: int = 4) -> ModelProto:
    """Three convolutions with LeakyRelu and MaxPool, a Gemm, years = 40 + 10 * answer."""
    g = _Graph(seed)
    read, channels = "volume", 1
    for name, out in (("a", width), ("b", 2 * width), ("c", 2 * width)):
        read = g.node("LeakyRelu", [g.conv(name, read, (channels, out))], f"{name}_act", alpha=0.01)
        read = g.node("MaxPool", [read], f"{name}_pool", kernel_shape=[2] * 3, strides=[2] * 3)
        channels = out
    flat = g.node("Flatten", [read], "flat", axis=1)
    g.weights["head.weight"] = g.rng.normal(0, 0.05, (channels * 8, 1)).astype(np.float32)
    g.weights["scale"], g.weights["mean"] = np.array([10], np.float32), np.array([40], np.float32)
    linear = g.node("Gemm", [flat, "head.weight"], "head")
    years = g.node("Add", [g.node("Mul", [linear, "scale"], "times"), "mean"], "plus")
    return g.model(years, "age", ["N", 1])


def grids(n: int = 3, seed: int = 3) -> np.ndarray:
    """(n, 16, 16, 16) float32 in [0, 1]: ellipsoids with a core and some texture, zero outside."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, k) for k in GRID), indexing="ij")
    made = []
    for _ in range(n):
        a, b, c = rng.uniform(0.7, 0.9, 3)
        radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        tissue = 0.5 + 0.35 * (radius < rng.uniform(0.4, 0.6)) + 0.08 * rng.random(GRID)
        made.append(np.where(radius < 1, tissue, 0.0))
    return np.stack(made).astype(np.float32)


def with_half_weights(model: ModelProto) -> ModelProto:
    """Every 5-D weight stored in float16 behind a Cast, as hz-export --half-weights does."""
    new = ModelProto()
    new.CopyFrom(model)
    casts = []
    for tensor in new.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 5:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_stored"))
            casts.append(helper.make_node("Cast", [f"{name}_stored"], [name], name=f"{name}_widen", to=1))
    nodes = [*casts, *new.graph.node]
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    onnx.checker.check_model(new, full_check=True)
    return new


def with_weight(model: ModelProto, name: str, values: np.ndarray) -> ModelProto:
    """A copy in which one initializer holds other values."""
    new = ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return new


def weight(model: ModelProto, name: str) -> np.ndarray:
    """Values of an initializer."""
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
