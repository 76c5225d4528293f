"""A brain-mask bundle whose two networks have a closed form: brain is what is brighter than the mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hz_runtime.bundle.store import write_bundle
from hz_runtime.io.atomic import sha256_bytes
from hz_runtime.preparation import network_mask

GRIDS = ((32, 32, 32), (64, 64, 64))
STEEP = 50.0


def bright_onnx(grid: tuple[int, ...]) -> bytes:
    """probability = sigmoid(50 * (head - the mean that the networks' input has))."""
    constants = [
        numpy_helper.from_array(np.float32(network_mask.MEAN), "mean"),
        numpy_helper.from_array(np.float32(STEEP), "steep"),
    ]
    nodes = [
        helper.make_node("Sub", ["volume", "mean"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["probability"]),
    ]
    shape = ["N", 1, *grid]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("volume", "probability")]
    graph = helper.make_graph(nodes, "bright", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model.SerializeToString()


def write_masks(path: Path, method: str = network_mask.METHOD) -> Path:
    """The bundle `path`; its larger network is listed first."""
    files = {f"{grid[0]}.onnx": bright_onnx(grid) for grid in reversed(GRIDS)}
    models = [
        {
            "role": network_mask.ROLE,
            "file": name,
            "sha256": sha256_bytes(data),
            "precision": "fp32",
            "inputs": [{"name": "volume", "shape": ["N", 1, *grid], "dtype": "float32"}],
            "outputs": [{"name": "probability", "shape": ["N", 1, *grid], "dtype": "float32"}],
            "provenance": {"method": method},
        }
        for (name, data), grid in zip(files.items(), reversed(GRIDS), strict=True)
    ]
    write_bundle(path, {"name": "bright", "models": models, "recipe": {}}, files)
    return path
