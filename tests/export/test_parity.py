"""Parity: the arithmetic of the differences, the bond to the file, and the refusal of what strayed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from hz_export import parity  # noqa: E402
from hz_export.parity import TOLERANCES, Judge, Tolerance, Volumes  # noqa: E402
from hz_runtime.errors import HzError, UsageError  # noqa: E402
from hz_runtime.recipe import Recipe  # noqa: E402
from small_scans import write_scans  # noqa: E402
from tiny import age_onnx, harmonizer_onnx  # noqa: E402


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
def judge(volumes: Volumes) -> Judge:
    brain = parity.brains(volumes.grids)
    return Judge(Affine(), volumes.grids, brain, volumes, Mean(), ("onnxruntime",))


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


def test_evidence_speaks_of_this_very_file(judge: Judge, volumes: Volumes) -> None:
    data = harmonizer_onnx()
    evidence = judge.evidence(data, "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert evidence["sha256"] == hashlib.sha256(data).hexdigest()
    assert evidence["volumes"] == {"n": 2, "sha256": list(volumes.sha256), "source": volumes.source}
    (row,) = evidence["measured"]
    assert row["backend"]["provider"] == "CPUExecutionProvider"
    assert row["brain"]["max"] < 1e-6
    assert row["years"]["max"] < 1e-4


def test_a_known_error_is_measured_as_that(judge: Judge) -> None:
    wide = Tolerance(1, 1, 99)
    (row,) = judge.evidence(with_bias(0.11), "fp32", wide, "x.onnx")["measured"]
    assert row["overall"]["mean"] == pytest.approx(0.01, rel=1e-3)
    assert row["overall"]["psnr_db"] == pytest.approx(40, abs=0.02)
    assert row["years"]["max"] == pytest.approx(2.0, rel=1e-3)  # 200 years a unit of mean intensity


def test_a_corrupted_model_is_refused_with_what_was_found(judge: Judge) -> None:
    with pytest.raises(
        HzError, match=r"harmonizer\.onnx on onnxruntime .* mean difference in the brain 0\.01"
    ) as raised:
        judge.evidence(with_bias(0.11), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert "at most 0.0001" in raised.value.message
    assert "Not published" in raised.value.remedy


def test_a_small_error_that_moves_ages_is_refused(judge: Judge) -> None:
    with pytest.raises(HzError, match="largest difference in years 1"):
        judge.evidence(with_bias(0.105), "fp16", Tolerance(0.1, 0.1, 0.25), "h.onnx")


def test_a_model_that_gives_nan_is_refused(judge: Judge) -> None:
    with pytest.raises(HzError, match="non-finite") as raised:
        judge.evidence(with_bias(float("nan")), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")
    assert "Not published" in raised.value.remedy


def test_bytes_that_are_no_model_are_refused(judge: Judge) -> None:
    with pytest.raises(HzError):
        judge.evidence(harmonizer_onnx()[:200], "fp32", TOLERANCES["fp32"], "harmonizer.onnx")


def test_an_age_network_is_judged_in_years_alone(volumes: Volumes) -> None:
    judge = Judge(Mean(), volumes.grids, parity.brains(volumes.grids), volumes, None, ("onnxruntime",))
    evidence = judge.evidence(age_onnx(), "fp32", TOLERANCES["fp32"], "age.onnx")
    assert evidence["tolerance"] == {"years": 0.05}
    (row,) = evidence["measured"]
    assert set(row) == {"backend", "years"}
    assert row["years"]["max"] < 1e-3


def test_every_installed_engine_is_asked(volumes: Volumes) -> None:
    from hz_runtime.backends import installed

    judge = Judge(Affine(), volumes.grids[:1], parity.brains(volumes.grids[:1]), volumes)
    rows = judge.evidence(harmonizer_onnx(), "fp32", TOLERANCES["fp32"], "harmonizer.onnx")["measured"]
    assert [row["backend"]["name"] for row in rows] == [name for name, _ in installed()]


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
    pytest.importorskip("nilearn", reason="the stand-in volumes ship in nilearn")
    found = parity.template_volumes(Recipe(), views=3)
    again = parity.template_volumes(Recipe(), views=3)
    np.testing.assert_array_equal(found.grids, again.grids)
    assert found.grids.shape == (3, 64, 64, 64)
    brain = found.grids[0] > parity.BRAIN_ABOVE
    assert 0.1 < brain.mean() < 0.6
    assert np.abs(found.grids[0] - found.grids[1])[brain].mean() > 0.01
    assert "MNI152" in found.source


def test_without_scans_and_without_nilearn_there_is_no_silent_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="parity needs real volumes"):
        parity.template_volumes(Recipe())
