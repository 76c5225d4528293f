"""Weights of an exported harmonizer, back in its PyTorch network: the numbers that the engines use."""

from __future__ import annotations

import numpy as np
import torch


def initializers(model: bytes) -> dict[str, np.ndarray]:
    """Weights of an ONNX file by name; a float16 weight behind a Cast goes by the Cast's name too."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(model).graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    return found


def load_from_onnx(network: torch.nn.Module, model: bytes) -> bool:
    """Put an ONNX file's weights into `network`, float32; False, and nothing done, where they do not fit."""
    found = initializers(model)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith(".bias"):  # the exporter leaves out a bias of zeros
            found.setdefault(name, np.zeros(value.shape, np.float32))
    if not all(name in found and found[name].shape == tuple(value.shape) for name, value in state.items()):
        return False
    network.load_state_dict({name: torch.from_numpy(found[name].copy()).float() for name in state})
    return True
