"""A harmonizer that moves its own target is published on purpose alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hz_export.assemble import export_bundle
from hz_export.export_options import ExportOptions
from hz_export.unfit_networks import moved_target
from hz_runtime.errors import HzError


def change(value: float, n: int = 20) -> dict[str, Any]:
    score = {"value": value, "ci95": [value - 0.3, value + 0.3], "n": n, "how": "held out"}
    return {"metrics": {"target_grey_white_change": score}}


def test_a_harmonizer_that_moves_its_own_target_is_published_on_purpose_alone(
    make_harmonizer, tmp_path: Path
) -> None:
    # The first reference bundle's moved it from .775 to .804, by 3.7 %.
    fast = ExportOptions(check_parity=False)
    checkpoint = make_harmonizer(**change(3.7))
    said = (
        "changes the ratio of grey to white matter of its own target site, oslo, by 3.7 % in the mean of 20"
    )
    with pytest.raises(HzError, match=said) as refused:
        export_bundle([checkpoint], tmp_path / "a.hz", fast)
    assert "--allow-moved-target" in refused.value.remedy and not (tmp_path / "a.hz").exists()
    bundle = export_bundle([checkpoint], tmp_path / "a.hz", replace(fast, allow_moved_target=True))
    assert said in " ".join((bundle.path / "MODEL_CARD.md").read_text().split())


def test_a_target_that_stays_or_that_nobody_measured_is_no_fault() -> None:
    for meta in ({}, {"metrics": {}}, change(0.9), change(-0.9), change(4.0, n=5)):
        assert moved_target("h", meta) == ""
    assert "by -1.2 %" in moved_target("h", {"target": "oslo", **change(-1.2)})
