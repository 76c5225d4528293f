"""Parity: the arithmetic of the differences, the bond to the file, and the refusal of what strayed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from hz_export import parity  # noqa: E402
from hz_export.bundle_parity import ParityOptions, kind_of, measure_bundle, verdict  # noqa: E402
from hz_export.differences import checks, measured, spread  # noqa: E402
from hz_export.parity import TOLERANCES, ParityCheck, Tolerance, Volumes  # noqa: E402
from hz_runtime.bundle.store import load_bundle, write_bundle  # noqa: E402
from hz_runtime.errors import HzError, UsageError  # noqa: E402
from hz_runtime.model_space.recipe import Recipe  # noqa: E402
from small_scans import write_scans  # noqa: E402
from tiny import age_onnx, harmonizer_onnx, tiny_files, tiny_manifest  # noqa: E402


class Affine(torch.nn.Module):
    """What tests/tiny.py's harmonizer computes."""

    def forward(self, x):
        return (0.8 * x + 0.1).clamp(0, 1)


class Mean(torch.nn.Module):
    """What tests/tiny.py's age network computes."""

    def forward(self, x):
        return 20 + 200 * x.mean(dim=(2, 3, 4))


@pytest.fixture
def volumes() -> Volumes:
    grids = np.random.default_rng(0).random((2, 64, 64, 64), dtype=np.float32)
    grids[:, :20] = 0
    return Volumes(grids, ("a" * 64, "b" * 64), "noise made for this test")


@pytest.fixture
def parity_check(volumes: Volumes) -> ParityCheck:
    brain = parity.brains(volumes.grids)
    return ParityCheck(Affine(), volumes.grids, brain, volumes, Mean(), ("onnxruntime",))


def with_bias(bias: float) -> bytes:
    """The tiny harmonizer with 0.1 replaced."""
    model = onnx.load_from_string(harmonizer_onnx())
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(np.array([bias], np.float32), "bias"))
    return model.SerializeToString()


def test_differences_by_hand() -> None:
    expected = np.zeros(1000, np.float32)
    found = expected.copy()
    found[0], found[1] = 0.5, -0.25
    got = parity.differences(found, expected)
    assert got["max"] == 0.5
    assert got["mean"] == pytest.approx(0.75 / 1000)
    assert got["psnr_db"] == pytest.approx(-10 * np.log10(0.3125 / 1000), abs=0.01)
    assert got["p999"] == pytest.approx(0.25 + 0.001 * 0.25, rel=1e-6)  # rank 998.001 of 0..999
    assert got["nonfinite"] == 0


def test_differences_count_nonfinite_values_and_equal_arrays_have_no_psnr() -> None:
    expected = np.ones(4, np.float32)
    got = parity.differences(np.array([1, np.nan, np.inf, 1], np.float32), expected)
    assert (got["nonfinite"], got["max"], got["psnr_db"]) == (2, 0.0, None)


