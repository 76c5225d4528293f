"""Bundles of an age network alone: ages of scans as they are, and no volume that claims to be harmonized."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from hz_cli.info import facts
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import UsageError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space
from small_scans import write_scan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["models"] = [model for model in manifest["models"] if model["role"] == "age"]
    kept = {name: data for name, data in files.items() if not name.startswith("harmonizer")}
    return write_bundle(tmp_path_factory.mktemp("age") / "age.hz", manifest, kept)


def test_a_run_predicts_and_writes_no_volume(bundle: Bundle, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "sub-1_T1w.nii.gz")
    options = RunOptions(require="onnxruntime-cpu")
    report = run_batch([scan], bundle, tmp_path / "out", options)
    volume = to_model_space(read_volume(scan), Recipe()).grid
    raw = float(tiny.expected_age(volume[None, None])[0, 0])
    assert report.scans[0].prediction is not None
    assert report.scans[0].prediction.age_raw == pytest.approx(raw, abs=1e-3)
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not any("harmonized" in name or name.endswith(".nii.gz") for name in written)
    assert report.scans[0].outputs == ("sub-1_desc-predicted_T1w.json",)
    sidecar = json.loads((tmp_path / "out" / "sub-1_desc-predicted_T1w.json").read_text())
    assert "not harmonized" in sidecar["Description"] and "harmonized to" not in sidecar["Description"]
    assert (tmp_path / "out" / "report.html").is_file()
    again = run_batch([scan], bundle, tmp_path / "out", options)
    assert again.scans[0].status == "skipped" and again.scans[0].prediction == report.scans[0].prediction


def test_brains_for_a_network_of_registered_ones_are_flagged(bundle: Bundle, tmp_path: Path) -> None:
    """An interval that was made for such brains is not doubted for it."""
    scan = write_scan(tmp_path / "sub-1_T1w.nii.gz")
    manifest = {**bundle.raw, "recipe": {**bundle.recipe, "dof": 12}}
    files = {name: bundle.read_listed(name) for name in bundle.files}
    width = {"half_width": 9.0, "coverage": {"value": 0.9, "ci95": [0.8, 1.0]}}

    def flags(name: str, **more: object) -> list[str]:
        asked = write_bundle(tmp_path / f"{name}.hz", {**manifest, **more}, files)
        options = RunOptions(require="onnxruntime-cpu", report=False)
        (found,) = run_batch([scan], asked, tmp_path / name, options).scans
        assert found.status == "flagged"
        return list(found.flags)

    def interval(heads: bool) -> dict[str, object]:
        site = {"sites": ["basel"], "age_range": [18, 90], "raw_heads": heads, "bundle": bundle.id}
        made = {"level": 0.9, "n": 50, "method": "m", "how": "h", "raw": width, "site": site}
        return {"age_interval": made, "age_bias": None}

    (flag,) = flags("plain")
    assert "registered to MNI152 with 12 degrees of freedom" in flag and "hz-run --prepare" in flag
    assert flags("brains", **interval(False)) == [flag]
    first, caveat = flags("heads", **interval(True))
    assert first == flag and "not made for such a scan" in caveat


def test_its_networks_open_once_and_pass_scans_on(bundle: Bundle) -> None:
    with open_networks(bundle, NetworkOptions(require="onnxruntime-cpu")) as networks:
        assert list(networks.backends) == ["age"] and list(networks.attempts) == ["age"]
        volumes = tiny.random_volumes(2)[:, 0]
        np.testing.assert_array_equal(networks.harmonizer(volumes), volumes)
        assert networks.age_predictor is not None
        np.testing.assert_allclose(
            networks.age_predictor(volumes).raw, tiny.expected_age(volumes[:, None])[:, 0], atol=1e-3
        )
    with pytest.raises(UsageError, match="holds no harmonizer"):
        open_networks(bundle, NetworkOptions(to="site-b"))
    assert facts(bundle.path)["networks"] == ["age"] and facts(bundle.path)["harmonizes_to"] == []
    assert load_bundle(bundle.path).id == bundle.id
