"""Repeated, changed and crowded runs end where one undisturbed run does; killed ones are in tests/faults."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

import tiny
from hz_runtime.batch.folder_lock import locked, remove_leftovers
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.results.record import fingerprint
from small_scans import results, write_scan, write_scans


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz"))


def test_a_second_run_skips_and_shows_the_same_predictions(tmp_path: Path, bundle: Bundle) -> None:
    scans = write_scans(tmp_path / "in", 3)
    first = run_batch(scans, bundle, tmp_path / "out")
    before = results(tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.nii.gz")}
    second = run_batch(scans, bundle, tmp_path / "out")
    assert [s.status for s in second.scans] == ["skipped"] * 3
    assert second.exit_code == 0
    assert [s.prediction.age_corrected for s in second.scans] == [
        s.prediction.age_corrected for s in first.scans
    ]
    assert [s.outputs for s in second.scans] == [s.outputs for s in first.scans]
    assert results(tmp_path / "out") == before  # predictions.tsv too
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png") >= 3  # resumed scans keep their pictures
    third = run_batch(scans, bundle, tmp_path / "out", RunOptions(overwrite=True))
    assert [s.status for s in third.scans] == ["ok"] * 3
    assert results(tmp_path / "out") == before


def test_flags_survive_a_resume(tmp_path: Path, bundle: Bundle) -> None:
    import dataclasses

    narrow = dataclasses.replace(bundle, cohort={**bundle.cohort, "age_range": [1.0, 2.0]})
    scans = write_scans(tmp_path / "in", 1)
    first = run_batch(scans, narrow, tmp_path / "out").scans[0]
    second = run_batch(scans, narrow, tmp_path / "out").scans[0]
    assert (first.status, second.status, second.recorded) == ("flagged", "skipped", "flagged")
    assert second.flags == first.flags
    assert first.flags[0] in second.reason


def test_a_result_of_another_engine_is_kept_and_said_to_be_one(tmp_path: Path, bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    scans = write_scans(tmp_path / "in", 1)

    def reason(engine: str) -> str:
        report = run_batch(scans, bundle, tmp_path / "out", RunOptions(require=engine))
        assert report.run["backend"]["name"] == "onnxruntime"  # what made the result, and not what ran now
        assert report.run["options"]["threads"] >= 1
        return report.scans[0].reason

    assert reason("onnxruntime") == ""
    assert "engine" not in reason("onnxruntime")
    assert "by another engine (onnxruntime, CPUExecutionProvider, " in reason("openvino")


def tamper_input(_out: Path, scan: Path) -> None:
    write_scan(scan, 99)


def truncate_output(out: Path, _scan: Path) -> None:
    path = out / "sub-01_desc-harmonized_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-1])


def flip_output(out: Path, _scan: Path) -> None:
    path = out / "sub-01_desc-harmonized_T1w.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_figure(out: Path, _scan: Path) -> None:
    (out / "figures/sub-01.json").unlink()


def garble_sidecar(out: Path, _scan: Path) -> None:
    (out / "sub-01_desc-harmonized_T1w.json").write_bytes(b'{"hz": [1')


def garble_engine(out: Path, _scan: Path) -> None:
    path = out / "sub-01_desc-harmonized_T1w.json"
    sidecar = json.loads(path.read_text())
    sidecar["GeneratedBy"][0]["Engine"] = "fast"
    path.write_text(json.dumps(sidecar))


def escape_record(out: Path, _scan: Path) -> None:
    path = out / "sub-01_desc-harmonized_T1w.json"
    sidecar = json.loads(path.read_text())
    sidecar["hz"]["outputs"]["../in/sub-01_T1w.nii.gz"] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    "change",
    [tamper_input, truncate_output, flip_output, remove_figure, garble_sidecar, garble_engine, escape_record],
)
def test_what_is_not_as_recorded_is_redone(tmp_path: Path, bundle: Bundle, change) -> None:
    scan = write_scan(tmp_path / "in/sub-01_T1w.nii.gz", 1)
    run_batch([scan], bundle, tmp_path / "out")
    change(tmp_path / "out", scan)
    assert run_batch([scan], bundle, tmp_path / "out").scans[0].status == "ok"
    assert run_batch([scan], bundle, tmp_path / "out").scans[0].status == "skipped"


def test_other_options_or_another_bundle_redo(tmp_path: Path, bundle: Bundle) -> None:
    manifest = {**tiny.tiny_manifest(), "name": "other"}
    from hz_runtime.bundle.store import write_bundle

    other = write_bundle(tmp_path / "other.hz", manifest, tiny.tiny_files())
    scan = write_scan(tmp_path / "in/a.nii.gz", 1)

    def status(used: Bundle, **options) -> str:
        return run_batch([scan], used, tmp_path / "out", RunOptions(**options)).scans[0].status

    assert status(bundle) == "ok"
    assert status(bundle, threads=2, batch=2) == "skipped"  # how, not what
    assert status(bundle, to="site-b") == "skipped"  # the only site
    assert status(bundle, dtype="float32") == "ok"
    assert status(bundle, dtype="float32", space="both") == "ok"
    assert status(other, dtype="float32", space="both") == "ok"


def test_a_failed_redo_does_not_claim_the_old_result(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hz_runtime.batch import written_files

    scan = write_scan(tmp_path / "in/sub-01_T1w.nii.gz", 1)
    run_batch([scan], bundle, tmp_path / "out")

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(written_files, "atomic_write_bytes", broken)
        report = run_batch([scan], bundle, tmp_path / "out", RunOptions(overwrite=True))
    assert report.scans[0].status == "failed"
    assert not list((tmp_path / "out").glob("sub-01*.json"))
    assert run_batch([scan], bundle, tmp_path / "out").scans[0].status == "ok"


def test_a_scan_that_is_damaged_now_has_no_result_any_more(tmp_path: Path, bundle: Bundle) -> None:
    """And one that cannot be reached keeps it: that says nothing of the scan."""
    scans = write_scans(tmp_path / "in", 2)
    out = tmp_path / "out"
    run_batch(scans, bundle, out)
    scans[0].write_bytes(scans[0].read_bytes()[:2000])
    scans[1].unlink()
    report = run_batch(scans, bundle, out)
    assert [scan.status for scan in report.scans] == ["failed", "failed"]
    left = {path.name[:6] for folder in (out, out / "figures") for path in folder.glob("sub-*")}
    assert left == {scans[1].name[:6]}


def test_one_folder_takes_one_run(tmp_path: Path, bundle: Bundle) -> None:
    scan = write_scan(tmp_path / "in/a.nii.gz", 1)
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.hz.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run of hz") as caught:
            run_batch([scan], bundle, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert run_batch([scan], bundle, tmp_path / "out").exit_code == 0


def test_an_output_folder_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UsageError, match="cannot write into"), locked(out):
            pass


def test_leftovers_of_dead_runs_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    stale = [f".a.nii.gz.{os.getpid()}.tmp", "figures/.a.json.7.tmp"]  # a pid may be in use again
    kept = ["a.nii.gz", ".hidden", "b.7.tmp", ".c.tmp"]
    for name in [*stale, *kept]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, sure=False)
    assert (tmp_path / stale[0]).exists()  # without a lock, a living process may still want it
    remove_leftovers(tmp_path)
    assert [n for n in stale if (tmp_path / n).exists()] == []
    assert [n for n in kept if not (tmp_path / n).exists()] == []


def test_fingerprints_tell_options_apart() -> None:
    a = fingerprint({"space": "native", "to": None})
    assert a == fingerprint({"to": None, "space": "native"}) != fingerprint({"space": "native", "to": "x"})
