"""Whole batches over the tiny bundle: what comes out, in which order, and what one bad scan may do."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

import tiny
from hz_runtime.batch import stages as stages_module
from hz_runtime.batch.budget import Budget
from hz_runtime.batch.executor import Event
from hz_runtime.batch.failures import failure
from hz_runtime.batch.inputs import InputScan, collect
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.inference.open import open_networks
from hz_runtime.results.scan_result import NOT_REACHED
from small_scans import results, small_head, write_scan, write_scans


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz"))


def statuses(report) -> dict[str, str]:
    return {scan.input: scan.status for scan in report.scans}


def test_results_keep_the_order_of_the_inputs(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 4)
    given = [scans[2], scans[0], scans[3], scans[1]]
    events: list[Event] = []
    report = run_batch(given, bundle, tmp_path / "out", RunOptions(space="both"), events.append)
    assert [s.input for s in report.scans] == [p.name for p in given]
    assert report.exit_code == 0
    assert set(statuses(report).values()) == {"ok"}
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert [s["input"] for s in run["scans"]] == [p.name for p in given]
    assert run["counts"] == {"ok": 4, "flagged": 0, "failed": 0, "skipped": 0}
    assert run["bundle"]["id"] == bundle.id
    assert set(run["timings"]["stages"]) == {"read", "prepare", "infer", "write"}
    assert [e.kind for e in events] == ["start", "note"] + ["scan"] * 4
    assert events[1].text.startswith("ages hold only for")
    assert [e.done for e in events[2:]] == [1, 2, 3, 4]
    rows = (tmp_path / "out/predictions.tsv").read_text().splitlines()
    assert [r.split("\t")[0] for r in rows] == ["input", *(p.name for p in given)]


def test_the_volumes_are_what_the_network_computes(tmp_path: Path, bundle: Bundle) -> None:
    """The tiny harmonizer is affine (0.8 x + 0.1), so the guided filter must give back just that."""
    path = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    report = run_batch([path], bundle, tmp_path / "out", RunOptions(space="both", dtype="float32"))
    (scan,) = report.scans
    native = nibabel.load(tmp_path / "out/sub-01_desc-harmonized_T1w.nii.gz")
    model = nibabel.load(tmp_path / "out/sub-01_space-MNI152_res-64_desc-harmonized_T1w.nii.gz")
    source = nibabel.load(path)
    assert native.shape == source.shape
    assert np.allclose(native.affine, source.affine)
    grid = model.get_fdata()
    assert model.shape == (64, 64, 64)
    assert grid.min() == pytest.approx(0.1)
    assert grid.max() == pytest.approx(0.9)
    inside = native.get_fdata()[source.get_fdata() > 0]
    assert inside.min() > 0.1
    assert inside.max() <= 1.0
    raw = 20 + 200 * grid.mean()  # the tiny age network, on the harmonized grid
    assert scan.prediction.age_raw == pytest.approx(raw, abs=0.01)
    assert scan.prediction.age_corrected == pytest.approx((raw - 9.0) / 0.8, abs=0.02)


def test_sidecar_is_a_bids_derivative_and_the_record(tmp_path: Path, bundle: Bundle) -> None:
    path = write_scan(tmp_path / "sub-01_ses-1_T1w.nii.gz", 1)
    report = run_batch([path], bundle, tmp_path / "out", RunOptions(space="both"))
    sidecar = json.loads((tmp_path / "out/sub-01_ses-1_desc-harmonized_T1w.json").read_text())
    assert sidecar["Sources"] == [path.name]
    assert sidecar["SkullStripped"] is True
    assert sidecar["SpatialReference"] == "orig"
    assert sidecar["Units"] == "arbitrary"
    assert sidecar["GeneratedBy"][0]["Name"] == "hz"
    assert sidecar["hz"]["bundle"] == bundle.id
    assert sidecar["hz"]["input_sha256"] == report.scans[0].sha256
    described = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["BIDSVersion"]
    for name in report.scans[0].outputs:
        assert (tmp_path / "out" / name).is_file()
    recorded = {p for p in results(tmp_path / "out") if p.startswith(("sub-01", "figures/"))}
    assert set(sidecar["hz"]["outputs"]) == recorded - {"sub-01_ses-1_desc-harmonized_T1w.json"}


def test_no_output_holds_an_absolute_path(tmp_path: Path, bundle: Bundle) -> None:
    home = tmp_path / "patient-jane"
    write_scans(home / "in", 2)
    (home / "in/broken.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    (home / "in/gone.nii.gz").symlink_to(home / "nowhere.nii.gz")
    run_batch([home / "in"], bundle, home / "out", RunOptions(space="both"))
    written = [path for path in (home / "out").rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "predictions.tsv"} <= {path.name for path in written}
    for path in written:
        assert not [word for word in (str(tmp_path), "patient-jane") if word.encode() in path.read_bytes()]


def test_one_poisoned_scan_is_a_row(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 3)
    clean = run_batch(scans, bundle, tmp_path / "clean")
    assert clean.exit_code == 0
    broken = tmp_path / "in/sub-02a_T1w.nii.gz"
    broken.write_bytes(scans[1].read_bytes()[:-40])
    nothing = tmp_path / "in/sub-02b_T1w.nii.gz"
    nothing.write_bytes(b"")
    report = run_batch([*scans, broken, nothing], bundle, tmp_path / "out")
    assert report.exit_code == 3
    assert statuses(report) == {
        **{p.name: "ok" for p in scans},
        broken.name: "failed",
        nothing.name: "failed",
    }
    for scan in report.scans[3:]:
        assert scan.reason
        assert "\n" not in scan.reason
        assert not scan.outputs
        assert not list((tmp_path / "out").glob(f"{scan.name}*"))
    both = results(tmp_path / "out")
    for name, data in results(tmp_path / "clean").items():
        if name != "predictions.tsv":
            assert both[name] == data, name


def test_a_bug_in_a_step_is_a_row_and_its_traceback_is_in_the_log(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = write_scans(tmp_path / "in", 3)
    real = stages_module.brain_of
    calls = iter(range(10))

    def faulty(*args, **kwargs):
        if next(calls) == 0:  # of the second scan: the first one is begun with elsewhere
            raise TypeError(f"cannot add {tmp_path} and\nnothing")
        return real(*args, **kwargs)

    monkeypatch.setattr(stages_module, "brain_of", faulty)
    report = run_batch(scans, bundle, tmp_path / "out")
    assert list(statuses(report).values()) == ["ok", "failed", "ok"]
    reason = report.scans[1].reason
    assert reason.startswith("internal: TypeError: ")
    assert "\n" not in reason
    log = (tmp_path / "out/hz-run.log").read_text()
    assert "Traceback" in log
    assert "Traceback" not in (tmp_path / "out/run.json").read_text()


def test_tables_that_cannot_be_written_are_reported(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hz_runtime.batch import run_files

    real = run_files.atomic_write_bytes

    def full(path, data):
        if path.name == "run.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    monkeypatch.setattr(run_files, "atomic_write_bytes", full)
    report = run_batch(write_scans(tmp_path / "in", 1), bundle, tmp_path / "out")
    assert report.exit_code == 1
    assert len(report.problems) == 1
    assert "run.json" in report.problems[0]
    assert str(tmp_path) not in report.problems[0]
    assert (tmp_path / "out/predictions.tsv").is_file()
    assert (tmp_path / "out/report.html").is_file()


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error", "/x/y")])
def test_failures_are_one_line(error: Exception, tmp_path: Path) -> None:
    reason, _ = failure(error, InputScan(tmp_path / "a.nii", "a.nii", "a"), tmp_path / "out")
    assert reason
    assert "\n" not in reason
    assert "/x/" not in reason


def test_results_do_not_depend_on_threads_batch_or_memory(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 5)
    first = run_batch(scans, bundle, tmp_path / "a", RunOptions(threads=1))
    run_batch(scans[::-1], bundle, tmp_path / "b", RunOptions(threads=16, batch=3))
    run_batch(scans, bundle, tmp_path / "c", RunOptions(threads=2, max_voxels=1))
    a, b, c = (results(tmp_path / name) for name in "abc")
    assert first.exit_code == 0
    assert a == c
    for in_order in ("predictions.tsv", "group.html"):
        del a[in_order], b[in_order]
    assert a == b


def test_a_batch_that_fails_is_tried_one_by_one(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages_module.Stages.infer

    def picky(self, scans):
        if any(scan.ticket.scan.name == "sub-02" for scan in scans):
            raise BackendError("the engine failed.")
        return real(self, scans)

    monkeypatch.setattr(stages_module.Stages, "infer", picky)
    report = run_batch(write_scans(tmp_path / "in", 4), bundle, tmp_path / "out", RunOptions(batch=4))
    assert list(statuses(report).values()) == ["ok", "failed", "ok", "ok"]
    assert report.scans[1].reason == "the engine failed."


def test_same_content_twice_is_two_rows_and_same_path_one(tmp_path: Path, bundle: Bundle) -> None:
    one = write_scan(tmp_path / "in/a.nii.gz", 1)
    two = write_scan(tmp_path / "in/b.nii.gz", 1)
    report = run_batch([one, two, tmp_path / "in/../in/a.nii.gz"], bundle, tmp_path / "out")
    assert [s.input for s in report.scans] == ["a.nii.gz", "b.nii.gz"]
    assert report.scans[0].sha256 == report.scans[1].sha256


def test_stop_finishes_what_is_in_flight_and_writes_the_tables(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 12)
    stop = threading.Event()
    report = run_batch(scans, bundle, tmp_path / "out", None, lambda e: e.done == 1 and stop.set(), stop)
    assert report.interrupted
    assert report.exit_code == 130
    left = [s for s in report.scans if s.reason == NOT_REACHED]
    done = [s for s in report.scans if s.status == "ok"]
    assert left
    assert done
    assert len(left) + len(done) == 12
    assert all(not s.outputs and s.status == "skipped" for s in left)
    assert json.loads((tmp_path / "out/run.json").read_text())["interrupted"] is True
    assert (tmp_path / "out/report.html").is_file()
    again = run_batch(scans, bundle, tmp_path / "out")
    whole = run_batch(scans, bundle, tmp_path / "whole")
    assert again.counts["skipped"] == len(done)
    assert whole.counts["ok"] == 12
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_ages_outside_the_training_range_are_flagged(tmp_path: Path, bundle: Bundle) -> None:
    narrow = dataclasses.replace(bundle, cohort={**bundle.cohort, "age_range": [1.0, 2.0]})
    report = run_batch([write_scan(tmp_path / "a.nii.gz")], narrow, tmp_path / "out")
    (scan,) = report.scans
    assert scan.status == "flagged"
    assert report.exit_code == 0
    assert "outside the ages of the age network's training, 1 to 2" in scan.reason
    assert scan.reason == "; ".join(scan.flags)


def test_a_contrast_agent_is_flagged_and_stays_so_on_resume(tmp_path: Path, bundle: Bundle) -> None:
    named = write_scan(tmp_path / "sub-01_ce-gadolinium_T1w.nii.gz", 1)
    beside = write_scan(tmp_path / "sub-02_T1w.nii.gz", 1)
    (tmp_path / "sub-02_T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    plain = write_scan(tmp_path / "sub-03_T1w.nii.gz", 1)
    for statuses_then in (("flagged", "flagged"), ("skipped", "flagged")):
        report = run_batch([named, beside, plain], bundle, tmp_path / "out")
        found = {s.input[:6]: any("contrast agent" in flag for flag in s.flags) for s in report.scans}
        assert found == {"sub-01": True, "sub-02": True, "sub-03": False}
        assert (report.scans[0].status, report.scans[0].recorded or "flagged") == statuses_then


def test_known_ages_give_brain_pad(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 3)
    table = tmp_path / "participants.tsv"
    table.write_text(
        "participant_id\tfile\tage\nsub-01\t\t40\nsub-99\tsub-02_T1w.nii.gz\t50.5\nsub-03\t\tn/a\n"
    )
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(ages=KnownAges.from_tsv(table)))
    assert [s.age for s in report.scans] == [40.0, 50.5, None]
    rows = [r.split("\t") for r in (tmp_path / "out/predictions.tsv").read_text().splitlines()]
    for row, scan in zip(rows[1:3], report.scans[:2], strict=True):
        assert float(row[5]) == pytest.approx(scan.prediction.age_corrected - scan.age, abs=0.006)
    assert rows[3][4:6] == ["n/a", "n/a"]


def test_ages_by_file_follow_folders(tmp_path: Path) -> None:
    """Equal names at two sites: a row is about the file that it names, and about no namesake."""
    for name in ("a.nii.gz", "A/a.nii.gz", "B/a.nii.gz", "C/c.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in/participants.tsv").write_text(
        "file\tage\tsite\na.nii.gz\t29\tR\nA/a.nii.gz\t37\tA\n../in/C/c.nii.gz\t50\tC\n"
    )
    known = KnownAges.from_tsv(tmp_path / "in/participants.tsv")
    scans = {scan.label: scan for scan in collect([tmp_path / "in"], tmp_path / "out").scans}
    assert {label: known.of(scan) for label, scan in scans.items() if label != "B/a.nii.gz"} == {
        "a.nii.gz": 29.0,
        "A/a.nii.gz": 37.0,
        "C/c.nii.gz": 50.0,
    }
    (tmp_path / "t.tsv").write_text(f"file\tage\tsite\nA/a.nii.gz\t37\tA\n{tmp_path}/in/C/c.nii.gz\t50\tC\n")
    known = KnownAges.from_tsv(tmp_path / "t.tsv")
    found = [(known.of(scan), known.site_of(scan).get("site")) for scan in scans.values()]
    assert dict(zip(scans, found, strict=True)) == {
        "a.nii.gz": (37.0, "A"),  # by its name alone: it may have been moved
        "A/a.nii.gz": (37.0, "A"),
        "B/a.nii.gz": (None, None),
        "C/c.nii.gz": (50.0, "C"),
    }
    assert known.gaps(list(scans.values())) == (
        "t.tsv: no age for 1 of 4 scans, B/a.nii.gz first; see its columns file, participant_id and age",
    )
    assert known.gaps([scans["A/a.nii.gz"]]) == () == KnownAges().gaps(list(scans.values()))


def test_a_table_that_tells_no_age_is_heard_of(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "p.tsv").write_text("participant_id\tage\nsub-77\t40\nsub-01\tforty\n")
    heard: list[str] = []
    options = RunOptions(ages=KnownAges.from_tsv(tmp_path / "p.tsv"))
    run_batch(
        write_scans(tmp_path / "in", 1), bundle, tmp_path / "out", options, lambda e: heard.append(e.text)
    )
    assert any(text.startswith("p.tsv: no age for 1 of 1 scans") for text in heard)


def test_participants_without_ages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("participant_id\tsex\nsub-01\tF\n")
    with pytest.raises(UsageError, match="column age"):
        KnownAges.from_tsv(tmp_path / "p.tsv")


def test_a_bundle_without_age_network_harmonizes(tmp_path: Path) -> None:
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["models"] = [m for m in manifest["models"] if m["role"] == "harmonizer"]
    manifest["age_bias"] = None
    only = write_bundle(tmp_path / "only.hz", manifest, {n: f for n, f in files.items() if "age" not in n})
    report = run_batch([write_scan(tmp_path / "a.nii.gz")], only, tmp_path / "out")
    assert report.exit_code == 0
    assert report.scans[0].prediction.age_raw is None
    assert (tmp_path / "out/predictions.tsv").read_text().splitlines()[1].split("\t")[2:4] == ["n/a", "n/a"]


def test_no_report_leaves_no_pictures(tmp_path: Path, bundle: Bundle) -> None:
    report = run_batch(
        [write_scan(tmp_path / "a.nii.gz")], bundle, tmp_path / "out", RunOptions(report=False)
    )
    assert report.exit_code == 0
    assert not (tmp_path / "out/report.html").exists()
    assert not (tmp_path / "out/figures").exists()


# Inputs and their names


def test_a_missing_file_is_a_row_unless_nothing_is_there(tmp_path: Path, bundle: Bundle) -> None:
    good = write_scan(tmp_path / "a.nii.gz")
    report = run_batch([good, tmp_path / "typo.nii.gz"], bundle, tmp_path / "out")
    assert statuses(report) == {"a.nii.gz": "ok", "typo.nii.gz": "failed"}
    assert "no such file" in report.scans[1].reason
    with pytest.raises(UsageError, match=r"no scan found: typo\.nii\.gz"):
        collect([tmp_path / "typo.nii.gz"], tmp_path / "out")
    with pytest.raises(UsageError, match="no scan found"):
        collect([f"{tmp_path}/none*.nii"], tmp_path / "out")
    assert collect([good, f"{tmp_path}/none*.nii"], tmp_path / "out").notes


def test_awkward_names_end_up_as_one_clean_line(tmp_path: Path, bundle: Bundle) -> None:
    odd = tmp_path / "in" / os.fsdecode(b"caf\xe9\tna\nme \xc3\xa9.nii.gz")
    source = write_scan(tmp_path / "a.nii.gz")
    odd.parent.mkdir()
    odd.write_bytes(source.read_bytes())
    long = tmp_path / "in" / ("x" * 240 + ".nii.gz")
    long.write_bytes(source.read_bytes())
    report = run_batch([tmp_path / "in"], bundle, tmp_path / "out", RunOptions(space="both"))
    assert set(statuses(report).values()) == {"ok"}
    rows = (tmp_path / "out/predictions.tsv").read_text().splitlines()
    assert len(rows) == 3
    assert all(len(r.split("\t")) == 12 for r in rows)


def test_options_are_checked() -> None:
    for wrong in ({"space": "mni"}, {"dtype": "int8"}, {"threads": 0}, {"batch": 0}):
        with pytest.raises(UsageError):
            RunOptions(**wrong)


def test_the_memory_bound_lets_a_large_scan_pass_alone() -> None:
    budget = Budget(10)
    budget.take(50)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (budget.take(5), done.set()), daemon=True)
    waiting.start()
    assert not done.wait(0.05)
    budget.give(50)
    assert done.wait(10)


def test_small_head_is_a_brain() -> None:
    data, _ = small_head(3)
    assert 900 < (data > 0).sum() * 4**3 / 1000 < 1900  # cm3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data * 1e300, "there is no brain"),  # finite float64, infinite float32: no number
        (lambda data: np.where(data > 0, np.nan, data), "there is no brain"),
        (lambda data: data.astype(np.complex64), "complex64"),
        (lambda data: data[:0], "not one volume"),
    ],
)
def test_arrays_that_are_no_scan_are_refused(bundle: Bundle, spoil, says: str) -> None:
    data, affine = small_head()
    with pytest.raises(HzError, match=says):
        open_networks(bundle).harmonizer.volume(spoil(data.astype(np.float64)), affine)
