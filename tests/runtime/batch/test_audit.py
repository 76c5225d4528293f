"""The account of runs: what is in it, what is not, and hz-run audit verify."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from hz_cli import run as command
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.hash_chain import records, verify
from processes import started, until
from small_scans import write_scans

pytestmark = pytest.mark.requirement("accounted")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verified(path: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(command.main, ["audit", "verify", str(path), *more])
    return done.exit_code, done.output + done.stderr


def test_a_run_is_accounted_for(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 2)
    scans = sorted((tmp_path / "in").iterdir())
    named = [scan.rename(scan.with_name(f"Smith-{n}.nii.gz")) for n, scan in enumerate(scans)]
    (tmp_path / "in" / "Jones.nii").write_bytes(b"no scan")
    audit, out, bundle = tmp_path / "audit.jsonl", tmp_path / "out", load_bundle(tiny_bundle)
    options = RunOptions(audit=audit, report=False, require="onnxruntime-cpu")
    run_batch([tmp_path / "in"], bundle, out, options)
    start, *done, end = records(audit)
    assert (start["event"], end["event"]) == ("start", "end")
    assert start["uid"] == os.getuid() and start["scans"] == 3
    assert start["bundle"] == {"name": "tiny", "id": bundle.id, "signer": ""}
    engine = start["engines"]["harmonizer"]
    assert (engine["name"], engine["precision"]) == ("onnxruntime", "fp32")
    assert engine["model"] == digest(tiny_bundle / "harmonizer.onnx")
    inputs = {digest(path) for path in (*named, tmp_path / "in" / "Jones.nii")}
    assert {record["input"] for record in done} == inputs
    assert sorted(record["status"] for record in done).count("failed") == 1
    on_disk = {digest(path) for path in out.iterdir() if path.name.startswith("Smith")}
    assert {sha for record in done for sha in record["outputs"]} == on_disk
    assert end["counts"]["failed"] == 1 and end["exit_code"] == 3
    assert end["outputs"] == [digest(out / "run.json"), digest(out / "predictions.tsv")]
    assert {record["run"] for record in (start, *done, end)} == {start["run"]}
    text = audit.read_text()
    assert "Smith" not in text and "Jones" not in text and str(tmp_path) not in text
    assert "audit" not in json.loads((out / "run.json").read_bytes())["options"]

    run_batch([tmp_path / "in"], bundle, out, options)  # nothing to do, and accounted for
    again = list(records(audit))[5:]
    assert [record["before"] for record in again[1:-1]].count(True) == 2
    assert {sha for record in again[1:-1] for sha in record["outputs"]} == on_disk
    assert verify(audit).last.n == 10


def test_hz_run_audit_verify(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 1)
    audit = tmp_path / "audit.jsonl"
    asked = [str(tmp_path / "in"), "--model", str(tiny_bundle), "--out", str(tmp_path / "out"), "--no-report"]
    assert CliRunner().invoke(command.main, [*asked, "--audit", str(audit), "-q"]).exit_code == 0
    code, said = verified(audit)
    assert code == 0 and "audit.jsonl holds: 3 records of 1 run; the last is " in said
    last = verify(audit).last.sha256
    assert last in said and "no end" not in said
    assert verified(audit, "--holds", last)[0] == 0
    code, said = verified(audit, "--holds", "0" * 64)
    assert code == 1 and "holds no record 000000000000" in said
    audit.write_bytes(audit.read_bytes().replace(b'"status":"ok"', b'"status":"no"'))
    code, said = verified(audit)
    assert code == 1 and "line 2 does not hold" in said
    assert "audit verify" in CliRunner().invoke(command.main, ["audit", "verify", "--help"]).output


def test_a_killed_run_has_no_end_and_the_next_goes_on(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 6)
    audit = tmp_path / "audit.jsonl"
    how = (
        tmp_path / "in",
        "--model",
        tiny_bundle,
        "--out",
        tmp_path / "out",
        "--no-report",
        "--audit",
        audit,
    )
    process = started("run", *how)
    try:
        until(lambda: audit.exists() and audit.read_bytes().count(b"\n") >= 2, process)
    finally:
        process.kill()
        process.communicate()
    code, said = verified(audit)
    assert code == 0 and "starts in record 1 has no end" in said
    assert CliRunner().invoke(command.main, [str(a) for a in how]).exit_code == 0
    code, said = verified(audit)
    assert code == 0 and "2 runs" in said and said.count("has no end") == 1


def test_nothing_runs_that_cannot_be_accounted_for(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 1)
    bundle, out = load_bundle(tiny_bundle), tmp_path / "out"
    with pytest.raises(UsageError, match="No such file"):
        run_batch([tmp_path / "in"], bundle, out, RunOptions(audit=tmp_path / "none" / "audit.jsonl"))
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(HzError, match=r"notes\.txt\.head"):
        run_batch([tmp_path / "in"], bundle, out, RunOptions(audit=tmp_path / "notes.txt"))
    assert not list(out.glob("*.nii.gz"))
