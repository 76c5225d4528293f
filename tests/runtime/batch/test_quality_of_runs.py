"""Image quality through a whole run: measured, flagged, written everywhere, and read back by the next run."""

from __future__ import annotations

import json
from pathlib import Path

from brains_of_known_quality import made_up, noisy, volume_of
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.io.volume import write_volume
from hz_runtime.results.output_columns import quality_columns

NAMES = [name for column in quality_columns() for name in column.names]


def test_a_noisy_brain_is_flagged_and_a_second_run_says_the_same(tmp_path: Path, tiny_bundle: Path) -> None:
    for name, data in (("clean", made_up()), ("noisy", noisy(10))):
        (tmp_path / "in").mkdir(exist_ok=True)
        volume = volume_of(data)
        write_volume(tmp_path / "in" / f"{name}.nii.gz", data, volume.geometry, dtype="float32")
    out, bundle = tmp_path / "out", load_bundle(tiny_bundle)
    first = run_batch([tmp_path / "in"], bundle, out, RunOptions())
    table = (out / "predictions.tsv").read_bytes()
    assert [any("noisy (noise 0.1" in flag for flag in scan.flags) for scan in first.scans] == [False, True]
    rows = [line.split("\t") for line in table.decode().splitlines()]
    cells = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["image_quality"] for row in cells] == ["ok", "look at it (noise)"]
    assert 0.09 < float(cells[1]["noise"]) < 0.11 and {*NAMES} <= {*rows[0]}
    run = json.loads((out / "run.json").read_text())
    record = json.loads(next(out.glob("noisy*.json")).read_text())["hz"]
    assert run["scans"][1]["quality"] == record["quality"] and len(record["quality"]) == 4
    assert "no verdict" in record["quality"][3]["reason"]  # nothing took the field out of this brain
    page = (out / "report.html").read_text()
    assert "look at it (noise)" in page and "<h3>Image quality</h3>" in page
    again = run_batch([tmp_path / "in"], bundle, out, RunOptions())
    assert {scan.status for scan in again.scans} == {"skipped"}
    assert (out / "predictions.tsv").read_bytes() == table


def test_a_result_of_before_it_was_measured_is_made_again(tmp_path: Path, tiny_bundle: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", made_up(), volume_of(made_up()).geometry)
    bundle = load_bundle(tiny_bundle)
    run_batch([tmp_path / "a.nii.gz"], bundle, tmp_path / "out", RunOptions(report=False))
    sidecar = next((tmp_path / "out").glob("a*.json"))
    content = json.loads(sidecar.read_text())
    del content["hz"]["quality"]
    sidecar.write_text(json.dumps(content))
    again = run_batch([tmp_path / "a.nii.gz"], bundle, tmp_path / "out", RunOptions(report=False))
    assert [scan.status for scan in again.scans] != ["skipped"] and len(again.scans[0].quality) == 4
