"""Weights that Keras stored in HDF5 (.h5), read by h5py without TensorFlow, and nothing of them executed.

Files of `save_weights` and of `save` are read, in the layout of Keras 2: a group for each layer, its tensors
listed in attributes. Links to other files, external and virtual storage, and what is packed to more than the
file could honestly hold are refused.
HDF5's own library works in a process of its own (`reader_process`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hz_export.imported.reader_process import hand_over, read_apart
from hz_export.imported.weight_file import (
    MOST_BYTES,
    MOST_TENSORS,
    OTHER_FILE,
    Array,
    WeightFile,
    check_type,
    check_values,
    named,
)
from hz_runtime.errors import UsageError
from hz_runtime.io.json_text import OTHER_FORM

WEIGHTS, TRAINING = "model_weights", "optimizer_weights"  # groups of a file of `save`
MOST_PACKING = 100  # bytes a tensor's stored byte may become; weights hardly compress at all
MOST_CONFIG = 16 << 20


def read_keras(path: Path) -> WeightFile:
    """The tensors of a Keras file, in the order of its layers, by "layer/tensor".

    Raises UsageError for a file that is no such one, damaged, or not safe to read.
    """
    return read_apart("hz_export.imported.keras_file", path)


def read_here(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """(tensors, architecture) of a Keras file, read in this process, which may die of it.

    Raises UsageError as `read_keras`.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UsageError(f"{path.name} has {size / 1e9:.1f} GB; no network here has as many.", OTHER_FILE)
    try:
        with h5py.File(path, "r") as file:
            _refuse_links(file, path.name)
            root = file.get(WEIGHTS, file)
            tensors = dict(_tensors(root, path.name))
            config = _config(file, path.name)
    except (OSError, MemoryError, RuntimeError, *OTHER_FORM) as error:
        raise UsageError(
            f"{path.name} cannot be read as weights of Keras ({named(' '.join(str(error).split()))}).",
            OTHER_FILE,
        ) from None
    if not tensors:
        raise UsageError(f"{path.name} holds no tensors.", OTHER_FILE)
    return tensors, config


def _refuse_links(group: Any, name: str) -> None:
    """Walk the whole file before any tensor is read: what it can lead to is inside it, and bounded."""
    waiting, seen = [group], 0
    while waiting:
        here = waiting.pop()
        for key in here:
            seen += 1
            if seen > MOST_TENSORS:
                raise UsageError(f"{name} holds more than {MOST_TENSORS} objects.", OTHER_FILE)
            link = here.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UsageError(f"{name}: {named(key)} is a link to elsewhere.", OTHER_FILE)
            kind = here.get(key, getclass=True)
            if kind is h5py.Group:
                waiting.append(here[key])
            elif kind is not h5py.Dataset:
                raise UsageError(f"{name}: {named(key)} is neither a group nor a tensor.", OTHER_FILE)


def _tensors(root: Any, name: str) -> Iterator[tuple[str, Array]]:
    if "layer_names" not in root.attrs:
        raise UsageError(
            f"{name} names no layers: it is not stored as Keras 2 stores weights.",
            "Files of Keras 3 (.weights.h5) are not read; give the one that the authors published.",
        )
    total, seen = 0, set()
    for layer in _texts(root.attrs["layer_names"]):
        for tensor in _texts(root[layer].attrs["weight_names"]):
            full = f"{layer}/{tensor.removesuffix(':0')}"
            shown = named(full)
            if full in seen:  # lists as long as one likes of the few that there are would never end
                raise UsageError(f"{name} lists {shown} twice.", OTHER_FILE)
            seen.add(full)
            stored = root[layer][tensor]
            if not isinstance(stored, h5py.Dataset):
                raise UsageError(f"{name}: {shown} is no tensor.", OTHER_FILE)
            total += _bounded(stored, name, shown)
            if total > MOST_BYTES:
                raise UsageError(f"{name} unpacks to more than {MOST_BYTES >> 30} GB.", OTHER_FILE)
            values = np.asarray(stored[()])
            check_values(name, shown, values)
            yield full, values


def _bounded(stored: Any, name: str, shown: str) -> int:
    """Bytes that a tensor takes. Raises UsageError for storage outside the file, or packed absurdly."""
    check_type(name, shown, stored.dtype)  # texts of any length lie elsewhere in the file
    needed = int(stored.size or 0) * stored.dtype.itemsize
    if stored.external or stored.is_virtual:
        raise UsageError(f"{name}: {shown} lies in another file.", OTHER_FILE)
    held = stored.id.get_storage_size()
    if needed > 4096 and needed > MOST_PACKING * max(held, 1):
        raise UsageError(f"{name}: {shown} would unpack from {held} to {needed} bytes.", OTHER_FILE)
    return int(needed)


def _config(file: Any, name: str) -> dict[str, Any]:
    text = file.attrs.get("model_config")
    if text is None:
        return {}
    text = text.decode() if isinstance(text, bytes) else str(text)
    if len(text) > MOST_CONFIG:
        raise UsageError(f"{name} describes itself in {len(text)} letters.", OTHER_FILE)
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


if __name__ == "__main__":
    hand_over(read_here)
