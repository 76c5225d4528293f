"""A contrast agent, by names as sites write them and by sidecars."""

from __future__ import annotations

from pathlib import Path

import pytest

from hz_runtime.io.contrast_agent import contrast_flags, is_agent, names_agent


@pytest.mark.parametrize(
    "name",
    ["t1_mprage_sag KM", "t1_mprage_sag_post_gd", "T1 nach KM", "SAG T1 +C", "Ax T1 C+", "t1 mprage + KM",
     "T1 post contrast", "AX T1 POSTCONTRAST", "3D T1 w/ contrast", "T1 Gadovist", "t1ce", "BraTS_001_t1c",
     "BRAVO post-Gad", "t1_mpr_ce", "T1W contrast-enhanced", "sub-01_ce-gadolinium_T1w",
     "sub-02_ses-1_ce-gd_run-1_T1w"],
)  # fmt: skip
def test_names_with_an_agent(name: str) -> None:
    assert names_agent(name)


@pytest.mark.parametrize(
    "name",
    ["t1_mprage_sag", "t1_mprage_pre_gd", "T1 ohne KM", "t1 vor KM", "T1 without contrast", "T1 w/o contrast",
     "T1 pre contrast", "MPRAGE ADNI accelerated", "t1_mprage_post", "KM_visit1_T1", "GAD_003_T1w", "T1 cor",
     "T1_ncbrain", "sub-KM_ses-post_T1w", "sub-ce_T1w", "sub-01_acq-gd_T1w", "sub-01_ce-none_T1w",
     "slow_contrast_t1"],
)  # fmt: skip
def test_names_without_one(name: str) -> None:
    assert not names_agent(name)


@pytest.mark.parametrize(("value", "given"), [
    ("Gadovist", True), ("GADOLINIUM", True), ("given", True), ("NONE", False), ("", False), (None, False),
    (" no ", False), (0, False),
])  # fmt: skip
def test_what_scanners_write_in_the_field_of_the_agent(value: object, given: bool) -> None:
    assert is_agent(value) is given


def test_a_flag_says_how_it_is_known_and_what_to_do(tmp_path: Path) -> None:
    (flag,) = contrast_flags(tmp_path / "sub-01_ce-gadolinium_T1w.nii.gz")
    assert flag.startswith("made with a contrast agent (its file name says so)")
    assert "use the scan from before the injection" in flag


@pytest.mark.parametrize(
    ("sidecar", "known"),
    [
        ('{"ContrastBolusIngredient": "GADOLINIUM"}', True),
        ('{"ContrastBolusAgent": "given"}', True),
        ('{"ContrastBolusIngredient": "none"}', False),
        ('{"EchoTime": 0.003}', False),
        ("[1]", False),
        ("{", False),
        (None, False),
    ],
)
def test_the_sidecar_beside_a_scan_speaks(tmp_path: Path, sidecar: str | None, known: bool) -> None:
    if sidecar is not None:
        (tmp_path / "a_T1w.json").write_text(sidecar)
    assert bool(contrast_flags(tmp_path / "a_T1w.nii.gz")) is known
