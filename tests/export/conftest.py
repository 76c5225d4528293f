"""Checkpoints to export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from hz_export import onnx_files
from hz_export.to_onnx import to_onnx
from small_checkpoints import write_age, write_harmonizer

Maker = Callable[..., Path]
_exported: dict[str, bytes] = {}


def export_once(network: Any, *interface: Any) -> Any:
    """`to_onnx`, whose seconds are spent once on networks of the same layers and weights."""
    from onnx import load_model_from_string

    known = hashlib.sha256(repr((network, interface)).encode())
    for name, tensor in network.state_dict().items():
        known.update(name.encode() + tensor.numpy().tobytes())
    key = known.hexdigest()
    if key not in _exported:
        _exported[key] = to_onnx(network, *interface).SerializeToString()
    return load_model_from_string(_exported[key])


@pytest.fixture(autouse=True, scope="module")
def exported_once() -> Iterator[None]:
    """Whole exports of the same small network share its float32 graph; all that follows is done anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "to_onnx", export_once)
        yield


@pytest.fixture
def make_harmonizer(tmp_path: Path) -> Maker:
    """Writer of a harmonizer checkpoint; keywords replace keys of its meta."""
    return lambda **changes: write_harmonizer(tmp_path, **changes)


@pytest.fixture
def make_age(tmp_path: Path) -> Maker:
    """Writer of an age checkpoint; keywords replace keys of its meta."""
    return lambda **changes: write_age(tmp_path, **changes)
