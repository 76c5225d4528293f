"""A prediction on its way: from what was computed to a table, a record and a page, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.inference.predictors import Ages
from hz_runtime.model_space.image_quality import Quality
from hz_runtime.report import predictions as shown
from hz_runtime.report.image_quality import listing
from hz_runtime.results.image_quality import quality_words
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.prediction import Answers, Prediction
from hz_runtime.results.predictions_tsv import predictions_tsv
from hz_runtime.results.record import Record, read_record
from hz_runtime.results.scan_result import ScanResult

WHOLE = Prediction(41.26, 44.04, (35.5, 52.5), diagnosis_probability=0.1234)
RUN = {
    "age": {"age_interval_coverage": 0.9},
    "diagnosis": {"negative": "control", "positive": "patient <1>"},
}


QUALITY = tuple(
    one.to_dict()
    for one in (
        Quality("noise", 0.09, 0.06),
        Quality("blur", 4.5, 7.0),
        Quality("ghosts", None, None, "too little <white> matter"),
        Quality("field", 0.5, None, "nobody took it out"),
    )
)


def scan(prediction: Prediction, age: float | None = None, flags: tuple[str, ...] = ()) -> ScanResult:
    quality = QUALITY if prediction == WHOLE else ()
    return ScanResult("a.nii", "a", "ok", prediction=prediction, age=age, flags=flags, quality=quality)


def test_it_is_read_from_its_row_of_the_answers() -> None:
    raw = np.array([10.0, 20.00004, np.nan])
    ages = Ages(raw, raw + 1, np.stack([raw - 5, raw + 5], axis=1))
    probabilities = np.array([0.5, 0.25, np.nan])

    def of(row: int, **changes: object) -> Prediction:
        whole = Answers(None, np.zeros(3, np.float32), row, ages, True, probabilities)  # type: ignore[arg-type]
        return Prediction.of(replace(whole, **changes))  # type: ignore[arg-type]

    assert of(1) == Prediction(20.0, 21.0, (15.0, 25.0), diagnosis_probability=0.25)
    assert of(1, corrects=False).age_corrected is None
    assert of(2) == of(1, ages=None, probabilities=None) == Prediction()


def test_the_age_to_show_is_the_corrected_one() -> None:
    assert WHOLE.age == 44.04 and WHOLE.brain_pad(40.0) == pytest.approx(4.04)
    assert Prediction(41.26).age == 41.26
    assert Prediction().age is None and Prediction().brain_pad(40.0) is None and WHOLE.brain_pad(None) is None


def test_run_json_gives_it_back() -> None:
    result = scan(WHOLE, 40.0, ("odd",))
    stored = json.loads(json.dumps(result.to_dict()))
    assert list(stored)[6:12] == [
        *("age_raw", "age_corrected", "age_interval", "age", "brain_pad", "diagnosis_probability")
    ]
    assert stored["age_interval"] == [35.5, 52.5]
    assert ScanResult.from_dict({**stored, "site": "A"}) == result
    for wrong in ({"age_raw": "old"}, {"age_interval": [1.0]}, {"age_interval": [1.0, None]}):
        with pytest.raises((TypeError, ValueError)):
            ScanResult.from_dict({**stored, **wrong})


def test_a_record_without_one_of_them_is_none_of_this_version(tmp_path: Path) -> None:
    """So that results of before there was a new output are made again, and hold it then."""
    path = tmp_path / "a.json"

    def stored(prediction: Prediction, without: str = "") -> Record | None:
        content = Record("s", "b", "f", "ok", (), prediction, {}, None, 0.9).to_dict()
        content["predictions"].pop(without, None)
        path.write_text(json.dumps({"hz": content}))
        return read_record(path)

    for prediction in (WHOLE, Prediction(), Prediction(41.0)):
        record = stored(prediction)
        assert record is not None and record.prediction == prediction
    assert stored(WHOLE, without="age_corrected") is None
    without = stored(WHOLE, without="age_interval")
    assert without is not None and without.prediction.age_interval is None


def test_the_table_has_the_columns_of_the_run() -> None:
    rows = [scan(WHOLE, 40.0, ("odd\tvalue",)), scan(Prediction(41.0))]
    lines = predictions_tsv(rows, RunOutputs.of(RUN)).decode().splitlines()
    assert [line.split("\t") for line in lines] == [
        [
            *("input", "status", "age_raw", "age_corrected", "age_low", "age_high", "age", "brain_pad"),
            *("diagnosis_probability", "probability_of"),
            *("image_quality", "noise", "blur_mm", "ghosts", "field", "flags"),
        ],
        [
            *("a.nii", "ok", "41.26", "44.04", "35.50", "52.50", "40.00", "4.04"),
            *("0.1234", "patient <1>", "look at it (noise)", "0.09", "4.5", "n/a", "0.5", "odd value"),
        ],
        ["a.nii", "ok", "41.00", *["n/a"] * 6, "patient <1>", *["n/a"] * 6],
    ]
    for run in ({}, {"age": {"age_interval_coverage": None}}, {"age": 3, "diagnosis": "no"}):
        header = predictions_tsv([], RunOutputs.of(run)).decode()
        names = header.removesuffix("\n").split("\t")
        assert names[:6] == ["input", "status", "age_raw", "age_corrected", "age", "brain_pad"]
        assert names[6:] == ["image_quality", "noise", "blur_mm", "ghosts", "field", "flags"]


def test_the_report_shows_the_same_outputs() -> None:
    run = {**RUN, "scans": [scan(WHOLE, 44.08).to_dict(), {"age_raw": float("nan"), "age_interval": [3, 1]}]}
    outputs = shown.outputs_of(run)
    label = "Probability of patient &lt;1&gt;"
    assert shown.headings(outputs) == [
        *("Age, raw", "corrected", "90 % interval", "known", "difference", label, "Image quality")
    ]
    first, second = (shown.cells(one, outputs) for one in run["scans"])
    assert first == ["41.3", "44.0", "35.5 to 52.5", "44.1", "+0.0", "0.12", "look at it (noise)"]
    assert second == [""] * 7
    facts = dict(shown.facts(run["scans"][0], outputs))
    assert facts == {
        "Age, raw": "41.3 years",
        "Age, corrected": "44.0 years",
        "90 % interval": "35.5 to 52.5 years",
        "Known age": "44.1 years",
        label: "0.12",
    }
    assert "of patient &lt;1&gt; rather than control" in shown.column_legend(outputs)
    named = ["Age, raw", "corrected", "known", "difference", "Image quality"]
    assert shown.headings(shown.outputs_of({"scans": []})) == named


def test_the_report_lists_the_image_quality_with_lights_and_reasons() -> None:
    rows = listing(scan(WHOLE).to_dict()).split("<li>")[1:]
    assert [row.split('"gate-name">')[1].split("<")[0] for row in rows] == [
        "noise",
        "blur",
        "ghosts",
        "field",
    ]
    assert 'aria-label="failed"' in rows[0] and "0.09 of the white" in rows[0] and "(at most 0.06" in rows[0]
    assert 'aria-label="passed"' in rows[1] and "4.5 mm" in rows[1]
    assert "aria-label" not in rows[2] and "not measured: too little &lt;white&gt; matter" in rows[2]
    assert "aria-label" not in rows[3] and "nobody took it out" in rows[3] and "0.5 of" in rows[3]
    assert listing({}) == listing({"quality": [3, {"verdict": "ok"}]}) == ""


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ([], None),
        (["n/a", "n/a"], "n/a"),
        (["n/a", "ok"], "ok"),
        (["ok", "look at it"], "look at it (m1)"),
    ],
)
def test_the_verdict_is_the_worst_of_what_was_judged(verdicts: list[str], words: str | None) -> None:
    assert quality_words([{"measure": f"m{n}", "verdict": v} for n, v in enumerate(verdicts)]) == words
