"""The card says what the checkpoints say."""

from __future__ import annotations

import pytest

from card_facts import MANIFEST, META
from hz_export.model_card import NOT_FOR, model_card


@pytest.fixture
def card() -> str:
    return model_card("reference", MANIFEST, {"harmonizer": META, "age": {**META, "target": None}})


@pytest.mark.parametrize(
    "line",
    [
        "| basel | 40 | 38 | 18.5 to 71 |",
        "83 scans of 77 subjects; ages unknown.",
        "| restoration / before | 0.08125 | 0.07 to 0.0925 | 13 | one \\| two |",
        "| restoration / after | 0.025 | not stored | 13 |  |",
        "| epochs run | 19 | not stored |  |  |",
        "| seed | 4711 |",
        "| schedule.milestones | 10, 15 |",
        "| brain cm3 | 950 | 1650 | 1280 | 110 |",
        "| harmonizer.onnx | fp32 | 5,256,476 | not measured | unproven (--no-parity) |",
    ],
)
def test_tables_hold_the_checkpoints_numbers(card: str, line: str) -> None:
    assert line in card.splitlines()


def test_card_says_what_it_is_not_for_and_the_correction(card: str) -> None:
    for line in NOT_FOR:
        assert f"- {line}" in card
    assert "basel and leipzig" in card
    assert "0.5 * age + 18.25 years (n = 61; folds)" in card
    assert "scatter of single predictions by 2." in card
    assert "CC0-1.0" in card


def test_card_admits_what_is_missing() -> None:
    bare = {**MANIFEST, "age_bias": None, "licence": "", "statistics": {}}
    card = model_card("x", bare, {"age": {"metrics": {}}})
    assert "None are stored in the checkpoint." in card
    assert "stay pulled towards the mean age" in card
    assert "Not stated in the checkpoints." in card


def test_card_says_whether_scans_are_scored_as_a_whole(card: str) -> None:
    """Of bundles of before outlier scores, the shipped one among them, that nothing does it."""
    assert "## Outlier score\n\nNone: the bundle holds no reference of its training scans" in card
    scored = model_card("x", {**MANIFEST, "cohort": {"reference": {"n": 67}}}, {"harmonizer": META})
    assert "compared with 67 training scans" in scored and "robust score of any of them exceeds 5." in scored


def test_a_note_stands_on_the_card():
    card = model_card("x", MANIFEST, {"harmonizer": META}, "The scores were looked at twice.")
    assert "## Note\n\nThe scores were looked at twice." in card
    assert "## Note" not in model_card("x", MANIFEST, {"harmonizer": META})
