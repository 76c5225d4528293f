"""Opening a bundle's networks: all that it holds, in what was asked for; after a failure none stays open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from hz_runtime import NetworkOptions, open_networks
from hz_runtime.backends.fallback import choose
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BackendError, UsageError
from hz_runtime.inference import open as open_module

ON_CPU = NetworkOptions(backend="onnxruntime-cpu", threads=1)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def test_all_that_a_bundle_holds_is_opened_and_closed(bundle: Bundle) -> None:
    batch = tiny.random_volumes(2)
    with open_networks(bundle, ON_CPU) as networks:
        assert networks.age_predictor is not None and networks.diagnosis_predictor is None
        assert list(networks.backends) == list(networks.attempts) == ["harmonizer", "age"]
        assert all(attempts[-1].outcome == "ran" for attempts in networks.attempts.values())
        made = networks.harmonizer(batch[:, 0])
        np.testing.assert_allclose(made, tiny.expected_harmonized(batch)[:, 0], rtol=0, atol=1e-6)
        ages = networks.age_predictor(batch[:, 0])
        np.testing.assert_allclose(ages.raw, tiny.expected_age(batch).ravel(), rtol=0, atol=1e-3)
    for backend in networks.backends.values():
        with pytest.raises(BackendError, match="closed"):
            backend.run(batch)
    networks.close()


def test_a_precision_is_for_the_networks_that_have_it(tmp_path: Path) -> None:
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["models"] = [entry for entry in manifest["models"] if entry["file"] != "age.fp16.onnx"]
    del files["age.fp16.onnx"]
    bundle = write_bundle(tmp_path / "half.hz", manifest, files)
    options = NetworkOptions(backend="onnxruntime-cpu", precision="fp16", threads=1)
    with open_networks(bundle, options) as networks:
        ran = {role: bundle.entry(backend.sha256).file for role, backend in networks.backends.items()}
    assert ran == {"harmonizer": "harmonizer.fp16.onnx", "age": "age.onnx"}
    with pytest.raises(UsageError, match=r"half\.hz holds no int8 file"):
        open_networks(bundle, NetworkOptions(precision="int8"))


def test_nothing_stays_open_where_one_does_not_open(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def failing(bundle, role, *names, **how):
        if role == "age":
            raise BackendError("no such kernel")
        opened.append(choose(bundle, role, *names, **how))
        return opened[-1]

    monkeypatch.setattr(open_module, "choose", failing)
    with pytest.raises(BackendError, match="no such kernel"):
        open_networks(bundle, ON_CPU)
    ((backend, _),) = opened
    with pytest.raises(BackendError, match="closed"):
        backend.run(tiny.random_volumes(1))
