"""Tiny ONNX networks of axial slices and a bundle of them, made by code: no torch, no stored fixtures.

Every network takes a slice (N, 1, 64, 64) float32 and has a closed form:

    harmonizer   "harmonized" (N, 1, 64, 64) = clip(0.8 * slice + 0.1, 0, 1)
    age          "age" (N, 1) years          = 20 + 200 * mean(slice)
    diagnosis    "probability" (N, 1)        = mean(slice)

`mixing_onnx` has none: convolutions, an instance norm and a matrix product with seeded weights, whose last
bits depend on how an engine computes.

The harmonizer's is of slices that hold something: the runtime leaves those of one value as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

import tiny

GRID = (64, 64)
MIDDLE = 20
LABELS = ("control", "patient")


def expected_harmonized(slices: np.ndarray) -> np.ndarray:
    """What the tiny network must answer, in the same shape."""
    return tiny.expected_harmonized(slices)


def expected_volume(volume: np.ndarray) -> np.ndarray:
    """What the runtime must make of a volume (D, H, W) with it: slices of one value stay."""
    empty = np.ptp(volume, axis=(0, 1)) == 0
    return np.where(empty, volume, expected_harmonized(volume))


def expected_means(volume: np.ndarray) -> np.ndarray:
    """(MIDDLE,) float64 means of the middle slices of a volume (64, 64, 64)."""
    first = (volume.shape[2] - MIDDLE) // 2
    return volume[:, :, first : first + MIDDLE].astype(np.float64).mean(axis=(0, 1))


def harmonizer_onnx(precision: str = "fp32") -> bytes:
    """ONNX bytes of the harmonizer: a 3x3 convolution (0.8 at its centre, bias 0.1) and a clip."""
    kind, dtype = tiny._TYPES[precision]
    kernel = np.zeros((1, 1, 3, 3), dtype)
    kernel[0, 0, 1, 1] = 0.8
    constants = {"weight": kernel, "bias": np.array([0.1], dtype), "low": dtype(0), "high": dtype(1)}
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Clip", ["c", "low", "high"], ["y"], name="clip"),
    ]
    return tiny._network(nodes, constants, kind, "harmonized", ["N", 1, *GRID], GRID)


def age_onnx() -> bytes:
    """ONNX bytes of the age network."""
    return _mean("age", 200.0, 20.0)


def diagnosis_onnx() -> bytes:
    """ONNX bytes of the diagnosis network."""
    return _mean("probability", 1.0, 0.0)


def _mean(output: str, scale: float, offset: float) -> bytes:
    constants = {
        "axes": np.array([2, 3], np.int64),
        "scale": np.array([scale], np.float32),
        "offset": np.array([offset], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["volume", "axes"], ["m"], name="mean", keepdims=0),
        helper.make_node("Mul", ["m", "scale"], ["s"], name="scale_by"),
        helper.make_node("Add", ["s", "offset"], ["y"], name="shift_by"),
    ]
    return tiny._network(nodes, constants, TensorProto.FLOAT, output, ["N", 1], GRID)


def mixing_onnx(grid: tuple[int, ...], predicts: bool = False, seed: int = 0) -> bytes:
    """A network of slices (two axes) or volumes (three): conv, instance norm, ReLU, conv; to the same shape,
    or with `predicts` through a matrix product to one number."""
    rng = np.random.default_rng(seed)
    axes, width = len(grid), 8
    constants: dict[str, Any] = {
        "first": rng.normal(0, 0.3, (width, 1, *[3] * axes)).astype(np.float32),
        "ones": np.ones(width, np.float32),
        "zeros": np.zeros(width, np.float32),
        "second": rng.normal(0, 0.1, (1, width, *[3] * axes)).astype(np.float32),
    }
    ends = "same" if predicts else "y"
    nodes = [
        helper.make_node("Conv", ["volume", "first"], ["a"], name="first_conv", pads=[1] * 2 * axes),
        helper.make_node("InstanceNormalization", ["a", "ones", "zeros"], ["b"], name="norm"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Conv", ["c", "second"], [ends], name="second_conv", pads=[1] * 2 * axes),
    ]
    shape: list[Any] = ["N", 1, *grid]
    if predicts:
        constants["head"] = rng.normal(0, 0.1, (int(np.prod(grid)), 1)).astype(np.float32)
        nodes.append(helper.make_node("Flatten", ["same"], ["flat"], name="flatten", axis=1))
        nodes.append(helper.make_node("Gemm", ["flat", "head"], ["y"], name="product"))
        shape = ["N", 1]
    return tiny._network(nodes, constants, TensorProto.FLOAT, "out", shape, grid)


def slice_manifest() -> dict[str, Any]:
    """The manifest of the tiny bundle of slice-wise networks."""
    from hz_runtime.model_space.recipe import Recipe

    part = {"name": "volume", "shape": ["N", 1, *GRID], "dtype": "float32"}
    number = {"shape": ["N", 1], "dtype": "float32"}
    made = {"precision": "fp32", "inputs": [part], "sources": [], "target": None, "parameters": 2}
    return {
        **tiny.tiny_manifest(),
        "name": "tiny slices",
        "recipe": Recipe(intensity="percentile", middle_slices=MIDDLE).to_dict(),
        "models": [
            {
                **made,
                "role": "harmonizer",
                "file": "harmonizer.onnx",
                "outputs": [{**part, "name": "harmonized"}],
                "sources": ["site-a"],
                "target": "site-b",
            },
            {**made, "role": "age", "file": "age.onnx", "outputs": [{"name": "age", **number}]},
            {
                **made,
                "role": "diagnosis",
                "file": "diagnosis.onnx",
                "outputs": [{"name": "probability", **number}],
                "labels": list(LABELS),
            },
        ],
    }


def slice_files() -> dict[str, bytes]:
    """The files of the tiny bundle of slice-wise networks, by name."""
    return {
        "harmonizer.onnx": harmonizer_onnx(),
        "age.onnx": age_onnx(),
        "diagnosis.onnx": diagnosis_onnx(),
        "MODEL_CARD.md": b"# Tiny slices\n\nArithmetic for tests. Not a model of anything.\n",
    }


def make_slice_bundle(path: Path) -> Path:
    """Write the bundle at `path` (a directory ending in .hz that is not there yet); returns `path`."""
    from hz_runtime.bundle.store import write_bundle

    write_bundle(path, slice_manifest(), slice_files())
    return path