def test_evidence_speaks_of_this_very_file(parity_check: ParityCheck, volumes: Volumes) -> None:
    data = harmonizer_onnx()
    evidence = parity_check.measure(data, "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert evidence["sha256"] == hashlib.sha256(data).hexdigest()
    assert evidence["volumes"] == {"n": 2, "sha256": list(volumes.sha256), "source": volumes.source}
    (row,) = evidence["measured"]
    assert row["backend"]["provider"] == "CPUExecutionProvider"
    assert row["brain"]["max"] < 1e-6
    assert row["years"]["max"] < 1e-4


def test_a_known_error_is_measured_as_that(parity_check: ParityCheck) -> None:
    wide = Tolerance(1, 1, 99)
    (row,) = parity_check.measure(with_bias(0.11), "fp32", wide, "x.onnx")["measured"]
    assert row["overall"]["mean"] == pytest.approx(0.01, rel=1e-3)
    assert row["overall"]["psnr_db"] == pytest.approx(40, abs=0.02)
    assert row["years"]["max"] == pytest.approx(2.0, rel=1e-3)  # 200 years a unit of mean intensity


def test_a_corrupted_model_is_refused_with_what_was_found(parity_check: ParityCheck) -> None:
    with pytest.raises(
        HzError, match=r"harmonizer\.onnx on onnxruntime .* mean difference in the brain 0\.01"
    ) as raised:
        parity_check.measure(with_bias(0.11), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert "at most 0.0001" in raised.value.message
    assert "Not published" in raised.value.remedy


def test_a_small_error_that_moves_ages_is_refused(parity_check: ParityCheck) -> None:
    with pytest.raises(HzError, match="largest difference in years 1"):
        parity_check.measure(with_bias(0.105), "fp16", Tolerance(0.1, 0.1, 0.25), "h.onnx")


def test_a_model_that_gives_nan_is_refused(parity_check: ParityCheck) -> None:
    with pytest.raises(HzError, match="non-finite") as raised:
        parity_check.measure(with_bias(float("nan")), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert "Not published" in raised.value.remedy


def test_bytes_that_are_no_model_are_refused(parity_check: ParityCheck) -> None:
    with pytest.raises(HzError):
        parity_check.measure(harmonizer_onnx()[:200], "fp32", TOLERANCES["fp32"], "harmonizer.onnx")


def test_an_age_network_is_judged_in_years_alone(volumes: Volumes) -> None:
    parity_check = ParityCheck(
        Mean(), volumes.grids, parity.brains(volumes.grids), volumes, None, ("onnxruntime",)
    )
    evidence = parity_check.measure(age_onnx(), "fp32", TOLERANCES["fp32"], "age.onnx")
    assert evidence["tolerance"] == {"years": 0.05}
    (row,) = evidence["measured"]
    assert set(row) == {"backend", "years", "per_volume", "not_fast"}
    assert row["years"]["max"] < 1e-3


def test_every_installed_engine_is_asked(volumes: Volumes) -> None:
    from hz_runtime.backends.instruction_set import instruction_set, multiplies
    from hz_runtime.backends.registry import installed

    parity_check = ParityCheck(Affine(), volumes.grids[:1], parity.brains(volumes.grids[:1]), volumes)
    rows = parity_check.measure(harmonizer_onnx(), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")["measured"]
    plain = [row for row in rows if "hint" not in row["backend"]]
    assert [row["backend"]["name"] for row in plain] == [name for name, _ in installed()]
    hinted = [row["backend"]["name"] for row in rows if "hint" in row["backend"]]
    assert hinted == (["openvino"] if multiplies("bf16", instruction_set()) else [])
    assert all(row["backend"]["instructions"] == instruction_set() for row in rows)
    assert [row["not_fast"] for row in plain] == [["it computes in fp32"]] * len(plain)


def test_scans_are_picked_evenly_and_named_by_content_only(tmp_path: Path) -> None:
    paths = write_scans(tmp_path, 4)
    picked = parity.scan_volumes([tmp_path], Recipe(), most=2)
    wanted = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (sorted(paths)[0], sorted(paths)[-1])]
    assert list(picked.sha256) == wanted
    assert picked.grids.shape == (2, 64, 64, 64)
    assert picked.source == "2 of 4 scans given by --scans"


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scans"):
        parity.scan_volumes([tmp_path], Recipe())


def test_the_template_stands_in_and_its_views_differ() -> None:
    found = parity.template_volumes(Recipe(), views=3)
    again = parity.template_volumes(Recipe(), views=3)
    np.testing.assert_array_equal(found.grids, again.grids)
    assert found.grids.shape == (3, 64, 64, 64)
    brain = found.grids[0] > parity.BRAIN_ABOVE
    assert 0.1 < brain.mean() < 0.6
    assert np.abs(found.grids[0] - found.grids[1])[brain].mean() > 0.01
    assert "MNI152" in found.source


def test_every_volume_keeps_its_own_numbers() -> None:
    """Two volumes, one off by a ramp inside the brain, the other by nothing."""
    expected = np.full((2, 1, 1, 1000), 0.5, np.float32)
    brain = np.zeros(expected.shape, bool)
    brain[..., :500] = True
    found = expected.copy()
    found[1, 0, 0, :500] += np.arange(500, dtype=np.float32) / 1000
    row = measured(
        found, expected, brain, (np.array([40.5, 39.0], np.float32), np.array([40.0, 40.0], np.float32))
    )
    still, moved = row["per_volume"]
    assert still["brain"] == {
        **dict.fromkeys(("mean", "p50", "p90", "p99", "p999", "max"), 0.0),
        "nonfinite": 0,
        "reference_mean": 0.5,
    }
    assert moved["brain"]["mean"] == pytest.approx(0.2495, rel=1e-5)
    assert moved["brain"]["p90"] == pytest.approx(0.4491, rel=1e-5)  # rank 449.1 of 0..499, in thousandths
    assert moved["brain"]["max"] == pytest.approx(0.499, rel=1e-5)
    assert moved["overall"]["mean"] == pytest.approx(0.2495 / 2, rel=1e-5)
    assert [volume["years"] for volume in row["per_volume"]] == [0.5, -1.0]
    assert row["brain"]["mean"] == pytest.approx(0.2495 / 2, rel=1e-5)
    assert row["brain"]["reference_mean"] == 0.5
    json.dumps(row, allow_nan=False)


def test_quantiles_of_a_volume_that_is_all_nan() -> None:
    got = spread(np.full(4, np.nan, np.float32), np.zeros(4, np.float32))
    assert (got["nonfinite"], got["mean"], got["p50"]) == (4, 0.0, 0.0)


def row_of(years: list[float], error: float = 0.01, level: float = 0.5) -> dict:
    """What `measured` would keep of volumes of one voxel in the brain."""
    expected = np.full((len(years), 1, 1, 1), level, np.float32)
    ages = np.zeros(len(years), np.float32)
    return measured(expected + np.float32(error), expected, expected > 0, (ages + np.float32(years), ages))


def test_a_mean_error_is_judged_relative_to_the_brain() -> None:
    """The same error is twice as large in a brain half as bright."""
    tolerance = Tolerance(1, 1, 99, relative=0.03)
    past = [[c.key for c in checks(row_of([0.0], level=level), tolerance) if c.past] for level in (0.5, 0.25)]
    assert past == [[], ["relative"]]


def test_ages_may_be_judged_by_most_scans() -> None:
    tolerance = Tolerance(1, 1, 99, years95=0.5)
    nineteen = row_of([0.4] * 19 + [3.0])  # 95 % of 20
    eighteen = row_of([0.4] * 18 + [-3.0, 3.0])
    assert [c.past for c in checks(nineteen, tolerance) if c.key == "years95"] == [False]
    assert [c.past for c in checks(eighteen, tolerance) if c.key == "years95"] == [True]


def test_an_age_that_is_not_finite_is_past_any_limit() -> None:
    row = row_of([0.0, float("nan")])
    assert row["per_volume"][1]["years"] is None
    past = {c.key for c in checks(row, Tolerance(1, 1, 99, years95=50)) if c.past}
    assert past == {"nonfinite", "years95"}


def test_evidence_is_judged_again_without_running(
    parity_check: ParityCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_bias(0.11)  # off by 0.01 and 2 years
    evidence = parity_check.measure(data, "fp32", Tolerance(1, 1, 99), "x.onnx")
    recorded = {
        "models": [{"file": "x.onnx", "sha256": hashlib.sha256(data).hexdigest(), "parity": evidence}]
    }
    recorded = json.loads(json.dumps(recorded, allow_nan=False))
    monkeypatch.setattr(parity, "open_backend", None)  # nothing may run
    ((file, row, kind, past),) = parity.rejudge(recorded)
    assert (file, kind, row["backend"]["name"]) == ("x.onnx", "fp32", "onnxruntime")
    assert [text.split(" 0.0")[0] for text in past[:1]] == ["mean difference in the brain"]
    assert any("largest difference in years 2" in text for text in past)
    ((*_, past),) = parity.rejudge(recorded, {"mean": 0.02, "p999": 0.02, "years": 2.1, "relative": 0.5})
    assert past == ()
    ((*_, past),) = parity.rejudge(recorded, {"mean": 0.02, "p999": 0.02, "years": 2.1, "years95": 1.9})
    assert past == ("years that 95 % of scans keep to 2 (at most 1.9)",)


def test_evidence_of_other_bytes_is_not_judged(parity_check: ParityCheck) -> None:
    evidence = parity_check.measure(harmonizer_onnx(), "fp32", TOLERANCES["fp32"], "x.onnx")
    with pytest.raises(UsageError, match=r"x\.onnx is of other bytes"):
        list(parity.rejudge({"models": [{"file": "x.onnx", "sha256": "0" * 64, "parity": evidence}]}))


@pytest.mark.parametrize(
    "text", ["{}", '{"models": [{}]}', '{"models": []}', '{"models": [{"file": 1, "parity": []}]}']
)
def test_what_is_no_evidence_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="evidence"):
        list(parity.rejudge(json.loads(text)))


def test_numbers_that_were_not_kept_are_asked_for(parity_check: ParityCheck) -> None:
    evidence = parity_check.measure(harmonizer_onnx(), "fp32", TOLERANCES["fp32"], "x.onnx")
    row = {k: v for k, v in evidence["measured"][0].items() if k != "per_volume"}
    with pytest.raises(UsageError, match="holds no 'per_volume'") as raised:
        checks(row, replace(TOLERANCES["fp32"], years95=0.5))
    assert "hz-bench parity" in raised.value.remedy


def test_a_reference_may_be_a_function(volumes: Volumes) -> None:
    """Without torch the bundle's own file answers; the evidence says so."""
    brain = parity.brains(volumes.grids)
    parity_check = ParityCheck(
        lambda v: np.clip(0.8 * v + 0.1, 0, 1), volumes.grids, brain, volumes,
        lambda v: 20 + 200 * v.mean(axis=(1, 2, 3)), ("onnxruntime",), "arithmetic",
    )  # fmt: skip
    evidence = parity_check.measure(harmonizer_onnx(), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert evidence["reference"] == "arithmetic"
    assert evidence["measured"][0]["years"]["max"] < 1e-3


@pytest.fixture
def options(tmp_path: Path) -> ParityOptions:
    write_scans(tmp_path / "scans", 2)
    return ParityOptions(scans=(tmp_path / "scans",), engines=("onnxruntime-cpu",), threads=1)


def test_a_bundle_agrees_with_itself_file_by_file(tiny_bundle: Path, options: ParityOptions) -> None:
    bundle = load_bundle(tiny_bundle)
    result = measure_bundle(bundle, options)
    json.dumps(result, allow_nan=False)
    found = [(m["file"], m["sha256"], m["parity"]["sha256"]) for m in result["models"]]
    assert found == [(e.file, e.sha256, e.sha256) for e in bundle.models]
    fp32, fp16 = (m["parity"] for m in result["models"][:2])
    assert fp32["reference"] == "the bundle's own harmonizer.onnx on onnxruntime-cpu"
    assert fp32["measured"][0]["overall"]["max"] == 0
    assert 0 < fp16["measured"][0]["brain"]["max"] < 1e-3  # float16 has 11 bits
    assert fp16["measured"][0]["backend"]["rung"] == "onnxruntime-cpu"
    assert fp16["measured"][0]["backend"]["sha256"] == bundle.models[1].sha256
    assert len(fp16["measured"][0]["per_volume"]) == 2
    assert verdict(result) == []
    (wrong,) = verdict({**result, "models": result["models"][1:2]}, {"mean": 0.0, "years": 99.0})
    assert wrong.startswith("harmonizer.fp16.onnx on onnxruntime CPUExecutionProvider: mean difference")


def test_a_file_that_gives_nan_is_a_failure_and_not_an_absence(
    tmp_path: Path, options: ParityOptions
) -> None:
    files = {**tiny_files(), "harmonizer.fp16.onnx": with_bias(float("nan"))}
    bundle = write_bundle(tmp_path / "nan.hz", tiny_manifest(), files)
    engines = ("onnxruntime-cuda", "onnxruntime-cpu")  # OpenVINO's Clip turns NaN into a number
    result = measure_bundle(bundle, replace(options, engines=engines))
    broken = next(m for m in result["models"] if m["file"] == "harmonizer.fp16.onnx")
    assert broken["parity"]["measured"] == []
    assert all(item["failed"] for item in broken["not_run"] if item["backend"] == "onnxruntime-cpu")
    absent = [item for item in broken["not_run"] if item["backend"] == "onnxruntime-cuda"]
    assert [item["failed"] for item in absent] == [False]
    assert any(
        "harmonizer.fp16.onnx on onnxruntime-cpu" in line and "non-finite" in line for line in verdict(result)
    )


def test_the_kind_goes_by_what_a_file_computes_and_stores(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert [kind_of(bundle, entry) for entry in bundle.models] == ["fp32", "fp16", "fp32", "fp16"]
    raw = {**bundle.raw, "models": [dict(m) for m in bundle.raw["models"]]}
    raw["models"][0]["achieved"] = {"stored_bytes": {"fp16": 10, "fp32": 2}}
    assert kind_of(replace(bundle, raw=raw), bundle.models[0]) == "fp32, half weights"


def test_a_checkpoint_of_another_bundle_is_refused(
    tiny_bundle: Path, options: ParityOptions, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    from small_checkpoints import write_harmonizer

    path = write_harmonizer(tmp_path)
    with pytest.raises(UsageError, match=r"tiny\.hz was not exported from harmonizer\.safetensors"):
        measure_bundle(load_bundle(tiny_bundle), replace(options, checkpoints=(path,)))
