"""Predictors of a bundle flag a scan as hz-run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import tiny
from hz_runtime.batch.run import run_batch
from hz_runtime.bundle.store import load_bundle, write_bundle
from hz_runtime.inference.open import open_networks
from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.model_space.levels import white_level
from hz_runtime.model_space.outliers import reference_of
from hz_runtime.model_space.recipe import Recipe, describe


def cohort_reference() -> dict[str, Any]:
    """Of twelve blobs that are unlike any head."""
    at = np.indices((64, 64, 64), np.float32) - 32
    grids = np.stack([np.clip(1 - np.sqrt((at**2).sum(0)) / (18 + n / 4), 0, 1) for n in range(12)])
    assert (grids > foreground_threshold(grids)).any((1, 2, 3)).all()
    return reference_of(grids, [describe(grid, Recipe()) for grid in grids])


def narrow(manifest: dict[str, Any]) -> dict[str, Any]:
    """A training cohort that every scan is unlike, and an interval."""
    manifest["statistics"] = {"brain_cm3": {"min": 1.0, "max": 2.0, "mean": 1.5, "sd": 0.1}}
    manifest["cohort"] = {**manifest["cohort"], "age_range": [1.0, 2.0], "reference": cohort_reference()}
    width = {"half_width": 8.5, "coverage": {"value": 0.9, "ci95": [0.85, 0.95], "n": 30, "how": "folds"}}
    manifest["age_interval"] = {
        "level": 0.9,
        "n": 30,
        "method": "m",
        "how": "h",
        "raw": width,
        "corrected": width,
    }
    return manifest


@pytest.mark.parametrize("unusual", [True, False])
def test_python_gives_the_flags_of_hz_run(head, tmp_path: Path, unusual: bool) -> None:
    data, affine = head()
    affine = affine.copy()
    affine[1, 3] += 40  # shifted into place, which is no flag
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "sub-01_T1w.nii.gz")
    manifest = narrow(tiny.tiny_manifest()) if unusual else tiny.tiny_manifest()
    write_bundle(tmp_path / "tiny.hz", manifest, tiny.tiny_files())
    bundle = load_bundle(tmp_path / "tiny.hz")
    (scan,) = run_batch([tmp_path / "sub-01_T1w.nii.gz"], bundle, tmp_path / "out").scans

    read = nib.load(tmp_path / "sub-01_T1w.nii.gz")
    networks = open_networks(bundle)
    harmonizer, predictor = networks.harmonizer, networks.age_predictor
    result = harmonizer.volume(read.get_fdata(dtype="float32"), read.affine)
    ages = predictor(result.grid)
    flags = predictor.flags(ages.corrected[0], result.prepared.flags)
    assert flags == scan.flags
    said = "; ".join(flags)
    assert "shifted" not in said
    for part in ("brain_cm3", "robust score", "predicted age", "age interval was not made for"):
        assert (part in said) is unusual, part
    stored = json.loads((tmp_path / "out" / scan.outputs[1]).read_text())
    assert tuple(stored["hz"]["flags"]) == flags


def test_harmonized_scans_have_the_white_matter_level_of_the_recipe(head, tmp_path: Path) -> None:
    manifest = tiny.tiny_manifest()
    manifest["recipe"] = {**manifest["recipe"], "white_level": 0.5}
    write_bundle(tmp_path / "tiny.hz", manifest, tiny.tiny_files())
    harmonizer = open_networks(load_bundle(tmp_path / "tiny.hz")).harmonizer
    data, affine = head()
    grid = harmonizer.volume(data.astype(np.float32), affine).prepared.grid
    made = harmonizer(np.stack([grid, 0.8 * grid]))
    assert [white_level(volume) for volume in made] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert harmonizer(grid).shape == grid.shape


def test_an_age_that_is_none_is_flagged_and_has_no_interval(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny.hz", narrow(tiny.tiny_manifest()), tiny.tiny_files())
    predictor = open_networks(load_bundle(tmp_path / "tiny.hz")).age_predictor
    assert predictor.flags(float("nan")) == ("the age network gave no number",)
    assert predictor.flags(1.5) == ()
    assert predictor.flags(1.5, ("dark",)) == (
        "dark", "the 90% age interval was not made for such a scan: it may not hold the age",
    )  # fmt: skip
