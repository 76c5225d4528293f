"""Bundles and checkpoints that studies judge: on the grid, and as hz-run writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")

from click.testing import CliRunner

from hz_runtime.errors import UsageError
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.guided_filter import native_harmonized
from hz_runtime.model_space.recipe import Recipe, to_model_space
from hz_train.cohort import Cohort, Scan
from hz_train.studies.trained_harmonizer import TrainedHarmonizer, recipe_of, system_of, translate, unseen
from small_checkpoints import write_harmonizer
from small_scans import write_scan
from tiny import expected_harmonized, random_volumes


def test_a_bundle_as_a_method(tiny_bundle: Path) -> None:
    judged = TrainedHarmonizer(tiny_bundle)
    assert (system_of(tiny_bundle), recipe_of(tiny_bundle)) == ("volume", Recipe())
    assert judged.name == f"3D CycleGAN, {tiny_bundle.name}"
    assert judged.known_sites == {"site-a", "site-b"} and judged.seen == frozenset()
    judged.map_to("site-b")
    volumes = random_volumes(2)[:, 0]
    made = judged.apply(volumes, ["site-a", "site-b"])
    np.testing.assert_allclose(made[0], expected_harmonized(volumes[:1, None])[0, 0], atol=1e-6)
    np.testing.assert_array_equal(made[1], volumes[1])
    with pytest.raises(UsageError, match="maps to site-b, not to oslo"):
        judged.map_to("oslo")


def test_a_bundle_writes_what_hz_run_writes(tiny_bundle: Path, tmp_path: Path) -> None:
    from hz_cli.run import main

    path = write_scan(tmp_path / "in" / "head.nii.gz")
    asked = [path, "--model", tiny_bundle, "--out", tmp_path / "out", "--dtype", "float32", "--no-report"]
    done = CliRunner().invoke(main, [*map(str, asked), "--backend", "onnxruntime-cpu"])
    assert done.exit_code == 0, done.output
    (file,) = (tmp_path / "out").glob("*desc-harmonized_T1w.nii.gz")
    written = TrainedHarmonizer(tiny_bundle).written(read_volume(path))
    np.testing.assert_allclose(written, read_volume(file).data, atol=1e-5)
    assert written.max() > 0.5


def test_a_checkpoint_writes_by_the_runtimes_own_steps(tmp_path: Path) -> None:
    recipe = Recipe(grid_shape=(32, 32, 32))
    path = write_harmonizer(tmp_path, recipe=recipe.to_dict())
    volume = read_volume(write_scan(tmp_path / "head.nii.gz"))
    given = to_model_space(volume, recipe)
    wanted = native_harmonized(volume, given, translate(path, given.grid[None], "cpu")[0])
    np.testing.assert_allclose(TrainedHarmonizer(path, "cpu").written(volume), wanted, atol=1e-5)
    holed = volume.data.copy()
    missing = np.zeros(holed.shape, bool)
    missing[25, 30, 25] = True
    holed[missing] = 0
    written = TrainedHarmonizer(path, "cpu").written(replace(volume, data=holed, missing=missing))
    assert np.isfinite(written).all()


def test_a_bundle_does_not_say_whom_it_has_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    cohort = Cohort((Scan(write_scan(tmp_path / "a.nii.gz"), "a", "oslo", 30.0, "n/a", "control"),))
    with pytest.raises(UsageError, match="does not say which scans it was trained on"):
        unseen(cohort, tiny_bundle)
