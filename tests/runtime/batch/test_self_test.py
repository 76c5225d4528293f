"""The self-test passes on every engine here, and names each fault that is planted."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from hz_cli import run as command
from hz_cli.bundle import bundle as hz_bundle
from hz_export.self_test import add_self_test
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.registry import ENGINES, missing
from hz_runtime.batch import self_test as module
from hz_runtime.batch.self_test import SelfTest, self_test
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BackendError, BundleError, UsageError
from hz_runtime.inference.expected_answers import expected_answers
from hz_runtime.inference.self_test_head import made_brain, scan_bytes
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, to_model_space

pytestmark = pytest.mark.requirement("works-here")

ROOT = Path(__file__).resolve().parents[3]
HERE = [engine.name for engine in ENGINES if engine.device == "cpu" and not missing(engine)[0]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a self-test."""
    path = tmp_path_factory.mktemp("good") / "good.hz"
    return add_self_test(tiny.make_tiny_bundle(path))


def changed(good: Bundle, path: Path, files: dict[str, bytes], **manifest: Any) -> Bundle:
    """A consistent bundle of other files or another manifest, with the self-test of the good one."""
    kept = {name: good.read_listed(name) for name in good.files}
    raw = json.loads(json.dumps(dict(good.raw)))
    for entry in raw["models"]:
        entry.pop("sha256")
    return write_bundle(path, {**raw, **manifest}, {**kept, **files})


def faults(done: SelfTest) -> dict[str, str]:
    return {check.name: check.fault for check in done.failed}


