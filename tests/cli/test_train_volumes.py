"""hz-train cyclegan and age: the recipe that a preset, an intensity rule and a harmonizer lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from click.testing import CliRunner  # noqa: E402

from hz_cli.train import train  # noqa: E402
from hz_runtime.model_space.recipe import Recipe  # noqa: E402
from hz_train.checkpoint import load_checkpoint  # noqa: E402
from small_cohort import write_cohort  # noqa: E402

QUICK = ["--preset", "quick", "--device", "cpu", "--epochs", "1"]


def recipe_of(checkpoint: Path) -> Recipe:
    return Recipe.from_dict(load_checkpoint(checkpoint)[1]["recipe"])


def call(*arguments: object) -> None:
    found = CliRunner().invoke(train, [str(a) for a in arguments], catch_exceptions=True)
    if found.exception:
        raise found.exception


def test_quick_is_coarse_and_an_age_network_reads_what_its_harmonizer_reads(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", {"oslo": 3, "rome": 3})
    sites = ["--source", "rome", "--target", "oslo", "--held-out", "0.34", "--intensity", "median"]
    call("cyclegan", "--cohort", cohort, "--out", tmp_path / "harmonizer", *QUICK, *sites)
    harmonizer = tmp_path / "harmonizer" / "harmonizer.safetensors"
    wanted = Recipe(grid_shape=(32, 32, 32), intensity="median")
    assert recipe_of(harmonizer) == wanted
    call("age", "--cohort", cohort, "--out", tmp_path / "age", *QUICK, "--harmonizer", harmonizer)
    assert recipe_of(tmp_path / "age" / "age.safetensors") == wanted
