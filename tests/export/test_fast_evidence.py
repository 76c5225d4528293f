"""What makes a row of evidence good for `fast`, and how it comes into a bundle of another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hz_export import fast_evidence
from hz_export.bundle_evidence import add_evidence, merged
from hz_export.fast_evidence import judged, tolerance_kind
from hz_runtime.bundle.engine_evidence import engine_evidence
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import BundleError


def row(shares: list[float], years: list[float], precision: str = "int8+bf16", **backend: str) -> Any:
    """Of volumes whose brain's mean is 0.5, with these errors relative to it."""
    means = [0.5 * share for share in shares]
    brain = {"mean": sum(means) / len(means), "p999": 0.01, "reference_mean": 0.5}
    volumes = [
        {"brain": {"mean": mean, "reference_mean": 0.5}, "years": gap}
        for mean, gap in zip(means, years, strict=True)
    ]
    return {
        "backend": {"name": "openvino", "provider": "CPU", "precision": precision, **backend},
        "brain": brain,
        "overall": {"nonfinite": 0},
        "years": {"max": max(map(abs, years)), "nonfinite": 0},
        "per_volume": volumes,
    }


@pytest.fixture(autouse=True)
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_evidence, "instruction_set", lambda: "amx")


GOOD = ([0.003, 0.004, 0.009], [0.01, -0.1, 0.02])


@pytest.mark.parametrize(
    ("shares", "years", "past"),
    [
        (*GOOD, []),
        ([0.003, 0.006, 0.009], [0.0] * 3, ["median volume 0.006 (at most 0.005)"]),
        ([0.003, 0.004, 0.011], [0.0] * 3, ["worst volume 0.011 (at most 0.01)"]),
        ([0.001] * 3, [0.0, -0.21, 0.0], ["years that 95 % of scans keep to 0.21 (at most 0.2)"]),
    ],
)
def test_limits_of_fast(shares: list[float], years: list[float], past: list[str]) -> None:
    found = judged(row(shares, years), "int8")
    assert found["backend"]["instructions"] == "amx"
    assert len(found["not_fast"]) == len(past)
    assert all(words in said for words, said in zip(past, found["not_fast"], strict=True))


def test_an_age_network_has_less_to_spend_than_the_harmonizer_before_it() -> None:
    behind = {key: value for key, value in row(*GOOD).items() if key not in ("brain", "overall")}
    assert judged(behind, "int8")["not_fast"] == ["years that 95 % of scans keep to 0.1 (at most 0.05)"]


def test_float32_and_what_the_processor_does_not_multiply_are_not_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert judged(row(*GOOD, precision="fp32"), "fp32")["not_fast"] == ["it computes in fp32"]
    monkeypatch.setattr(fast_evidence, "instruction_set", lambda: "avx2")
    said = judged(row(*GOOD, precision="int8+fp32"), "int8")["not_fast"]
    assert said == ["avx2 does not multiply int8 as such"]
    on_gpu = row(*GOOD, provider="CUDA (tensorrt)")
    assert judged(on_gpu, "int8") == on_gpu


def test_a_float32_file_in_bf16_is_held_to_what_bf16_may_cost() -> None:
    hinted = row(*GOOD, precision="bf16", hint="bf16")
    assert tolerance_kind(hinted, "fp32, half weights") == "bf16"
    assert judged(hinted, "fp32, half weights")["not_fast"] == []
    assert tolerance_kind(hinted, "int8") == "int8"
    assert tolerance_kind(row(*GOOD), "fp32") == "fp32"


def evidence(*rows: Any, sha256: str = "a", **more: Any) -> dict[str, Any]:
    said = {"sha256": sha256, "reference": "torch", "volumes": {"n": 3}, "kind": "int8"}
    return {**said, **more, "measured": list(rows)}


def ran(**backend: str) -> Any:
    return judged(row(*GOOD, rung="openvino", sha256="a", **backend), "int8")


def test_rows_of_another_machine_say_what_they_were_held_to() -> None:
    old = {**ran(), "backend": {**ran()["backend"], "instructions": "avx2"}}
    own = evidence(old, {**ran(), "of": "before"})
    found = merged(own, evidence(ran(hint="bf16"), ran(), reference="its own file"))
    assert (found["reference"], found["volumes"]) == ("torch", {"n": 3})
    assert [r["backend"].get("hint", r["backend"]["instructions"]) for r in found["measured"]] == [
        "avx2", "bf16", "amx",
    ]  # fmt: skip
    assert all(r["reference"] == "its own file" and "volumes" not in r for r in found["measured"][1:])
    assert not any({"rung", "sha256"} & set(r["backend"]) for r in found["measured"][1:])
    unmeasured = merged({"measured": [], "note": "not measured"}, evidence(ran()))
    assert unmeasured["reference"] == "torch" and "reference" not in unmeasured["measured"][0]
    built = {**ran(), "backend": {**ran()["backend"], "sha256": "of an engine"}}
    assert merged(own, evidence(built))["measured"] == own["measured"]


def test_evidence_goes_into_the_bundle_that_was_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "mine.hz"
    shutil.copytree(tiny_bundle, place)
    bundle = load_bundle(place)
    entry = bundle.model("harmonizer", precision="fp32")
    found = evidence(judged(row(*GOOD, rung="openvino", sha256=entry.sha256), "int8"), sha256=entry.sha256)
    result = {"bundle": {"id": bundle.id}, "models": [{"file": entry.file, "parity": found}]}
    written = add_evidence(place, result)
    assert written.id != bundle.id
    (one,) = engine_evidence(load_bundle(place).model("harmonizer", precision="fp32"))
    assert (one.engine, one.instructions, one.precision, one.not_fast) == ("openvino", "amx", "int8+bf16", ())
    with pytest.raises(BundleError, match="not the bundle that was measured"):
        add_evidence(place, result)
