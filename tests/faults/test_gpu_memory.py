"""A GPU that runs out of memory in the middle of a run, over the fake one: nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from fake_gpu import Driver, engine_bytes, fake_tensorrt, install, record_of
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from small_scans import results, write_scans

SAYS = "Error Code 2: OutOfMemory (Requested size was 999 bytes.)"


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HZ_ENGINES", str(tmp_path / "engines"))
    driver = Driver()
    made = fake_tensorrt(driver)
    install(monkeypatch, driver, made)
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The tiny bundle with an engine of each network."""
    plain = load_bundle(tiny.make_tiny_bundle(tmp_path / "plain.hz"))
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["engines"] = []
    for role in ("harmonizer", "age"):
        files[f"{role}.engine"] = data = engine_bytes(role)
        record = record_of(data, model_sha256=plain.model(role, precision="fp16").sha256)
        manifest["engines"].append({**record.to_dict(), "file": f"{role}.engine", "parity": {}})
    return write_bundle(tmp_path / "engines.hz", manifest, files)


def test_the_batch_is_halved_and_every_scan_is_done(trt: Any, bundle: Bundle, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", 10)
    assert run_batch(scans, bundle, tmp_path / "whole", RunOptions(batch=4)).exit_code == 0
    real, ran = trt.IExecutionContext.execute_async_v3, []

    def hungry(self: Any, stream_handle: int) -> bool:
        ran.append(self.size)
        if self.size > 2 and len(ran) > 2:  # somebody else takes the memory after the first batch
            self.engine.logger.log(1, SAYS)
            return False
        return bool(real(self, stream_handle))

    trt.IExecutionContext.execute_async_v3 = hungry
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(batch=4))
    assert report.exit_code == 0
    assert report.counts["failed"] == report.counts["skipped"] == 0
    assert max(ran) == 4 and ran[-1] == 2
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["backend"]["provider"] == "CUDA (tensorrt)"  # it stayed where it was
    assert any("at most 2 from here on" in note for note in run["backend"]["notes"])
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_memory_that_is_gone_for_good_takes_the_run_down_the_ladder(
    trt: Any, bundle: Bundle, tmp_path: Path
) -> None:
    scans = write_scans(tmp_path / "in", 6)
    real, ran = trt.IExecutionContext.execute_async_v3, []

    def gone(self: Any, stream_handle: int) -> bool:
        ran.append(self.size)
        if len(ran) > 2:
            self.engine.logger.log(1, SAYS)
            return False
        return bool(real(self, stream_handle))

    trt.IExecutionContext.execute_async_v3 = gone
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(batch=2))
    assert report.exit_code == 0
    assert report.counts["failed"] == report.counts["skipped"] == 0
    engines = [
        json.loads(path.read_text())["GeneratedBy"][0]["Engine"]["Provider"]
        for path in sorted((tmp_path / "out").glob("*_desc-harmonized_T1w.json"))
    ]
    assert "CUDA (tensorrt)" in engines and len(set(engines)) == 2  # each says what ran it
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert any("tensorrt failed: The GPU is out of memory" in note for note in run["backend"]["notes"])
