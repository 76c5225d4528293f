"""Every item of the two guidelines is on the card, answered where the checkpoints answer it, else missing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from card_facts import MANIFEST, META
from hz_export import reporting_items
from hz_export.model_card import model_card

SCORE = {"value": 0.5, "ci95": [0.25, 0.75], "n": 13, "how": "held out"}
WHOLE: dict[str, Any] = {
    **META,
    "kind": "volume_cyclegan",
    "settings": {"width": 8},
    "metrics": {"travelling_head": {"before": SCORE, "after": SCORE}},
    "cohort": {"training": {**META["cohort"]["training"], "age_range": [20, 60]}},
}


def _numbers(text: str, guideline: str) -> list[str]:
    """1, 2, 3a ... of "CLAIM 1, 2; TRIPOD+AI 3a"; ranges are spelt out."""
    found: list[str] = []
    for part in text.split(";"):
        if part.strip().startswith(guideline):
            for item in part.strip().removeprefix(guideline).split(","):
                first, _, last = item.strip().partition(" to ")
                found += [str(n) for n in range(int(first), int(last) + 1)] if last else [first]
    return found


def _answers(card: str) -> dict[str, str]:
    rows = re.findall(
        r"^\| ((?:CLAIM|TRIPOD)[^|]*) \| [^|]* \| ([^|]*) \|$", card.split("## Reporting guidelines")[1], re.M
    )
    return dict(rows)


def test_each_item_of_both_guidelines_stands_once() -> None:
    """CLAIM 2024 has items 1 to 44, TRIPOD+AI 1 to 27 in 52 parts."""
    everything = [*(item.numbers for item in reporting_items.ITEMS)]
    everything += [reporting_items.OF_PAPERS, reporting_items.OF_OTHER_MODELS]
    claim = [number for text in everything for number in _numbers(text, "CLAIM ")]
    assert sorted(claim, key=int) == [str(n) for n in range(1, 45)]
    parts = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef"}
    parts |= {20: "abc", 23: "ab", 27: "abc"}
    wanted = [f"{n}{part}" for n in range(1, 28) for part in parts.get(n, [""])]
    tripod = [number for text in everything for number in _numbers(text, "TRIPOD+AI ")]
    assert sorted(tripod) == sorted(wanted)
    assert len(wanted) == 52


def test_answered_items_name_sections_that_the_card_has() -> None:
    answers = _answers(model_card("x", MANIFEST, {"harmonizer": WHOLE}))
    headings = re.findall(r"^#+ (.*)$", model_card("x", MANIFEST, {"harmonizer": WHOLE}), re.M)
    places = [answer.split(";")[0] for answer in answers.values() if answer != "missing"]
    assert len(places) >= 12
    assert set(places) <= set(headings)
    assert answers["CLAIM 29, 37; TRIPOD+AI 21, 23a"] == "Scores; missing: scores of subgroups"
    assert answers["CLAIM 30"] == "Scores"
    # The guidelines' own words: implications for practice with the intended use, who is needed to use the
    # model and with what expertise; how predictions are calculated; input of poor quality.
    assert answers["CLAIM 3, 41; TRIPOD+AI 3b, 27b"] == "Intended use"
    assert answers["CLAIM 22, 27; TRIPOD+AI 12c, 12g, 22"].startswith("Files")
    assert answers["TRIPOD+AI 27a"] == "Input range"


@pytest.mark.parametrize(
    ("item", "without"),
    [
        ("CLAIM 29, 37; TRIPOD+AI 21, 23a", {"metrics": {"a": {"value": 1.0, "n": 13, "how": "held out"}}}),
        ("CLAIM 28, 32; TRIPOD+AI 12e", {"metrics": {"a": {"value": 1.0, "n": 13}}}),
        ("CLAIM 19, 20; TRIPOD+AI 12a", {"split": None}),
        ("CLAIM 24", {"seed": None}),
        ("CLAIM 25", {"settings": None}),
        ("CLAIM 30", {"metrics": {}}),
        ("CLAIM 36; TRIPOD+AI 20b", {"cohort": META["cohort"]}),  # whose ages are unknown
    ],
)
def test_what_a_checkpoint_does_not_hold_is_missing(item: str, without: dict[str, Any]) -> None:
    assert _answers(model_card("x", MANIFEST, {"harmonizer": WHOLE}))[item] != "missing"
    assert _answers(model_card("x", MANIFEST, {"harmonizer": {**WHOLE, **without}}))[item] == "missing"


def test_the_number_of_missing_items_is_said_and_items_follow_the_roles() -> None:
    card = model_card("x", MANIFEST, {"harmonizer": WHOLE})
    answers = _answers(card)
    missing = sum(answer == "missing" for answer in answers.values())
    assert f"Of {len(answers)} subjects {missing} are missing" in card
    assert "TRIPOD+AI 12f, 24" not in answers  # nobody's age to correct
    assert "CLAIM 38" not in answers
    age = {**WHOLE, "kind": "age_cnn"}
    aged = _answers(model_card("x", MANIFEST, {"age": age}))
    assert aged["TRIPOD+AI 12f, 24"] == "Age-bias correction"
    assert aged["TRIPOD+AI 15"] == "missing"  # MANIFEST has no interval
    diagnosis = _answers(model_card("x", MANIFEST, {"diagnosis": {**WHOLE, "kind": "slice_resnet"}}))
    assert diagnosis["CLAIM 38"] == "Scores"


def test_a_harmonizer_that_went_on_from_another_says_from_which() -> None:
    card = model_card("x", MANIFEST, {"harmonizer": {**WHOLE, "started_from": {"sha256": "ab" * 32}}})
    assert f"| started_from | {'ab' * 32} |" in card
    assert "started_from" not in model_card("x", MANIFEST, {"harmonizer": WHOLE})
