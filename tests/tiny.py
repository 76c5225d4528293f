"""Tiny ONNX networks and a tiny bundle, made by code: no torch, no stored fixtures.

Every network takes "volume" (N, 1, 64, 64, 64) float32 and has a closed form, so that tests compare with
arithmetic and not with another run of the same engine:

    harmonizer   "harmonized" (N, 1, 64, 64, 64) = clip(0.8 * volume + 0.1, 0, 1)
    age          "age" (N, 1) years              = 20 + 200 * mean(volume)

The fp16 twins hold float16 weights and arithmetic inside and float32 at both ends, like the exporter's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRID = (64, 64, 64)
OPSET = 18
IR_VERSION = 10  # the oldest that every engine under test reads
_TYPES = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
}


def expected_harmonized(volume: np.ndarray) -> np.ndarray:
    """What the tiny harmonizer must answer, (N, 1, 64, 64, 64) float32."""
    return np.clip(0.8 * volume.astype(np.float64) + 0.1, 0.0, 1.0).astype(np.float32)


def expected_age(volume: np.ndarray) -> np.ndarray:
    """What the tiny age network must answer, (N, 1) float32 years."""
    mean = volume.astype(np.float64).reshape(len(volume), -1).mean(axis=1, keepdims=True)
    return np.asarray(20.0 + 200.0 * mean, dtype=np.float32)


def random_volumes(n: int = 1, seed: int = 0) -> np.ndarray:
    """(n, 1, 64, 64, 64) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((n, 1, *GRID), dtype=np.float32)


def harmonizer_onnx(precision: str = "fp32") -> bytes:
    """ONNX bytes of the harmonizer: a 3x3x3 convolution (0.8 at its centre, bias 0.1) and a clip."""
    kind, dtype = _TYPES[precision]
    kernel = np.zeros((1, 1, 3, 3, 3), dtype)
    kernel[0, 0, 1, 1, 1] = 0.8
    constants = {"weight": kernel, "bias": np.array([0.1], dtype), "low": dtype(0), "high": dtype(1)}
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["c"], name="conv", pads=[1] * 6),
        helper.make_node("Clip", ["c", "low", "high"], ["y"], name="clip"),
    ]
    return _network(nodes, constants, kind, "harmonized", ["N", 1, *GRID])


def age_onnx(precision: str = "fp32") -> bytes:
    """ONNX bytes of the age network: the mean (always float32: 64^3 values overflow float16), scaled."""
    kind, dtype = _TYPES[precision]
    constants = {
        "axes": np.array([2, 3, 4], np.int64),
        "scale": np.array([200.0], dtype),
        "offset": np.array([20.0], dtype),
    }
    nodes = [
        helper.make_node("ReduceMean", ["volume", "axes"], ["m"], name="mean", keepdims=0),
        helper.make_node("Cast", ["m"], ["mx"], name="mean_cast", to=kind),
        helper.make_node("Mul", ["mx", "scale"], ["s"], name="scale_by"),
        helper.make_node("Add", ["s", "offset"], ["y"], name="shift_by"),
    ]
    return _network(nodes, constants, kind, "age", ["N", 1])


def features_onnx() -> bytes:
    """The age network with a second output "features" (N, 2) = (mean, largest) of the volume."""
    constants = {
        "axes": np.array([2, 3, 4], np.int64),
        "weight": np.array([[200.0], [0.0]], np.float32),
        "bias": np.array([20.0], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["volume", "axes"], ["m"], name="mean", keepdims=0),
        helper.make_node("ReduceMax", ["volume", "axes"], ["l"], name="largest", keepdims=0),
        helper.make_node("Concat", ["m", "l"], ["features"], name="join", axis=1),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["y"], name="linear"),
    ]
    model = onnx.load_model_from_string(_network(nodes, constants, TensorProto.FLOAT, "age", ["N", 1]))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 2]))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _network(
    nodes: list[Any],
    constants: dict[str, Any],
    kind: int,
    out: str,
    shape: list[Any],
    grid: tuple[int, ...] = GRID,
) -> bytes:
    """A model from nodes that read "x" (the volume in `kind`) and write "y" (in `kind`)."""
    used = {name for node in nodes for name in node.input}
    head = [helper.make_node("Cast", ["volume"], ["x"], name="cast_in", to=kind)] if "x" in used else []
    tail = [helper.make_node("Cast", ["y"], [out], name="cast_out", to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        [*head, *nodes, *tail],
        f"tiny_{out}",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, *grid])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def tiny_files() -> dict[str, bytes]:
    """The files of the tiny bundle, by name."""
    return {
        "harmonizer.onnx": harmonizer_onnx("fp32"),
        "harmonizer.fp16.onnx": harmonizer_onnx("fp16"),
        "age.onnx": age_onnx("fp32"),
        "age.fp16.onnx": age_onnx("fp16"),
        "MODEL_CARD.md": b"# Tiny test bundle\n\nArithmetic for tests. Not a model of anything.\n",
    }


def tiny_manifest() -> dict[str, Any]:
    """The manifest of the tiny bundle; write_bundle adds the hashes, the sizes and the id."""
    return {
        "schema": "1.0",
        "name": "tiny",
        "models": [
            _entry("harmonizer", "harmonizer.onnx", "fp32"),
            _entry("harmonizer", "harmonizer.fp16.onnx", "fp16"),
            _entry("age", "age.onnx", "fp32"),
            _entry("age", "age.fp16.onnx", "fp16"),
        ],
        "recipe": _recipe(),
        "cohort": {"n": 20, "sites": ["site-a", "site-b"], "age_range": [18.0, 80.0]},
        "statistics": {},
        "age_bias": {"slope": 0.8, "intercept": 9.0, "n": 20, "how": "made up for tests"},
        "metrics": {},
        "licence": "Apache-2.0",
        "intended_use": "Tests of hz. Not for any scan of a person.",
    }


def _entry(role: str, file: str, precision: str) -> dict[str, Any]:
    volume = {"name": "volume", "shape": ["N", 1, *GRID], "dtype": "float32"}
    harmonized = {"name": "harmonized", "shape": ["N", 1, *GRID], "dtype": "float32"}
    age = {"name": "age", "shape": ["N", 1], "dtype": "float32"}
    is_harmonizer = role == "harmonizer"
    return {
        "role": role,
        "file": file,
        "precision": precision,
        "inputs": [volume],
        "outputs": [harmonized if is_harmonizer else age],
        "sources": ["site-a"] if is_harmonizer else [],
        "target": "site-b" if is_harmonizer else None,
        "parameters": 28 if is_harmonizer else 2,
        "parity": {},
        "provenance": {"made_by": "tests/tiny.py"},
    }


def _recipe() -> dict[str, Any]:
    try:
        from hz_runtime.model_space.recipe import Recipe
    except ImportError:
        return {}
    return dict(Recipe().to_dict())


def make_tiny_bundle(path: Path) -> Path:
    """Write the tiny bundle at `path` (a directory ending in .hz that is not there yet); returns `path`."""
    from hz_runtime.bundle.store import write_bundle

    write_bundle(path, tiny_manifest(), tiny_files())
    return path
