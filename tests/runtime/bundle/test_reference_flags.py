"""What the shipped bundle flags: none of the people whom its own networks were trained on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hz_runtime import load_bundle
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.recipe import Recipe, shape_alone, to_model_space
from hz_runtime.preparation.preparer import Preparation, Preparer

REFERENCE = Path(__file__).resolve().parents[3] / "models" / "reference.hz"
TRAINED_ON = ("ds002748", "ds000011", "ixi_hh")


@pytest.mark.slow
def test_no_training_person_is_flagged_as_a_stripped_brain(scans: Path) -> None:
    bundle, cohort = load_bundle(REFERENCE), scans / "real_cohort_2mm"
    recipe = Recipe.from_dict(bundle.recipe)
    with (cohort / "participants.tsv").open(newline="") as table:
        files = [row["file"] for row in csv.DictReader(table, delimiter="\t") if row["site"] in TRAINED_ON]
    assert len(files) == 80
    flagged = {
        file: flags
        for file in files
        if (flags := to_model_space(read_volume(cohort / file), recipe, bundle.statistics).flags)
    }
    assert flagged == {}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ds000011_sub-03_T1w", "IXI034-HH-1260_T1_2mm"])
def test_no_training_person_is_flagged_as_a_raw_head(head: str, scans: Path) -> None:
    pytest.importorskip("niimath")
    bundle = load_bundle(REFERENCE)
    preparer = Preparer(Preparation(brain_mask="template"))
    prepared = preparer(read_volume(scans / "wholehead" / f"{head}.nii.gz"))
    statistics = bundle.statistics_n4 or shape_alone(bundle.statistics)
    assert preparer.onto_grid(prepared, Recipe.from_dict(bundle.recipe), statistics).flags == ()
