"""An age network that answers with a distribution: its spread in every result, and never an interval."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.age_distribution import AgeDistribution
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space
from small_scans import write_scan

CENTRES = [30.0, 50.0]


def make(path: Path, stored: Any, count: int = 2) -> Bundle:
    """The tiny bundle whose age network's second output is taken for probabilities, of mean and largest."""
    manifest = {**tiny.tiny_manifest(), "age_distribution": stored}
    files = {**tiny.tiny_files(), "age.onnx": tiny.features_onnx()}
    manifest["models"] = [entry for entry in manifest["models"] if entry["file"] != "age.fp16.onnx"]
    del files["age.fp16.onnx"]
    (age,) = (entry for entry in manifest["models"] if entry["role"] == "age")
    age["outputs"] = [*age["outputs"], {"name": "features", "shape": ["N", count], "dtype": "float32"}]
    write_bundle(path, manifest, files)
    return load_bundle(path)


def test_the_spread_is_in_all_results_and_called_no_interval(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    bundle, out = make(tmp_path / "a.hz", {"centres": CENTRES}), tmp_path / "out"
    report = run_batch([scan], bundle, out, RunOptions(backend="onnxruntime-cpu", space="model"))
    seen = tiny.expected_harmonized(to_model_space(read_volume(scan), Recipe()).grid)
    share = float(seen.mean(dtype=np.float64)) / (float(seen.mean(dtype=np.float64)) + float(seen.max()))
    expected = 20 * np.sqrt(share * (1 - share))  # of two ages 20 years apart
    (one,) = report.scans
    assert one.prediction.age_spread == pytest.approx(expected, abs=2e-3)
    assert one.prediction.age_interval is None
    assert report.run["age"]["own_spread"].startswith(
        "SD of the network's own distribution over 2 ages of 30"
    )
    assert report.run["age"]["age_interval_coverage"] is None
    (stored,) = report.run["scans"]
    sidecar = json.loads((out / one.outputs[1]).read_text())["hz"]["predictions"]
    assert stored["age_spread"] == sidecar["age_spread"] == one.prediction.age_spread
    (row,) = csv.DictReader((out / "predictions.tsv").read_text().splitlines(), delimiter="\t")
    assert row["age_spread"] == f"{one.prediction.age_spread:.2f}" and "age_low" not in row
    page = (out / "report.html").read_text()
    assert "own spread" in page and "no interval, for nobody has measured what it covers" in page
    (again,) = run_batch([scan], bundle, out, RunOptions(backend="onnxruntime-cpu", space="model")).scans
    assert again.status == "skipped" and again.prediction == one.prediction


def test_networks_without_one_have_no_such_key_or_column(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    options = RunOptions(backend="onnxruntime-cpu", space="model", report=False)
    report = run_batch([scan], load_bundle(tiny_bundle), tmp_path / "out", options)
    assert "own_spread" not in report.run["age"] and "age_spread" not in report.run["scans"][0]
    assert "spread" not in (tmp_path / "out" / "predictions.tsv").read_text()


def test_the_spread_of_known_distributions() -> None:
    """Of a uniform one over K ages a year apart, of one age, and of two, not quite adding up to 1."""
    ages = AgeDistribution(tuple(42.5 + k for k in range(40)))
    one, two = np.zeros(40), np.zeros(40)
    one[7], two[[3, 23]] = 1, 0.4999
    found = ages.spread(np.stack([np.full(40, 1 / 40), one, two]).astype(np.float32))
    np.testing.assert_allclose(found, [np.sqrt((40**2 - 1) / 12), 0, 10], atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "count", "why"),
    [
        (7, 2, "neither an object nor null"),
        ({}, 2, "no 'centres'"),
        ({"centres": [30.0]}, 2, "rising ages"),
        ({"centres": [50.0, 30.0]}, 2, "rising ages"),
        ({"centres": [30.0, "x"]}, 2, "centres"),
        ({"centres": CENTRES}, 3, "does not give the 2 features that the bundle reads"),
    ],
)
def test_a_manifest_that_states_no_distribution_is_refused(
    tmp_path: Path, stored: Any, count: int, why: str
) -> None:
    with pytest.raises(BundleError, match=why):
        make(tmp_path / "a.hz", stored, count)
