"""The age interval of a bundle on its way to the results: manifest, predictor, tables, records, DICOM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.age_calibration import (
    AgeBias,
    AgeInterval,
    IntervalWidth,
    age_flags,
    age_metadata,
    known_age_flags,
)
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.results.record import read_record
from small_scans import write_scan, write_scans

ON_CPU = NetworkOptions(backend="onnxruntime-cpu")
COVERAGE = {"value": 0.91, "ci95": [0.85, 0.95], "n": 101, "how": "made up for tests"}
INTERVAL = {
    "level": 0.9,
    "n": 101,
    "n_scans": 120,
    "method": "split conformal",
    "how": "made up for tests",
    "raw": {"half_width": 7.0, "coverage": COVERAGE, "by_age": []},
    "corrected": {"half_width": 8.5, "coverage": COVERAGE, "by_age": []},
    "half_width_of_mean_age": 20.0,
}


def make(path: Path, **changes: Any) -> Bundle:
    return write_bundle(
        path, {**tiny.tiny_manifest(), "age_interval": INTERVAL, **changes}, tiny.tiny_files()
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("bundle") / "tiny.hz")


def table(out: Path) -> tuple[list[str], list[dict[str, str]]]:
    lines = [line.split("\t") for line in (out / "predictions.tsv").read_text().splitlines()]
    return lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_the_interval_is_read_and_follows_the_age_shown(bundle: Bundle) -> None:
    interval = bundle.age_interval
    assert interval is not None and (interval.level, interval.n, interval.how) == (
        0.9,
        101,
        "made up for tests",
    )
    assert interval.of(bundle.age_bias) == IntervalWidth(8.5, 0.91, (0.85, 0.95))
    assert interval.of(None) == IntervalWidth(7.0, 0.91, (0.85, 0.95))


@pytest.mark.parametrize("changes", [{}, {"age_interval": None}, {"age_interval": {"none": "too few"}}])
def test_bundles_without_one_load(tmp_path: Path, changes: dict[str, Any]) -> None:
    manifest = {**tiny.tiny_manifest(), **changes}
    assert write_bundle(tmp_path / "old.hz", manifest, tiny.tiny_files()).age_interval is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"level": 1.0}, "not a coverage between 0 and 1"),
        ({"level": "0.9"}, "level is not a finite number"),
        ({"raw": {**INTERVAL["raw"], "half_width": -1}}, "half_width -1 is negative"),  # type: ignore[dict-item]
        ({"raw": None}, "raw is not an object"),
        ({"corrected": {"half_width": 8}}, "no 'coverage'"),
        ({"raw": {"half_width": 8, "coverage": {"value": 0.9, "ci95": [0.8]}}}, "ci95 should hold two"),
    ],
)
def test_what_is_no_interval_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        make(tmp_path / "bad.hz", age_interval={**INTERVAL, **change})
    with pytest.raises(BundleError, match="neither an object nor null"):
        make(tmp_path / "bad.hz", age_interval=[7.0])


def test_the_predictor_gives_it_around_the_shown_age(bundle: Bundle, tmp_path: Path) -> None:
    grids = np.random.default_rng(1).random((3, 64, 64, 64), dtype=np.float32) * 0.3
    ages = open_networks(bundle, ON_CPU).age_predictor(grids)
    assert ages.interval is not None and ages.interval.shape == (3, 2)
    assert np.allclose(ages.interval, np.stack([ages.corrected - 8.5, ages.corrected + 8.5], 1))
    raw = open_networks(make(tmp_path / "raw.hz", age_bias=None), ON_CPU).age_predictor(grids)
    assert raw.interval is not None
    assert np.allclose(raw.interval, np.stack([raw.raw - 7.0, raw.raw + 7.0], 1))
    without = make(tmp_path / "none.hz", age_interval={**INTERVAL, "corrected": None})
    assert open_networks(without, ON_CPU).age_predictor(grids).interval is None  # raw's fits no corrected age


def test_limits_stop_at_birth() -> None:
    limits = IntervalWidth(7.0, 0.9, (0.8, 0.95)).limits(np.array([3.0, 30.0]))
    assert limits.tolist() == [[0.0, 10.0], [23.0, 37.0]]


def test_a_run_says_it_everywhere(bundle: Bundle, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    report = run_batch([scan], bundle, tmp_path / "out", RunOptions(report=False))
    (result,) = report.scans
    assert result.prediction.age_interval is not None and result.prediction.age_corrected is not None
    assert result.prediction.age_interval == pytest.approx(
        (result.prediction.age_corrected - 8.5, result.prediction.age_corrected + 8.5)
    )
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["scans"][0]["age_interval"] == list(result.prediction.age_interval)
    assert run["age"] == {
        "shown": "corrected",
        "training_range": [18.0, 80.0],
        "age_interval_coverage": 0.9,
        "half_width": 8.5,
        "n": 101,
        "method": "split conformal",
        "how": "made up for tests",
        "measured_coverage": 0.91,
        "measured_coverage_ci95": [0.85, 0.95],
    }
    head, (row,) = table(tmp_path / "out")
    assert head[:7] == ["input", "status", "age_raw", "age_corrected", "age_low", "age_high", "age"]
    assert head[-1] == "flags"
    assert (row["age_low"], row["age_high"]) == tuple(f"{end:.2f}" for end in result.prediction.age_interval)
    sidecar = json.loads((tmp_path / "out/sub-01_desc-harmonized_T1w.json").read_text())
    assert sidecar["hz"]["predictions"]["age_interval"] == list(result.prediction.age_interval)
    assert sidecar["hz"]["predictions"]["age_interval_coverage"] == 0.9


def test_a_resumed_run_gives_the_same_table(bundle: Bundle, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", 2)
    run_batch(scans, bundle, tmp_path / "out", RunOptions(report=False))
    before = (tmp_path / "out/predictions.tsv").read_bytes()
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(report=False))
    assert [scan.status for scan in report.scans] == ["skipped", "skipped"]
    assert all(scan.prediction.age_interval for scan in report.scans)
    assert (tmp_path / "out/predictions.tsv").read_bytes() == before


def test_without_an_interval_nothing_speaks_of_one(tmp_path: Path) -> None:
    old = load_bundle(tiny.make_tiny_bundle(tmp_path / "old.hz"))
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    (result,) = run_batch([scan], old, tmp_path / "out", RunOptions(report=False)).scans
    assert result.prediction.age_interval is None and result.prediction.age_corrected is not None
    assert "age_low" not in table(tmp_path / "out")[0]
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["age"]["age_interval_coverage"] is None and "half_width" not in run["age"]
    assert run["scans"][0]["age_interval"] is None
    record = read_record(tmp_path / "out/sub-01_desc-harmonized_T1w.json")
    assert record is not None and record.prediction.age_interval is None


def test_a_failed_scan_has_no_limits(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    run_batch([tmp_path / "broken.nii.gz"], bundle, tmp_path / "out", RunOptions(report=False))
    (row,) = table(tmp_path / "out")[1]
    assert (row["status"], row["age_low"], row["age_high"]) == ("failed", "n/a", "n/a")


def test_outside_the_training_range_the_interval_is_no_promise(tmp_path: Path) -> None:
    cohort = {**tiny.tiny_manifest()["cohort"], "age_range": [18.0, 19.0]}
    young = make(tmp_path / "young.hz", cohort=cohort)
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    (result,) = run_batch([scan], young, tmp_path / "out", RunOptions(report=False)).scans
    assert result.status == "flagged" and result.prediction.age_interval is not None
    assert any("outside the ages of the age network's training, 18 to 19" in flag for flag in result.flags)
    assert result.flags[-1] == "the 90% age interval was not made for such a scan: it may not hold the age"


def test_the_summary_of_bundles_that_do_not_correct() -> None:
    width = IntervalWidth(7.0, 0.9, (0.8, 0.95))
    interval = AgeInterval(0.8, 30, "m", "h", width, None)
    assert age_metadata(interval, None, None)["shown"] == "raw"
    assert age_metadata(interval, None, None)["half_width"] == 7.0
    corrects = age_metadata(interval, AgeBias(0.8, 9.0, 20, ""), [20, 60])
    assert corrects == {"shown": "corrected", "training_range": [20, 60], "age_interval_coverage": None}


def test_it_reaches_the_structured_report(bundle: Bundle, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("dcm2niix", reason="needs the extra dicom")
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    import small_dicom as small
    from hz_runtime.dicom.result import read_result
    from hz_runtime.dicom.series import find_series
    from hz_runtime.dicom.structured_report import write_report

    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    (result,) = run_batch([scan], bundle, tmp_path / "out", RunOptions(report=False)).scans
    read = read_result(tmp_path / "out/sub-01_desc-harmonized_T1w.nii.gz")
    origin, age = read.origin, read.age
    assert age is not None and (age.prediction.age_interval, age.coverage) == (
        result.prediction.age_interval,
        0.9,
    )

    (series,) = find_series(small.write_series(tmp_path / "dicom"))
    report = pydicom.dcmread(write_report(age, series, tmp_path / "sr", origin))
    numbers: dict[str, float] = {}
    texts: list[str] = []

    def walk(items: Any) -> None:
        for item in items:
            if item.ValueType == "NUM":
                value = item.MeasuredValueSequence[0].NumericValue
                numbers[item.ConceptNameCodeSequence[0].CodeMeaning] = float(value)
            texts.append(str(item.get("TextValue", "")))
            walk(item.get("ContentSequence", ()))

    walk(report.ContentSequence)
    assert result.prediction.age_interval is not None
    assert numbers["Predicted brain age, lower limit"] == pytest.approx(
        result.prediction.age_interval[0], abs=0.006
    )
    assert numbers["Predicted brain age, upper limit"] == pytest.approx(
        result.prediction.age_interval[1], abs=0.006
    )
    assert "interval of nominal coverage 0.9" in texts
    (first, *_) = (pydicom.dcmread(path, stop_before_pixels=True) for path in series.files)
    assert "PatientAge" not in first and "PatientAge" not in report  # a predicted age is nobody's age
    with_age = small.write_series(tmp_path / "aged", PatientAge="061Y")
    kept = write_report(age, find_series(with_age)[0], tmp_path / "sr2", origin, keep_ids=True)
    report = pydicom.dcmread(kept)
    assert report.PatientAge == "061Y"


def test_ages_outside_the_training_range_are_flagged() -> None:
    said = "predicted age 60.1 is outside the ages of the age network's training, 20 to 60: do not use it"
    assert age_flags(60.1, [20.0, 60.0]) == (said,)
    assert age_flags(60.00004, [20.0, 60.0]) == age_flags(20.0, [20.0, 60.0]) == ()  # as results are rounded
    assert age_flags(99.0, None) == ()
    assert age_flags(None, None) == age_flags(float("inf"), [20, 60]) == ("the age network gave no number",)


def test_a_known_age_that_contradicts_the_predicted_one_is_flagged() -> None:
    """A person of 82 who gets 38 is no sound result, whatever the network says."""
    (beyond,) = known_age_flags(82.28, 38.4, (23.7, 53.1), [19.0, 55.0])
    assert beyond.startswith("known age 82.28 is outside the ages of the age network's training, 19 to 55")
    (beside,) = known_age_flags(54.0, 35.0, (20.3, 49.7), [19.0, 55.0])
    assert beside.startswith("known age 54 is outside the interval 20.3 to 49.7 around the predicted age")
    assert known_age_flags(40.0, 35.0, (20.3, 49.7), [19.0, 55.0]) == ()
    assert known_age_flags(None, 35.0, None, None) == known_age_flags(82.0, None, None, [19, 55]) == ()
    assert known_age_flags(82.0, 35.0, None, None) == ()  # a bundle that knows no limits


def test_a_resumed_run_flags_a_known_age_as_an_undisturbed_one(bundle: Bundle, tmp_path: Path) -> None:
    """Records know no ages: a run that adds one flags what an earlier run without it left."""
    scan, old = (
        write_scan(tmp_path / "sub-01_T1w.nii.gz", 1),
        RunOptions(report=False, ages=KnownAges(only=99.0)),
    )
    (before,) = run_batch([scan], bundle, tmp_path / "out", RunOptions(report=False)).scans
    sidecar = (tmp_path / "out" / before.outputs[1]).read_bytes()
    (again,) = run_batch([scan], bundle, tmp_path / "out", old).scans
    (whole,) = run_batch([scan], bundle, tmp_path / "whole", old).scans
    assert (again.status, again.recorded) == ("skipped", "flagged")
    assert not any("known age" in flag for flag in before.flags)
    assert whole.status == "flagged" and whole.flags == again.flags
    assert "known age 99 is outside" in again.reason
    tables = [(tmp_path / name / "predictions.tsv").read_bytes() for name in ("out", "whole")]
    assert tables[0] == tables[1]
    assert (tmp_path / "out" / before.outputs[1]).read_bytes() == sidecar
    assert (tmp_path / "whole" / whole.outputs[1]).read_bytes() == sidecar


def test_an_anatomy_that_the_network_never_saw_gets_no_age(tmp_path: Path) -> None:
    """No age, corrected age, interval or difference is anywhere; the reason stands in their place."""
    row = {"min": 10.0, "max": 20.0, "mean": 15.0, "sd": 1.0}
    small = make(tmp_path / "small.hz", anatomy={"outline_cm3": row})
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    run = RunOptions(report=False, ages=KnownAges(only=30.0))
    (result,) = run_batch([scan], small, tmp_path / "out", run).scans
    reason = result.flags[-1]  # and nothing of an interval after it
    assert result.status == "flagged" and reason.startswith("no age: volume inside the brain's outline is ")
    assert result.prediction.age is None and result.prediction.age_interval is None
    (cells,) = table(tmp_path / "out")[1]
    assert {cells[n] for n in ("age_raw", "age_corrected", "age_low", "age_high", "brain_pad")} == {"n/a"}
    stored = json.loads((tmp_path / "out" / result.outputs[1]).read_text())
    assert stored["Features"]["outline_cm3"] > 21 and stored["hz"]["predictions"]["age_raw"] is None
    (again,) = run_batch([scan], small, tmp_path / "out", run).scans
    assert again.status == "skipped" and again.flags == result.flags

    predictor = open_networks(small, ON_CPU).age_predictor
    model_input = np.random.default_rng(1).random((64, 64, 64), dtype=np.float32)
    (reason,) = predictor.no_age(predictor.measures(model_input, model_input))
    assert predictor.flags(30.0, ("dark",), (reason,)) == ("dark", reason)
