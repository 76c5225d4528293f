"""An age network's features from its checkpoint to a bundle: every file gives the same distances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hz_calibration.graph import fingerprint  # noqa: E402
from hz_export.assemble import export_bundle  # noqa: E402
from hz_export.export_options import ExportOptions  # noqa: E402
from hz_export.networks import read_network  # noqa: E402
from hz_export.to_onnx import read_checkpoint  # noqa: E402
from hz_runtime.backends.fallback import choose  # noqa: E402
from hz_runtime.bundle.store import load_bundle  # noqa: E402
from hz_runtime.inference.predictors import AgePredictor  # noqa: E402
from hz_train.feature_reference import feature_reference, stored_reference  # noqa: E402
from small_scans import write_scans  # noqa: E402


def features_of(checkpoint: Path, volumes: np.ndarray) -> np.ndarray:
    """(n, 64) by torch."""
    network: Any = read_checkpoint(checkpoint).network
    with torch.no_grad():
        return np.asarray(network.last_features(torch.from_numpy(volumes[:, None])).numpy())


def test_a_bundle_knows_the_features_of_its_people(make_age, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    bright = np.linspace(0.3, 1, 12, dtype=np.float32)[:, None, None, None]
    people = rng.random((12, 64, 64, 64), dtype=np.float32) * bright
    features = features_of(make_age(), people).astype(np.float64)
    reference = feature_reference(features)
    assert reference is not None
    stored = stored_reference(reference, reference.distances(features).tolist())
    checkpoint = make_age(age_features=stored)
    (tmp_path / "scans").mkdir()
    write_scans(tmp_path / "scans", 1)
    options = ExportOptions(
        precisions=("fp16",), half_weights=True, scans=(tmp_path / "scans",), engines=("onnxruntime",)
    )
    bundle = load_bundle(export_bundle([checkpoint], tmp_path / "a.hz", options).path)
    assert [[spec.name for spec in entry.outputs] for entry in bundle.models] == [["age", "features"]] * 2
    assert all(entry.parity["measured"][0]["years"]["max"] < 0.25 for entry in bundle.models)
    assert f"than {stored['limit']:g} gets no age" in (bundle.path / "MODEL_CARD.md").read_text()

    seen = np.stack([people[0], people[1, ::-1], people[11] * 3])
    expected = reference.distances(features_of(checkpoint, seen))
    assert expected[0] < stored["limit"] < expected[2]  # of nobody at all
    for precision in ("fp32", "fp16"):
        backend, _ = choose(bundle, "age", "onnxruntime-cpu", precision=precision)
        predictor = AgePredictor(backend, None, features=bundle.age_features.reference())
        found = predictor(seen)
        assert found.distances is not None
        np.testing.assert_allclose(found.distances, expected, rtol=0.02, atol=0.1)
        assert [bool(predictor.no_age({"age_feature_distance": d})) for d in found.distances[::2]] == [
            False,
            True,
        ]
    # A plan made of the checkpoint is one of the bundle's network, and the other way round.
    assert fingerprint(read_network(checkpoint).graph) == fingerprint(read_network(bundle.path, "age").graph)


def test_a_checkpoint_that_does_not_know_them_is_exported_as_before(make_age, tmp_path: Path) -> None:
    bundle = export_bundle([make_age(age_features={})], tmp_path / "a.hz", ExportOptions(check_parity=False))
    assert bundle.age_features is None and "age_features" not in bundle.raw
    assert [spec.name for spec in bundle.models[0].outputs] == ["age"]
