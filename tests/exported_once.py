"""Exports by torch, whose seconds are spent once on small networks of the same layers and weights.

The graphs lie in a folder that all processes of a run of the tests share. What follows is done anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def exported_once(folder: Path) -> Iterator[None]:
    """Within it, hz takes a network's float32 graph from `folder` where it was made before."""
    from onnx import load_model_from_string

    from hz_export import onnx_files
    from hz_export import to_onnx as exporter

    to_onnx = exporter.to_onnx

    def export_once(network: Any, output: str, grid: tuple[int, ...] = (64, 64, 64)) -> Any:
        known = hashlib.sha256(repr((network, output, tuple(grid))).encode())
        for name, tensor in network.state_dict().items():
            known.update(name.encode() + tensor.numpy().tobytes())
        path = folder / f"{known.hexdigest()}.onnx"
        with path.with_suffix(".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # a second process waits for the first one's graph
            if not path.exists():
                made = path.with_suffix(f".{os.getpid()}")
                made.write_bytes(to_onnx(network, output, grid).SerializeToString())
                made.replace(path)
        return load_model_from_string(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "to_onnx", export_once)
        patch.setattr(exporter, "to_onnx", export_once)  # for those who import it where they need it
        yield
