"""hz-calibrate at the command line: quick help, a plan that hz-export follows, errors a user can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from help_pages import help_of
from hz_cli.calibrate import main


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the two small networks, on a grid of 16^3."""
    pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")
    from hz_runtime.bundle.store import write_bundle
    from hz_runtime.model_space.recipe import Recipe
    from small_networks import GRID, age, harmonizer
    from tiny import tiny_manifest

    manifest: dict[str, Any] = tiny_manifest()
    manifest["models"] = [entry for entry in manifest["models"] if entry["precision"] == "fp32"]
    for entry in manifest["models"]:
        for spec in (*entry["inputs"], *entry["outputs"]):
            spec["shape"][2:] = GRID if len(spec["shape"]) == 5 else []
    manifest["recipe"] = Recipe(grid_shape=GRID).to_dict()
    files = {
        "harmonizer.onnx": harmonizer().SerializeToString(),
        "age.onnx": age().SerializeToString(),
        "MODEL_CARD.md": b"# Small\n",
    }
    path = tmp_path_factory.mktemp("small") / "small.hz"
    write_bundle(path, manifest, files)
    return path


@pytest.fixture(scope="module")
def scans_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_scans import write_scans

    folder = tmp_path_factory.mktemp("scans")
    write_scans(folder, 3)
    rows = [f"sub-{n:02}_T1w.nii.gz\t{'oslo' if n == 1 else 'basel'}" for n in (1, 2, 3)]
    (folder / "participants.tsv").write_text("\n".join(["file\tsite", *rows]) + "\n")
    return folder


def test_help_imports_nothing_heavy() -> None:
    shown, imported = help_of("calibrate")
    assert "--participants TSV" in shown
    assert not imported


def test_a_bundles_harmonizer_is_planned_and_the_plan_can_be_followed(
    bundle: Path, scans_made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    command = (bundle, scans_made, "--participants", scans_made / "participants.tsv", "--out", out)
    done = calibrate(*command, "--count", 2, "--budget", "mean=0.5", "--no-half", "--method", "minmax")
    assert done.exit_code == 0, done.output
    assert "harmonizer: 2 scans of 2 sites (basel, oslo)" in done.output
    assert "plan.json: 4 of 6 convolutions in int8, ranges by minmax" in done.output.splitlines()[-1]
    assert "fp32: Conv last, the last convolution makes the result" in done.output

    from hz_calibration.plan import read_plan
    from hz_export.quantize import to_int8
    from small_networks import harmonizer

    plan = read_plan(out)
    assert plan.role == "harmonizer"
    assert plan.budget.intensity == 0.5 and plan.budget.years is None
    assert {scan.site for scan in plan.scans} == {"oslo", "basel"}
    assert plan.whole["int8"].years is not None  # the age network of the bundle was asked too
    kinds = [node.op_type for node in to_int8(harmonizer(), plan).graph.node]
    assert kinds.count("QuantizeLinear") == 4

    again = calibrate(*command)
    assert again.exit_code == 2
    assert "plan.json exists" in again.output


def test_the_age_network_of_a_bundle_sees_harmonized_scans(
    bundle: Path, scans_made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    done = calibrate(
        bundle, scans_made, "--role", "age", "--count", 1, "--method", "minmax", "--no-half", "-q", "-o", out
    )
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 1
    raw = json.loads(out.read_text())
    assert raw["role"] == "age" and raw["budget"]["years"] == 0.4

    import numpy as np

    from hz_calibration.deviation import answers
    from hz_calibration.ranges import collect
    from hz_calibration.samples import choose
    from hz_runtime.model_space.recipe import Recipe
    from small_networks import GRID, age, harmonizer

    grids = choose([scans_made], Recipe(grid_shape=GRID), count=1).grids
    seen = collect(age(), ["a_pool_out"], answers(harmonizer(), grids))["a_pool_out"]
    assert raw["ranges"]["a_pool_out"]["amax"] == pytest.approx(seen.range("minmax").amax)
    assert not np.isclose(
        raw["ranges"]["a_pool_out"]["amax"], collect(age(), ["a_pool_out"], grids)["a_pool_out"].high
    )


@pytest.mark.parametrize("text", ["0.5", "mean", "mean=-1", "years=nan", "p999=1"])
def test_a_malformed_budget_is_a_usage_error(bundle: Path, scans_made: Path, text: str) -> None:
    done = calibrate(bundle, scans_made, "-o", "x.json", "--budget", text)
    assert done.exit_code == 2
    assert "is none of mean=X, years=X" in done.output


def test_folders_without_scans_are_one_message(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = calibrate(bundle, tmp_path / "none", "-o", tmp_path / "x.json")
    assert done.exit_code == 2
    assert "there are no scans" in done.output and "Traceback" not in done.output


def test_a_folder_that_is_no_bundle_is_refused(scans_made: Path, tmp_path: Path) -> None:
    done = calibrate(scans_made, scans_made, "-o", tmp_path / "x.json")
    assert done.exit_code == 4, done.output


def test_without_onnx_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, tmp_path: Path
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else object())
    done = calibrate(bundle, bundle, "-o", tmp_path / "x.json")
    assert done.exit_code == 2
    assert "needs onnx" in done.output and "hz-mri[export]" in done.output


@pytest.mark.usefixtures("exported_once")
def test_a_checkpoint_gives_the_network_that_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import tiny
    from hz_calibration.graph import fingerprint
    from hz_export.networks import read_network
    from hz_export.to_onnx import read_checkpoint, to_onnx
    from hz_runtime.bundle.store import write_bundle
    from hz_runtime.errors import UsageError
    from small_checkpoints import write_age, write_harmonizer

    harmonizer, age = write_harmonizer(tmp_path), write_age(tmp_path)
    with pytest.raises(UsageError, match=r"trained behind harmonizer .* none is given"):
        read_network(age)
    with pytest.raises(UsageError, match="holds a network for age, not for harmonizer"):
        read_network(age, "harmonizer", harmonizer)
    found = read_network(age, harmonizer=harmonizer)
    assert found.role == "age"
    assert found.statistics == {"brain_cm3": {"min": 950.0, "max": 1650.0, "mean": 1280.0, "sd": 110.0}}
    network = read_checkpoint(harmonizer).network
    assert fingerprint(found.before) == fingerprint(to_onnx(network, "harmonized"))

    with pytest.raises(UsageError, match=r"trained behind harmonizer f{12}\.\.\., not"):
        read_network(write_age(tmp_path, harmonizer="f" * 64), harmonizer=harmonizer)
    entry = {"checkpoint_sha256": "a" * 64}
    manifest = tiny.tiny_manifest()
    manifest["models"] = [{**model, "provenance": entry} for model in manifest["models"]]
    other = write_bundle(tmp_path / "other.hz", manifest, tiny.tiny_files())
    with pytest.raises(UsageError, match=r"trained behind harmonizer f{12}\.\.\., not a{12}\.\.\."):
        read_network(age, harmonizer=other.path)
    with pytest.raises(UsageError, match="is a harmonizer itself"):
        read_network(harmonizer, harmonizer=harmonizer)
