"""The first scan of a run is read while the networks are opened, once, and what comes of it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from hz_runtime.batch import first_scan as first_module
from hz_runtime.batch import stages as stages_module
from hz_runtime.batch.first_scan import FirstScan
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.io.volume import read_volume
from small_scans import results, write_scan, write_scans

OPTIONS = RunOptions(report=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz"))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(where, name) of every scan that is read."""
    found: list[tuple[str, str]] = []
    for module in (first_module, stages_module):

        def noted(path: Path, *limits: Any, place: str = module.__name__.rpartition(".")[2]) -> Any:
            found.append((place, path.name))
            return read_volume(path, *limits)

        monkeypatch.setattr(module, "read_volume", noted)
    return found


def test_every_scan_is_read_once_and_the_first_one_ahead(
    tmp_path: Path, bundle: Bundle, readings: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = write_scans(tmp_path / "in", 2)
    assert run_batch(scans, bundle, tmp_path / "out", OPTIONS).exit_code == 0
    assert readings == [("first_scan", scans[0].name), ("stages", scans[1].name)]
    run_batch(scans, bundle, tmp_path / "out", OPTIONS)  # all done before
    assert len(readings) == 2
    monkeypatch.setattr(FirstScan, "take", lambda *_: None)
    assert run_batch(scans, bundle, tmp_path / "plain", OPTIONS).exit_code == 0
    assert results(tmp_path / "plain") == results(tmp_path / "out")


def test_a_first_scan_that_cannot_be_read_fails_as_any_other(tmp_path: Path, bundle: Bundle) -> None:
    broken = tmp_path / "in/sub-00_T1w.nii.gz"
    other = write_scan(tmp_path / "in/sub-01_T1w.nii.gz", 1)
    for scans, at in (([broken, other], 0), ([other, broken], 1)):
        broken.write_bytes(b"\x1f\x8bnonsense")
        report = run_batch(scans, bundle, tmp_path / f"out-{at}", OPTIONS)
        assert report.scans[at].status == "failed" and report.scans[1 - at].status == "ok"
        assert "gzip" in report.scans[at].reason
        assert report.exit_code == 3


def test_it_is_taken_once_and_for_no_other_path(tmp_path: Path, bundle: Bundle) -> None:
    path = write_scan(tmp_path / "sub-01_T1w.nii.gz", 1)
    first = FirstScan(InputScan(path, path.name, "sub-01"), bundle)
    assert first.take(tmp_path / "sub-02_T1w.nii.gz") is None
    brain = first.take(path)
    assert brain is not None and brain.read.sha256 == read_volume(path).sha256
    assert first.take(path) is None


def test_a_scan_alone_leaves_what_it_leaves_among_others(tmp_path: Path, bundle: Bundle) -> None:
    """Its picture is drawn beside the compression of its volume."""
    scans = write_scans(tmp_path / "in", 2)
    run_batch(scans[:1], bundle, tmp_path / "alone", RunOptions())
    run_batch(scans, bundle, tmp_path / "both", RunOptions())
    for path in (tmp_path / "alone").rglob("sub-*"):
        assert path.read_bytes() == (tmp_path / "both" / path.relative_to(tmp_path / "alone")).read_bytes()
    assert sorted(path.suffix for path in (tmp_path / "alone").rglob("sub-01*")) == [".gz", ".json", ".json"]


def test_a_picture_that_cannot_be_drawn_takes_nothing_of_before_away(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = write_scans(tmp_path / "in", 1)
    run_batch(scans, bundle, tmp_path / "out", RunOptions())
    before = {name: data for name, data in results(tmp_path / "out").items() if name.startswith("sub-")}

    def full(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(stages_module.Stages, "_figure", full)
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(overwrite=True))
    assert [scan.status for scan in report.scans] == ["failed"]
    after = results(tmp_path / "out")
    assert {name: after[name] for name in before} == before
