"""The bill of materials of a bundle says what its manifest and its card say, in CycloneDX's own form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from hz_cli.bundle import bundle as hz_bundle
from hz_export.ml_bom import ml_bom
from hz_runtime.bundle.store import load_bundle
from hz_runtime.io.atomic import sha256_file

pytestmark = pytest.mark.requirement("known-parts")

SCORES = {"mae_years": {"value": 5.25, "ci95": [4.125, 6.5], "n": 20, "how": "made up"}}


@pytest.fixture
def bom(tmp_path: Path) -> dict:
    manifest = {**tiny.tiny_manifest(), "metrics": {"age": SCORES, "harmonizer": {}}}
    from hz_runtime.bundle.store import write_bundle

    write_bundle(tmp_path / "site.hz", manifest, tiny.tiny_files())
    done = CliRunner().invoke(
        hz_bundle, ["bom", str(tmp_path / "site.hz"), "--out", str(tmp_path / "b.json")]
    )
    assert done.exit_code == 0, done.output
    found: dict = json.loads((tmp_path / "b.json").read_bytes())
    return found


def test_every_file_with_its_hash(bom: dict, tmp_path: Path) -> None:
    listed = {part["name"]: part["hashes"] for part in bom["components"]}
    on_disk = {path.name: sha256_file(path) for path in (tmp_path / "site.hz").iterdir()}
    assert listed == {name: [{"alg": "SHA-256", "content": sha}] for name, sha in on_disk.items()}
    manifest = json.loads((tmp_path / "site.hz" / "bundle.json").read_text())
    assert {name: listed[name][0]["content"] for name in manifest["files"]} == manifest["files"]
    assert bom["metadata"]["component"]["version"] == manifest["id"]


def test_scores_with_their_intervals(bom: dict) -> None:
    cards = {part["name"]: part["modelCard"] for part in bom["components"] if "modelCard" in part}
    assert set(cards) == {name for name in tiny.tiny_files() if name.endswith(".onnx")}
    (metric,) = cards["age.onnx"]["quantitativeAnalysis"]["performanceMetrics"]
    assert (metric["type"], float(metric["value"])) == ("mae_years", 5.25)
    limits = metric["confidenceInterval"]
    assert [float(limits["lowerBound"]), float(limits["upperBound"])] == [4.125, 6.5]
    assert not cards["harmonizer.onnx"]["quantitativeAnalysis"]["performanceMetrics"]
    assert any("Diagnosis" in line for line in cards["age.onnx"]["considerations"]["technicalLimitations"])


def test_the_reference_bundles_scores_are_those_of_its_card() -> None:
    bundle = load_bundle()
    card = (bundle.path / "MODEL_CARD.md").read_text()
    seen = 0
    for part in ml_bom(bundle)["components"]:
        for metric in part.get("modelCard", {}).get("quantitativeAnalysis", {}).get("performanceMetrics", []):
            limits = [float(metric["confidenceInterval"][end]) for end in ("lowerBound", "upperBound")]
            shown = " to ".join(f"{limit:.4g}" for limit in limits)
            assert f"| {float(metric['value']):.4g} | {shown} |" in card
            seen += 1
    assert seen >= 4


def test_cyclonedx_accepts_it(bom: dict) -> None:
    pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    strict = JsonStrictValidator(SchemaVersion.V1_6)
    assert strict.validate_str(json.dumps(bom)) is None
    assert strict.validate_str(json.dumps(ml_bom(load_bundle()))) is None
    assert strict.validate_str(json.dumps({**bom, "more": 1})) is not None