@pytest.mark.parametrize(
    "change",
    [
        lambda answers: answers.update(voxels=[], grid=[]),
        lambda answers: answers["voxels"].append(0),
        lambda answers: answers["voxels"].__setitem__(0, -(10**9)),
        lambda answers: answers["files"]["age.onnx"].update(tolerance={}),
        lambda answers: answers["files"]["age.onnx"].update(tolerance={"most": 1e400}),
        lambda answers: answers["files"]["age.onnx"].update(tolerance={"best": 1}),
        lambda answers: answers["files"]["age.onnx"].update(values=[[1, 2], [3, 4]]),
    ],
)
def test_answers_that_nothing_can_fail_or_compare_with_are_refused(
    good: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """A tolerance without bounds passed whatever an engine computed."""
    answers = json.loads(good.read_listed("self-test.json"))
    change(answers)
    spoilt = {"self-test.json": json.dumps(answers).encode()}
    with pytest.raises(BundleError, match=r"self-test\.json cannot be read"):
        expected_answers(changed(good, tmp_path / "a.hz", spoilt))


def test_answers_of_a_larger_grid(good: Bundle, tmp_path: Path) -> None:
    answers = json.loads(good.read_listed("self-test.json"))
    answers["voxels"][0] = 10**9
    spoilt = changed(good, tmp_path / "a.hz", {"self-test.json": json.dumps(answers).encode()})
    assert "the grid is smaller" in faults(self_test(spoilt))["scan to model space"]


def test_it_passes_on_every_engine_here(good: Bundle) -> None:
    done = self_test(good)
    assert not done.failed, done.failed
    names = {check.name for check in done.checks if check.run}
    assert HERE
    for engine in HERE:
        for file in ("harmonizer.onnx", "harmonizer.fp16.onnx", "age.onnx", "age.fp16.onnx"):
            assert {f"{file} on {engine}, 1 thread", f"{file} on {engine}, 2 threads"} <= names
            assert f"arithmetic of {file} on {engine}" in names
    assert "all passed" in done.summary()


def test_the_answers_are_those_of_arithmetic(good: Bundle, tmp_path: Path) -> None:
    """Of the tiny networks, whose answers have a closed form, about the made-up head."""
    (tmp_path / "head.nii.gz").write_bytes(scan_bytes())
    volume = read_volume(tmp_path / "head.nii.gz")
    data, affine = made_brain()
    np.testing.assert_allclose(volume.data / volume.data.max(), data, atol=2e-5)
    np.testing.assert_allclose(volume.affine, affine)
    grid = to_model_space(volume, Recipe()).grid
    known = expected_answers(good)
    assert known is not None
    np.testing.assert_allclose(known.grid, grid.reshape(-1)[known.voxels], atol=1e-6)
    for row, gamma in enumerate((1.0, 0.6)):
        seen = (grid**gamma)[None, None].astype(np.float32)
        harmonized = tiny.expected_harmonized(seen).reshape(-1)[known.voxels]
        np.testing.assert_allclose(known.files["harmonizer.onnx"].values[row], harmonized, atol=1e-6)
        np.testing.assert_allclose(known.files["age.onnx"].values[row], tiny.expected_age(seen)[0], atol=1e-3)


def _scaled(data: bytes, scale: float) -> bytes:
    """The age network with another of its weight, which is 200: at 0 it answers the same for everybody."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.array([scale], np.float32), "scale"))
    made: bytes = model.SerializeToString()
    return made


def test_one_changed_weight(good: Bundle, tmp_path: Path) -> None:
    spoilt = {"age.onnx": _scaled(tiny.age_onnx(), 203.0)}
    found = faults(self_test(changed(good, tmp_path / "spoilt.hz", spoilt)))
    assert "not the file whose answers are known" in found.pop("weights of age.onnx")
    assert found and all(name.startswith("age.onnx on ") and "most" in fault for name, fault in found.items())
    # Also where the hash in the answers was changed with it.
    answers = json.loads(good.read_listed("self-test.json"))
    answers["files"]["age.onnx"]["sha256"] = load_bundle(tmp_path / "spoilt.hz").files["age.onnx"]
    spoilt["self-test.json"] = json.dumps(answers).encode()
    found = faults(self_test(changed(good, tmp_path / "forged.hz", spoilt)))
    assert {name.split(",")[0] for name in found} == {f"age.onnx on {engine}" for engine in HERE}


class _Reduced:
    """A backend that computes in bfloat16, and says so or does not."""

    def __init__(self, backend: Any, says: str) -> None:
        self._backend, self.precision = backend, says
        self.inputs, self.outputs = backend.inputs, backend.outputs

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = self._backend.run(batch)
        return {k: ((v.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32) for k, v in found.items()}

    def close(self) -> None:
        self._backend.close()


@pytest.mark.parametrize("says", ["bf16", "bf16+fp32", "fp32", ""])
def test_reduced_precision_that_an_engine_slipped_in(
    good: Bundle, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    def reduced(*arguments: Any, **named: Any) -> tuple[Any, Any]:
        backend, attempts = choose(*arguments, **named)
        return _Reduced(backend, says), attempts

    monkeypatch.setattr(module, "choose", reduced)
    found = faults(self_test(good))
    for engine in HERE:
        arithmetic = found.get(f"arithmetic of harmonizer.onnx on {engine}", "")
        assert (f"computed in {says or 'what it does not say'}" in arithmetic) == (says != "fp32")
        assert "mean" in found[f"harmonizer.onnx on {engine}, 1 thread"]  # whatever it says


def test_a_wrong_template(good: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mni152", lambda: SimpleNamespace(sha256="0" * 64))
    assert list(faults(self_test(good))) == ["template"]
    monkeypatch.undo()
    recipe = {**Recipe().to_dict(), "intensity": "median"}
    found = faults(self_test(changed(good, tmp_path / "recipe.hz", {}, recipe=recipe)))
    assert "the recipe or its code is another" in found["scan to model space"]


def test_a_network_that_answers_the_same_for_everybody(tmp_path: Path) -> None:
    """Also where the self-test was made with it."""
    files = {**tiny.tiny_files(), "age.onnx": _scaled(tiny.age_onnx(), 0.0)}
    bundle = write_bundle(tmp_path / "same.hz", tiny.tiny_manifest(), files)
    found = faults(self_test(add_self_test(bundle.path)))
    assert found == {f"age.onnx on {engine}": "answers the same for everybody" for engine in HERE}


def test_niimath_of_another_version(good: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("niimath")
    words = "Chris Rorden's niimath version v1.0.20240101 OpenMP GCC10.2.1"
    monkeypatch.setattr(module, "niimath_words", lambda: words)
    found = faults(self_test(good))
    assert list(found) == ["niimath"] and "v1.0.20240101" in found["niimath"]
    monkeypatch.undo()
    monkeypatch.setattr(module, "version", lambda _: "1.0.1")
    assert list(faults(self_test(good))) == ["niimath"]


def test_what_it_holds_the_installation_to_is_what_hz_pins() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"niimath=={module.NIIMATH}" in extras["prep"]
    from hz_runtime.preparation.template import mni152

    assert mni152().sha256 == module.TEMPLATE_SHA256


def test_no_engine_is_a_fault(good: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing", lambda _: ("not installed", ""))
    assert list(faults(self_test(good))) == ["engines"]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(version=2),
        lambda a: a.pop("files"),
        lambda a: a["files"]["age.onnx"].update(values=[[1], ["x"]]),
        lambda a: a["files"].update(x=1),
    ],
)
def test_answers_that_cannot_be_read(
    good: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    answers = json.loads(good.read_listed("self-test.json"))
    change(answers)
    spoilt = changed(good, tmp_path / "x.hz", {"self-test.json": json.dumps(answers).encode()})
    with pytest.raises(BundleError, match=r"x.hz: self-test.json cannot be read"):
        self_test(spoilt)
    with pytest.raises(BundleError, match="names files that it does not list"):
        self_test(changed(good, tmp_path / "y.hz", {}, self_test={"scan": "no", "answers": "../x"}))


def test_hz_run_self_test(good: Bundle, tmp_path: Path) -> None:
    done = CliRunner().invoke(command.main, ["--model", str(good.path), "--self-test"])
    assert done.exit_code == 0 and "all passed" in done.output and "ok      age.onnx on" in done.output
    bare = tiny.make_tiny_bundle(tmp_path / "bare.hz")
    done = CliRunner().invoke(command.main, ["--self-test", "--model", str(bare)])
    assert done.exit_code == 2 and "bare.hz carries no self-test" in done.stderr
    added = CliRunner().invoke(hz_bundle, ["self-test", str(bare)])
    assert added.exit_code == 0 and "bare.hz carries a self-test" in added.output
    spoilt = changed(good, tmp_path / "spoilt.hz", {"age.onnx": _scaled(tiny.age_onnx(), 203.0)})
    done = CliRunner().invoke(command.main, ["--self-test", "-q", "--model", str(spoilt.path)])
    assert done.exit_code == 1 and "FAILED  weights of age.onnx" in done.output and "ok " not in done.output
    assert CliRunner().invoke(command.main, []).exit_code == 2
    with pytest.raises(UsageError):
        self_test(load_bundle(tiny.make_tiny_bundle(tmp_path / "none.hz")))


def test_a_file_that_some_engine_does_not_run_is_no_fault(
    good: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime's CPU and bfloat16; a float32 file must run on every engine."""

    def refusing(bundle: Bundle, role: str, *arguments: Any, **named: Any) -> Any:
        if (role, named["precision"].precision) in refused:
            raise BackendError("no such operation.")
        return choose(bundle, role, *arguments, **named)

    monkeypatch.setattr(module, "choose", refusing)
    refused = {("age", "fp16")}
    done = self_test(good)
    assert not done.failed
    assert {c.name: c.note for c in done.checks}[f"age.fp16.onnx on {HERE[0]}"] == "no such operation."
    refused = {("age", "fp32")}
    assert faults(self_test(good)) == {f"age.onnx on {engine}": "no such operation." for engine in HERE}
