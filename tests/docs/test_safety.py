"""docs/safety.md: its table is made from the tests as they are, and no requirement is without one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from scripts_as_modules import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return load_script("docs/build_safety.py")


def test_the_table_is_of_these_tests(build: ModuleType) -> None:
    """python docs/build_safety.py makes it anew."""
    text = build.PAGE.read_text(encoding="utf-8")
    assert build.page(text) == text


def test_every_requirement_is_held_and_every_marker_is_one(build: ModuleType) -> None:
    assert set(build.holders()) == set(build.REQUIREMENTS)


def test_every_threat_names_a_test_that_is_there(build: ModuleType) -> None:
    rows = build.PAGE.read_text(encoding="utf-8").split("## Threats")[1].split("## Requirements")[0]
    named = [cell.split("`")[1] for cell in rows.split("|") if "`tests/" in cell]
    assert len(named) >= 8 and all((ROOT / name).is_file() for name in named)
