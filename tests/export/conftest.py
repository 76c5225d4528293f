"""Checkpoints to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from small_checkpoints import write_age, write_harmonizer

Maker = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def _exported_once(exported_once: None) -> None:
    """In all files here."""


@pytest.fixture
def make_harmonizer(tmp_path: Path) -> Maker:
    """Writer of a harmonizer checkpoint; keywords replace keys of its meta."""
    return lambda **changes: write_harmonizer(tmp_path, **changes)


@pytest.fixture
def make_age(tmp_path: Path) -> Maker:
    """Writer of an age checkpoint; keywords replace keys of its meta."""
    return lambda **changes: write_age(tmp_path, **changes)
