"""The precision that is left to the machine, and that a run begun elsewhere keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_train.fit import Schedule  # noqa: E402
from hz_train.precision import CPU_FLAGS, fastest, settled  # noqa: E402


def test_what_was_asked_for_stays(tmp_path: Path) -> None:
    for precision in ("float32", "bf16", "fp16"):
        assert settled(Schedule(precision=precision), "cpu", tmp_path).precision == precision


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        ("fpu avx2 fma", False),
        ("avx512f avx512_vnni", False),
        ("avx512f avx512_bf16 avx512_vnni", True),
        ("amx_tile amx_bf16 amx_int8", True),
        ("asimd svebf16 i8mm", True),
    ],
)
def test_flags_of_processors(flags: str, bf16: bool) -> None:
    assert bool(CPU_FLAGS.search(f"flags\t\t: {flags}\n")) == bf16


def test_a_run_goes_on_in_the_precision_that_it_was_begun_with(tmp_path: Path) -> None:
    here = fastest("cpu")
    assert settled(Schedule(precision="auto"), "cpu", tmp_path).precision == here
    other = {"float32": "bf16", "bf16": "float32"}[here]
    (tmp_path / "fold-1").mkdir()
    state = {"settings": {"schedule": {"precision": other}}}
    (tmp_path / "fold-1" / "1-last.json").write_text(json.dumps(state))
    assert settled(Schedule(precision="auto"), "cpu", tmp_path).precision == other
