"""Precision plans: written whole, read back equal, refused where they are not what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="calibration needs onnx")

from hz_calibration.deviation import Budget, Deviation
from hz_calibration.plan import Kept, NodeError, PrecisionPlan, read_plan, write_plan
from hz_calibration.ranges import Range
from hz_calibration.samples import Sample
from hz_runtime.errors import HzError, UsageError

PLAN = PrecisionPlan(
    role="harmonizer",
    network="ab" * 32,
    method="mse",
    weight_bits=8,
    budget=Budget(0.006, None),
    ranges={"relu": Range(3.5, 0.0, 7.25)},
    int8=("conv_1",),
    kept=(
        Kept("conv_0", "Conv", "first"),
        Kept("conv_2", "Conv", "past", Deviation(0.02, None), Deviation(0.004, None)),
    ),
    half_kept=(),
    nodes=(NodeError("conv_1", "Conv", Deviation(1e-4, None), Deviation(0.003, None)),),
    whole={"int8": Deviation(0.004, None)},
    scans=(Sample("cd" * 32, "oslo"),),
    engine="onnxruntime 1.31.0, CPU",
)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    assert read_plan(tmp_path / "plan.json") == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_an_infinite_error_is_written_as_json_that_everybody_reads(tmp_path: Path) -> None:
    plan = replace(PLAN, whole={"fp16": Deviation(float("inf"), None)})
    write_plan(tmp_path / "plan.json", plan)
    raw = json.loads((tmp_path / "plan.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert raw["whole"]["fp16"]["intensity"] > 1e300
    assert read_plan(tmp_path / "plan.json").budget.used(read_plan(tmp_path / "plan.json").whole["fp16"]) > 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"plan": 2}, "no precision plan that this hz reads"),
        ({"int8": None}, "lacks a field"),
        ({"ranges": {"relu": {"amax": "x", "low": 0, "high": 1}}}, "lacks a field"),
        ({"ranges": {"relu": {"amax": -1, "low": 0, "high": 1}}}, "not a magnitude"),
        ({"method": "guess"}, "asks for 'guess'"),
        ({"weight_bits": 4}, "4 bits"),
        ({"budget": {"mean": 1}}, "lacks a field"),
    ],
)
def test_what_is_no_plan_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrecisionPlan.from_dict({**PLAN.to_dict(), **change})


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"plan\.json"):
        read_plan(path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(HzError, match="cannot be written"):
        write_plan(tmp_path / "none" / "plan.json", PLAN)


def test_nan_ranges_are_refused() -> None:
    raw = PLAN.to_dict()
    raw["ranges"]["relu"]["amax"] = np.nan
    with pytest.raises(UsageError, match="not a magnitude"):
        PrecisionPlan.from_dict(raw)
