"""What hz-run writes is, byte for byte, what it wrote before the code changed its shape (golden.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import golden


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, str]]:
    known: dict[str, Any] = json.loads(golden.HASHES.read_text())
    here = known.get(golden.machine_key())
    if here is None:
        pytest.skip("no hashes of this processor and these packages; make them with  python tests/golden.py")
    return here


def test_the_demo_writes_the_same_bytes(expected: dict[str, dict[str, str]], tmp_path: Path) -> None:
    assert golden.demo_hashes(tmp_path) == expected["demo"]


@pytest.mark.usefixtures("scans")
def test_real_scans_give_the_same_bytes(expected: dict[str, dict[str, str]], tmp_path: Path) -> None:
    assert golden.real_hashes(tmp_path) == expected["real"]


@pytest.mark.usefixtures("scans")
def test_a_whole_head_gives_the_same_bytes(expected: dict[str, dict[str, str]], tmp_path: Path) -> None:
    assert golden.head_hashes(tmp_path) == expected["head"]
