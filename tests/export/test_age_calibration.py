"""The age interval of an exported bundle: from the checkpoint's held-out predictions to manifest and card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hz_calibration.age_interval import calibrate
from hz_export.age_calibration import calibrated
from hz_export.assemble import export_bundle
from hz_export.export_options import ExportOptions
from hz_export.model_card import model_card
from hz_export.unfit_networks import constant_age
from hz_runtime.backends.fallback import choose
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError
from hz_runtime.inference.predictors import AgePredictor
from hz_runtime.model_space.recipe import Recipe
from small_slice_checkpoints import write_slice_predictor

N = 60
META = {
    "sources": ["oslo"],
    "harmonizer": None,
    "metrics": {"mae_years": {"n": N}},
    "cohort": {},
}


def held_out(slope: float = 0.7, n: int = N) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    ages = rng.uniform(20, 80, n)
    raw = slope * ages + 15 + rng.normal(0, 4, n)
    subjects = [f"{k:012x}" for k in range(n)]
    folds = [
        {"subjects": subjects[f::4], "trained_on": sorted(set(subjects) - set(subjects[f::4]))}
        for f in range(4)
    ]
    return {
        "age": ages.tolist(), "raw": raw.tolist(), "subjects": subjects, "how": "4 folds", "folds": folds
    }  # fmt: skip


def calibrated_age(meta: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return calibrated(meta, said.append), said


def card(found: dict[str, Any]) -> str:
    manifest = {"intended_use": "", "licence": "", "recipe": {}, "models": [], **found}
    return model_card("x", manifest, {"age": META})


def test_both_ages_get_an_interval_and_the_card_says_on_whom() -> None:
    kept = held_out()
    found, said = calibrated_age({**META, "held_out_predictions": kept})
    interval = found["age_interval"]
    folds = [(f["subjects"], f["trained_on"]) for f in kept["folds"]]
    expected = calibrate(kept["age"], kept["raw"], kept["subjects"], "4 folds", folds=folds)
    assert not isinstance(expected, str) and expected.corrected is not None
    assert interval["raw"]["half_width"] == expected.raw.half_width
    assert interval["corrected"]["half_width"] == expected.corrected.half_width
    assert interval["scans"] == "of oslo, as they are"
    assert said[-1].startswith(
        f"age interval: corrected age +- {expected.corrected.half_width:.1f} years at 90%"
    )
    text = card(found)
    assert "(60 scans of oslo, as they are; 4 folds)" in text
    assert "the subjects of each of 4 folds by the interval of the others" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| corrected |"))
    coverage = expected.corrected.coverage
    assert f"| +- {expected.corrected.half_width:.1f} | {coverage.value:.1%} (" in row
    assert row.count("of 20 aged") == 3
    assert "scan makes it" in text and "narrower" in text
    assert "scatters by 3.8% (one SD)" in text  # Beta(55, 6): sqrt(55 * 6 / (61^2 * 62))


def test_an_interval_no_better_than_the_mean_age_is_called_that() -> None:
    found, said = calibrated_age({**META, "held_out_predictions": held_out(slope=0.0)})
    assert found["age_bias"] is None and found["age_interval"]["corrected"] is None
    assert said[-1].startswith("age interval: raw age +- ")
    rng = np.random.default_rng(1)
    loud = held_out(slope=0.0)
    loud["raw"] = (np.array(loud["raw"]) + rng.normal(0, 30, N)).tolist()
    text = card(calibrated_age({**META, "held_out_predictions": loud})[0])
    assert "so that of a single person the network says no more than that" in text


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ({**META}, "keeps no held-out predictions"),
        ({**META, "held_out_predictions": held_out(n=12)}, "12 held-out subjects are too few"),
        (
            {
                **META,
                "metrics": {"mae_years": {"n": 50}},
                "held_out_predictions": {k: held_out()[k] for k in ("age", "raw", "how")},
            },
            "does not say which of its held-out predictions are of one subject",
        ),
    ],
)
def test_without_an_interval_the_card_says_why(meta: dict[str, Any], why: str) -> None:
    found, said = calibrated_age(meta)
    assert list(found["age_interval"]) == ["none"] and why in found["age_interval"]["none"]
    assert any(line.startswith("age interval: none") for line in said)
    assert "There is none, so that nothing says how far off a single age may be." in card(found)
    assert why in card(found)


def test_two_scans_of_everybody_are_no_more_people() -> None:
    kept = held_out()
    twice = {**kept, **{key: 2 * kept[key] for key in ("age", "raw", "subjects")}}
    (once, _), (found, said) = (calibrated_age({**META, "held_out_predictions": k}) for k in (kept, twice))
    pull = found["age_bias"]["regression_to_mean"]
    assert found["age_bias"]["n"] == pull["n"] == found["age_interval"]["n"] == N
    assert pull == pytest.approx(once["age_bias"]["regression_to_mean"])
    assert said[0].endswith("60 held-out subjects") and "n = 60;" in card(found)


def means_of_folds() -> dict[str, Any]:
    """Of four networks that have learned nothing but the mean age of their own training people."""
    kept = held_out()
    age_of = dict(zip(kept["subjects"], kept["age"], strict=True))
    for fold in kept["folds"]:
        for who in fold["subjects"]:
            mean = np.mean([age_of[other] for other in fold["trained_on"]])
            kept["raw"][kept["subjects"].index(who)] = float(mean)
    return kept


def test_a_network_of_one_answer_is_published_on_purpose_alone(make_age, tmp_path: Path) -> None:
    fast = ExportOptions(check_parity=False)
    ages = held_out()["age"]
    within = float(np.std(ages))
    almost = {"age": ages, "raw": [36 + 0.05 * a for a in ages], "how": "4 folds"}
    for kept, answers in ((means_of_folds(), "0.00"), (almost, f"{0.05 * within:.2f}")):
        checkpoint = make_age(held_out_predictions=kept)
        said = f"over 60 held-out scans its answers vary by {answers} years .one SD., the people's ages by "
        with pytest.raises(HzError, match=said) as refused:
            export_bundle([checkpoint], tmp_path / "a.hz", fast)
        assert "--allow-constant-age" in refused.value.remedy and not (tmp_path / "a.hz").exists()
    allowed = replace(fast, allow_constant_age=True, note="For a test.")
    bundle = export_bundle([checkpoint], tmp_path / "a.hz", allowed)
    text = " ".join((bundle.path / "MODEL_CARD.md").read_text().split())
    assert "For a test. age.safetensors answers nearly the same age for everybody" in text
    assert load_bundle(bundle.path).id == bundle.id  # made is made: nothing refuses to load it


def test_answers_that_vary_with_or_without_sense_are_no_constant() -> None:
    assert np.ptp(means_of_folds()["raw"]) > 0.5  # as if they varied, over all folds
    few = {"age": [20.0, 40.0, 60.0], "raw": [40.0, 40.0, 40.0]}
    for kept in (held_out(), held_out(slope=0.0), held_out(slope=0.15), few, None):
        assert constant_age("a", {"held_out_predictions": kept}) == ""
    for kept in ({"age": [40.0] * 9, "raw": [38.0, *[41.0] * 8]}, {"age": [40.0] * 9, "raw": [41.0] * 9}):
        assert constant_age("a", {"held_out_predictions": kept}) == ""  # of people of one age


def test_a_bundle_without_an_age_network_speaks_of_none() -> None:
    assert calibrated_age({}) == ({"age_bias": None}, [])


@pytest.mark.parametrize("system", ["volume", "slice"])
def test_an_exported_predictor_gives_its_interval(make_age, tmp_path: Path, system: str) -> None:
    kept = held_out()
    if system == "volume":
        checkpoint = make_age(held_out_predictions=kept)
    else:
        checkpoint = write_slice_predictor(tmp_path, held_out_predictions=kept)
    bundle = export_bundle([checkpoint], tmp_path / "a.hz", ExportOptions(check_parity=False))
    assert bundle.age_interval is not None and bundle.age_interval.n == N
    assert "000000000001" not in (bundle.path / "bundle.json").read_text()  # no subject, nor any prediction
    loaded = load_bundle(bundle.path)
    assert loaded.age_interval == bundle.age_interval
    width = bundle.age_interval.of(bundle.age_bias)
    grids = np.random.default_rng(0).random((2, *loaded.recipe["grid_shape"]), dtype=np.float32)
    backend, _ = choose(loaded, "age", "onnxruntime-cpu")  # the bundle holds no harmonizer
    ages = AgePredictor(backend, loaded.age_bias, Recipe.from_dict(loaded.recipe), loaded.age_interval)(grids)
    assert width is not None and ages.interval is not None
    limits = np.stack([ages.corrected - width.half_width, ages.corrected + width.half_width], 1)
    assert np.allclose(ages.interval, np.maximum(limits, 0))
