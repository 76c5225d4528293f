"""Mutated files of every kind that strangers send are read, or refused in one short line; nothing else.

`make fuzz` looks far longer at the same functions; what it finds becomes a test in words.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers_under_attack import TARGETS, seeds
from scripts_as_modules import load_script

pytestmark = pytest.mark.requirement("damaged-scan")

QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["x" * 5000, "\ud800", [], {}, [None], {"a": 1}, 10**30, 1e308, [64, 64, 64]]),
)  # fmt: skip
JSON_OF = {"manifest": 0, "arrival": -1, "account": 1}  # which seed of a target is JSON, or lines of it


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return {name: seeds(name, tmp_path_factory.mktemp(name)) for name in TARGETS}


def _run(name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[name](data, Path(folder))


@pytest.mark.parametrize("name", TARGETS)
def test_the_sound_files_are_read(name: str, sound: dict[str, list[bytes]]) -> None:
    for data in sound[name]:
        _run(name, data)


def test_the_fuzzer_takes_the_same_files_and_goes_behind_what_hides_them(
    sound: dict[str, list[bytes]],
) -> None:
    fuzz = load_script("tests/attacks/fuzz.py")
    assert {
        name: max(map(len, files)) <= fuzz.TARGETS[name] for name, files in sound.items()
    } == dict.fromkeys(fuzz.TARGETS, True)
    scan, packed = sound["nifti"]
    assert fuzz._deeper(packed, random.Random(0), bytes.swapcase) == gzip.compress(
        scan.swapcase(), 1, mtime=0
    )
    journal = sound["account"][JSON_OF["account"]]
    spoilt = [fuzz._deeper(journal, random.Random(seed), lambda _: b"") for seed in range(9)]
    assert all(journal.partition(b"\0")[2] == one.partition(b"\0")[2] for one in spoilt)
    for one in spoilt:
        list(map(json.loads, one.partition(b"\0")[0].splitlines()))  # it stays JSON
    assert journal not in spoilt and len(set(spoilt)) > 3
    assert fuzz._deeper(b"{", random.Random(0), lambda data: data + b"!") == b"{!"


@pytest.mark.parametrize("name", TARGETS)
@QUICK
@given(draw=st.data())
def test_bytes_that_are_changed(name: str, sound: dict[str, list[bytes]], draw: st.DataObject) -> None:
    whole = draw.draw(st.sampled_from(sound[name]))
    at = draw.draw(st.integers(0, len(whole)))
    put = draw.draw(st.binary(max_size=8))
    gone = draw.draw(st.sampled_from([0, len(put), len(put) + 1, 200, len(whole)]))
    _run(name, whole[:at] + put + whole[at + gone :])


@pytest.mark.parametrize("name", JSON_OF)
@QUICK
@given(draw=st.data())
def test_json_of_another_form(name: str, sound: dict[str, list[bytes]], draw: st.DataObject) -> None:
    """One value anywhere in it replaced, or gone."""
    text, _, behind = sound[name][JSON_OF[name]].partition(b"\0")
    lines = [json.loads(line) for line in text.splitlines()]
    _spoil({"": draw.draw(st.sampled_from(lines))}, draw)
    _run(name, "\n".join(map(json.dumps, lines)).encode() + (b"\0" + behind if behind else b""))


def _spoil(inside: Any, draw: st.DataObject) -> None:
    keys = list(inside) if isinstance(inside, dict) else range(len(inside))
    key = draw.draw(st.sampled_from(keys))
    if inside[key] and isinstance(inside[key], dict | list) and draw.draw(st.integers(0, 3)):
        _spoil(inside[key], draw)
    elif draw.draw(st.booleans()):
        inside[key] = draw.draw(VALUES)
    else:
        del inside[key]
