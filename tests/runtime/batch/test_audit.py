"""The account of runs: what is in it, what is not, and hz-run audit verify."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from hz_cli import run as command
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.hash_chain import records, verify
from processes import started
from small_scans import write_scans

pytestmark = pytest.mark.requirement("accounted")
# How often a run is killed; 50 take some minutes:  HZ_AUDIT_KILLS=50 make test ARGS="-k killed"
KILLS = int(os.environ.get("HZ_AUDIT_KILLS", "2"))


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


def test_two_runs_killed_at_random_moments(tmp_path: Path, tiny_bundle: Path) -> None:
    """kill -9 of one of two runs that write one file, again and again: it holds and goes on."""
    write_scans(tmp_path / "in", 8)
    audit, moments, killed, started_runs = tmp_path / "audit.jsonl", random.Random(19), 0, []

    def begin() -> subprocess.Popen[str]:
        out = tmp_path / f"out-{len(started_runs)}"
        how = (tmp_path / "in", "--model", tiny_bundle, "--out", out, "--no-report", "--audit", audit)
        started_runs.append(started("run", *how))
        return started_runs[-1]

    def size() -> int:
        return audit.stat().st_size if audit.exists() else 0

    two = [begin(), begin()]
    try:
        while killed < KILLS:
            at, victim = size() + moments.randrange(1, 4000), killed % 2
            while size() < at and two[victim].poll() is None:
                time.sleep(moments.random() * 0.01)
            killed += two[victim].poll() is None
            two[victim].kill()
            two[victim].communicate()
            verify(audit)
            two[victim] = begin()
        for process in two:
            process.communicate()
            assert process.returncode == 0
    finally:
        for process in started_runs:
            process.kill()
            process.communicate()
    assert verify(audit).last.n == len(list(records(audit)))
    by_event = Counter(record["event"] for record in records(audit))
    ends = {record["run"] for record in records(audit) if record["event"] == "end"}
    assert by_event["end"] == len(ends) >= 2
    endless = by_event["start"] - by_event["end"]
    assert 0 < endless <= killed == KILLS  # some die before their first record
    code, said = verified(audit)
    assert code == 0 and said.count("has no end") == endless
    whole = audit.read_bytes()
    for _ in range(20):
        bit = moments.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        audit.write_bytes(data)
        with pytest.raises(HzError):
            verify(audit)


def test_nothing_runs_that_cannot_be_accounted_for(tmp_path: Path, tiny_bundle: Path) -> None:
    write_scans(tmp_path / "in", 1)
    bundle, out = load_bundle(tiny_bundle), tmp_path / "out"
    with pytest.raises(UsageError, match="No such file"):
        run_batch([tmp_path / "in"], bundle, out, RunOptions(audit=tmp_path / "none" / "audit.jsonl"))
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(HzError, match=r"notes\.txt\.head"):
        run_batch([tmp_path / "in"], bundle, out, RunOptions(audit=tmp_path / "notes.txt"))
    assert not list(out.glob("*.nii.gz"))
