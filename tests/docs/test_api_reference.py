"""The adapter between our docstrings and the API reference, and what our docstrings say about parameters."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    return load_script("docs/build_api.py")


def test_running_parameters_become_a_list(adapter: ModuleType) -> None:
    text = """Local affine map. It keeps a * x + b.

source, target : (D, H, W) float32 on one grid.
radius : window half-width
    in voxels: small.  eps : regulariser.
Of two windows the mean counts.
Returns (a, b), each (D, H, W). Raises GridMismatch where
the shapes differ.

    guided_coefficients(x, y)  # code : stays
"""
    markdown, described = adapter.readable(text, {"source", "target", "radius", "eps"})
    assert described == ["source", "target", "radius", "eps"]
    assert "- **source, target**: (D, H, W) float32 on one grid.\n" in markdown
    assert "- **radius**: window half-width in voxels: small.\n- **eps**: regulariser.\n" in markdown
    assert "Of two windows the mean counts." in markdown
    assert "**Returns** (a, b), each (D, H, W).\n" in markdown
    assert "**Raises** GridMismatch where the shapes differ." in markdown
    assert "    guided_coefficients(x, y)  # code : stays" in markdown
    assert r"a \* x + b" in markdown


def test_parameters_may_follow_a_sentence(adapter: ModuleType) -> None:
    markdown, described = adapter.readable("Ages. raw : the network's.  low : a limit.", {"raw", "low"})
    assert markdown.split("\n") == ["Ages.", "", "- **raw**: the network's.", "- **low**: a limit."]
    assert described == ["raw", "low"]
    plain = "Needs two : no more. It is here : there."
    assert adapter.readable(plain, ()) == (plain, [])


def test_docstrings_describe_parameters_that_are_there(adapter: ModuleType) -> None:
    described = 0
    for module in adapter.modules():
        for where, item, known in adapter.documented(module):
            _, names = adapter.readable(inspect.cleandoc(item.__doc__ or ""), known)
            if isinstance(item, FunctionType):
                assert set(names) <= known, where
            described += len(names)
    assert described > 300  # else the form is no longer seen


def test_a_parameter_that_is_not_there_is_seen(adapter: ModuleType) -> None:
    module = ModuleType("made_up")

    def shift(volume: object) -> None:
        """Move a volume.

        volume : what is moved.  by_mm : how far.
        """

    shift.__module__ = "made_up"
    module.shift = shift  # type: ignore[attr-defined]
    assert adapter.make_readable([module]) == ["made_up.shift: describes by_mm"]


def test_types_of_inherited_fields_are_found(adapter: ModuleType) -> None:
    # A bundle inherits fields whose types its base imports for annotations alone.
    kinds = [
        kind
        for module in adapter.modules()
        for _, kind, _ in adapter.documented(module)
        if isinstance(kind, type)
    ]
    for kind in kinds:
        adapter.resolve_inherited_fields(kind)
    assert any("FeatureReference" in adapter.names_for_types(kind.__module__) for kind in kinds)
