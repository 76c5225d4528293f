"""An age network's own features, from the manifest to results: who is unlike its people gets no age."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

import tiny
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.inference.slice_wise import answer_of
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import to_model_space
from small_scans import write_scan

MEAN, COVARIANCE = [0.6, 0.4], [[0.0034, -0.0008], [-0.0008, 0.0022]]  # directions (2, -1) and (1, 2)
TURN = np.array([2.0, -1.0]) / np.sqrt(5)


def reference(**changes: Any) -> dict[str, Any]:
    """Of features (mean, largest): variances .0038 along (2, -1) and .0018 across it."""
    stored = {
        "mean": MEAN, "directions": [TURN.tolist()], "variances": [0.0038], "rest": 0.0018, "limit": 40.0
    }  # fmt: skip
    return {**stored, "how": "made up for tests", **changes}


def make(path: Path, stored: Any) -> Bundle:
    manifest = {**tiny.tiny_manifest(), "age_features": stored}
    files = {**tiny.tiny_files(), "age.onnx": tiny.features_onnx()}
    manifest["models"] = [entry for entry in manifest["models"] if entry["file"] != "age.fp16.onnx"]
    del files["age.fp16.onnx"]
    (age,) = (entry for entry in manifest["models"] if entry["role"] == "age")
    age["outputs"] = [*age["outputs"], {"name": "features", "shape": ["N", 2], "dtype": "float32"}]
    write_bundle(path, manifest, files)
    return load_bundle(path)


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_an_unusual_person_gets_no_age(tmp_path: Path, backend: str) -> None:
    covariance = 0.0038 * np.outer(TURN, TURN) + 0.0018 * (np.eye(2) - np.outer(TURN, TURN))
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=1e-9)
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    usual = make(tmp_path / "usual.hz", reference())
    with open_networks(usual, NetworkOptions(backend=backend)) as networks:
        recipe, predictor = networks.harmonizer.recipe, networks.age_predictor
        assert predictor is not None
        grid = to_model_space(read_volume(scan), recipe).grid
        seen = tiny.expected_harmonized(grid)
        expected = mahalanobis([seen.mean(dtype=np.float64), seen.max()], MEAN, np.linalg.inv(COVARIANCE))
        ages = predictor(np.stack([seen, seen * 0.5]))
        assert ages.distances is not None and ages.distances.shape == (2,)
        assert ages.distances[0] == pytest.approx(expected, abs=5e-3)
        assert ages.raw[0] == pytest.approx(20 + 200 * seen.mean(dtype=np.float64), abs=0.02)
        found = predictor.measures(seen, grid)  # nobody gave the ages: it asks the network again
        assert found["age_feature_distance"] == pytest.approx(expected, abs=5e-3)
        assert predictor.no_age(found) == ()

    options = RunOptions(report=False, backend=backend)
    (one,) = run_batch([scan], usual, tmp_path / "one", options).scans
    assert one.prediction.age_raw == pytest.approx(20 + 200 * seen.mean(dtype=np.float64), abs=0.02)
    narrow = make(tmp_path / "narrow.hz", reference(limit=0.5 * expected))
    (two,) = run_batch([scan], narrow, tmp_path / "two", options).scans
    assert two.status == "flagged" and two.prediction.age is None and two.prediction.age_raw is None
    assert two.flags[-1].startswith("no age: the age network finds this scan unlike those of the people")
    assert f"distance {expected:.1f}, and {0.5 * expected:.1f} is the most" in two.flags[-1]
    for result, folder in ((one, "one"), (two, "two")):
        stored = json.loads((tmp_path / folder / result.outputs[1]).read_text())
        assert stored["Features"]["age_feature_distance"] == pytest.approx(expected, abs=5e-3)


def test_an_answer_is_found_whatever_the_order_of_outputs() -> None:
    one, two = np.zeros((2, 1), np.float32), np.ones((2, 5), np.float32)
    assert answer_of({"features": two, "age": one}) is one is answer_of({"age": one, "features": two})


def test_an_engine_may_list_outputs_in_its_own_order() -> None:
    from hz_runtime.backends.built_engines import _same

    age, features = TensorSpec("age", ("N", 1), "float32"), TensorSpec("features", ("batch", 2), "float32")
    assert _same((features, age), (age, features)) and not _same((age,), (age, features))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"mean": [0.6, 0.4, 0.1]}, "directions should be of 3 numbers"),
        ({"directions": []}, "directions should be as many as variances"),
        ({"directions": [[1.0, 1.0]]}, "directions are not orthonormal"),
        ({"variances": [0.0]}, "variances, rest and limit should be above 0"),
        ({"limit": -1.0}, "variances, rest and limit should be above 0"),
        ({"limit": "far"}, "limit is not a finite number"),
        ({"mean": {}}, "mean should be an array of numbers"),
        (
            {"mean": [0.6, 0.4, 0.1], "directions": [[*TURN.tolist(), 0.0]]},
            "age.onnx does not give the 3 features that the bundle reads",
        ),
    ],
)
def test_a_reference_that_makes_no_distance_is_refused(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(BundleError, match=found):
        make(tmp_path / "bad.hz", reference(**changes))
