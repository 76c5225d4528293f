"""Weight files as others store theirs, with random weights, and grids small enough for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Layers = Sequence[tuple[str, Sequence[tuple[str, F32]]]]  # (layer, [(tensor, values)])


def write_keras(path: Path, layers: Layers, config: str | None = None) -> Path:
    """A file of `save_weights` of Keras 2, or with a config that of `save`."""
    import h5py

    with h5py.File(path, "w") as file:
        root = file if config is None else file.create_group("model_weights")
        if config is not None:
            file.attrs["model_config"] = config
        root.attrs["layer_names"] = [name.encode() for name, _ in layers]
        root.attrs["backend"] = b"tensorflow"
        for name, tensors in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{tensor}:0".encode() for tensor, _ in tensors]
            for tensor, values in tensors:
                group.create_dataset(f"{tensor}:0", data=values)
    return path


def write_state_dict(path: Path, tensors: Mapping[str, NDArray[Any]], **how: Any) -> Path:
    """A state dict as torch stores it.  how : of `torch.save`."""
    import torch

    torch.save({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}, path, **how)
    return path


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Weights that keep a network's values near 1, by the names of torch's layers."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            made[name] = np.array(7)
        elif leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
            made[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1:
            made[name] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        else:
            made[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    return made


def iguane_layers(levels: Sequence[int], seed: int = 0) -> list[tuple[str, list[tuple[str, F32]]]]:
    """Layers of IGUANe's generator as its authors' Keras names them, of any width."""
    rng = np.random.default_rng(seed)
    kernels: list[tuple[tuple[int, ...], int]] = []
    before = 1
    for width in levels[:-1]:
        kernels += [((3, 3, 3, before, width), width), ((4, 4, 4, width, width), width)]
        before = width
    kernels.append(((3, 3, 3, before, levels[-1]), levels[-1]))
    for above, width in zip(levels[:0:-1], levels[-2::-1], strict=True):
        kernels += [((4, 4, 4, width, above), width), ((3, 3, 3, 2 * width, width), width)]
    layers = []
    for number, (shape, width) in enumerate(kernels):
        count = f"_{number}" if number else ""
        tensors = [
            (f"conv3d{count}/kernel", rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)),
            (f"conv3d{count}/bias", rng.uniform(0, 0.2, width)),
            (f"instance_normalization{count}/scale", rng.uniform(0.5, 1.0, width)),
            (f"instance_normalization{count}/offset", rng.normal(0, 0.1, width)),
        ]
        layers.append((f"sequential{count}", [(n, v.astype(np.float32)) for n, v in tensors]))
    last = [
        (
            f"conv3d_{len(kernels)}/kernel",
            rng.normal(0, 0.05, (1, 1, 1, levels[0] + 1, 1)).astype(np.float32),
        ),
        (f"conv3d_{len(kernels)}/bias", np.zeros(1, np.float32)),
    ]
    return [*layers, (f"sequential_{len(kernels)}", last)]
