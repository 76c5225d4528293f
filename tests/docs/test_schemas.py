"""docs/schemas: strict where they should be, and asked about what every test leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from hz_runtime.batch.run import RunOptions, run_batch
from hz_runtime.bundle.store import load_bundle
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import write_volume
from hz_runtime.results.scan_result import STAGES, STEPS
from result_schemas import FOLDER, faults, kind_of, validators, wrong_with

Json = dict[str, Any]
Change = Callable[[Json], object]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, head: Any) -> Path:
    """A folder that hz-run wrote: one good scan, one that fails, in both spaces."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "in").mkdir()
    data, affine = head()
    write_volume(folder / "in" / "sub-1.nii.gz", data, Geometry.from_affine(data.shape, affine))
    zeros = np.zeros((20, 20, 20), np.float32)
    write_volume(folder / "in" / "sub-2.nii.gz", zeros, Geometry.from_affine(zeros.shape, np.eye(4)))
    run_batch([folder / "in"], load_bundle(tiny_bundle), folder / "out", RunOptions(space="both"))
    return folder / "out"


def loaded(results: Path, kind: str) -> Json:
    name = {"run": "run.json", "harmonized": "sub-1_desc-harmonized_T1w.json"}[kind]
    content: Json = json.loads((results / name).read_bytes())
    return content


def test_the_schemas_are_schemas_of_this_draft() -> None:
    for name, validator in validators().items():
        assert validator.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(validator.schema)
        assert validator.schema["$id"] == f"urn:hz-mri:schema:{name}"
    assert {kind for name in ("run.json", "a_xfm.json") if (kind := kind_of(name))} == {"run"}
    assert {p.name for p in FOLDER.iterdir()} == {*(f"{n}.schema.json" for n in validators()), "README.md"}


def test_what_a_run_leaves_fits(results: Path) -> None:
    assert faults(results) == []
    assert len(list(results.glob("*_T1w.json"))) == 2


@pytest.mark.parametrize(
    ("kind", "change", "where"),
    [
        ("run", lambda run: run.update(more=1), "$"),
        ("run", lambda run: run.pop("bundle"), "$"),
        ("run", lambda run: run["bundle"].update(id="sha256:12"), "$.bundle.id"),
        ("run", lambda run: run["options"].update(spaces="native"), "$.options"),
        ("run", lambda run: run["scans"][0].update(status="fine"), "$.scans[0].status"),
        ("run", lambda run: run["scans"][0].update(outputs=["/tmp/a.nii.gz"]), "$.scans[0].outputs[0]"),
        ("run", lambda run: run["scans"][0].update(outputs=["../a.nii.gz"]), "$.scans[0].outputs[0]"),
        ("run", lambda run: run["scans"][0].update(age_raw="40"), "$.scans[0].age_raw"),
        ("run", lambda run: run["scans"][1].update(reason=""), "$.scans[1].reason"),
        ("run", lambda run: run["scans"][0]["seconds"].update(think=1.0), "$.scans[0].seconds"),
        ("run", lambda run: run["counts"].pop("failed"), "$.counts"),
        ("harmonized", lambda sidecar: sidecar.update(SkullStripped=False), "$.SkullStripped"),
        ("harmonized", lambda sidecar: sidecar.update(Resolution="2 mm"), "$"),
        ("harmonized", lambda sidecar: sidecar["hz"]["outputs"].clear(), "$.hz.outputs"),
        ("harmonized", lambda sidecar: sidecar["hz"].update(host="a"), "$.hz"),
        (
            "harmonized",
            lambda sidecar: sidecar["hz"]["predictions"].update(mood="a"),
            "$.hz.predictions.mood",
        ),
    ],
)
def test_what_does_not_fit_is_found(results: Path, kind: str, change: Change, where: str) -> None:
    content = loaded(results, kind)
    assert not wrong_with(content, kind)
    changed = copy.deepcopy(content)
    change(changed)
    assert any(line.startswith(f"{where}: ") for line in wrong_with(changed, kind))


def test_the_steps_of_a_scan_are_those_of_the_code() -> None:
    scan = validators()["run"].schema["$defs"]["scan"]["properties"]
    assert scan["seconds"]["propertyNames"]["enum"] == [*STAGES, *STEPS]


@pytest.mark.made_up_results
def test_files_of_every_kind_are_looked_at(tmp_path: Path) -> None:
    names = (
        "run.json",
        "logs/sub-1_run.json",
        "sub-1_desc-harmonized_T1w.json",
        "sub-1_space-MNI152_res-64_desc-harmonized_T1w.json",
        "sub-1_desc-preparation.json",
        "sub-1_from-T1w_to-MNI152_mode-image_xfm.json",
    )
    (tmp_path / "logs").mkdir()
    for name in names:
        (tmp_path / name).write_text('{"a": 1}')
    (tmp_path / "predictions.json").write_text('{"a": 1}')
    assert {line.split(": ")[0] for line in faults(tmp_path)} == {str(tmp_path / name) for name in names}


def test_no_test_can_forget(request: pytest.FixtureRequest) -> None:
    assert {"_results_fit_their_schemas", "_shared_results_fit_their_schemas"} <= set(request.fixturenames)
