"""Twelve elements of a job array under a real slurmd: one has a damaged scan, one is late, one is killed.

With HZ_SLURM=1, where Debian's slurm-wlm and munge are installed: under a minute, most of it spent in waiting
for Slurm to see that a job is late and for hz-run to give up what it has in flight.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hz_cli import run
from processes import environment, finished
from small_scans import results, write_scans
from small_slurm import SmallSlurm, missing

ELEMENTS = 12
DAMAGED, LATE, KILLED = 2, 1, 9  # elements; the late one first, since it is waited for
PATIENCE = 900  # seconds
# Reading takes longer than the job may: what a file system that hangs does.
SLOW = """
import time
import hz_runtime.io.volume as volume
volume.read_volume = lambda *arguments, **options: time.sleep(600)
"""
# As docs/scale.md has it: without `exec` the shell would get the SIGTERM that is meant for hz-run, and the
# job would end with the shell.
JOB = """#!/bin/bash
echo $$ > {folder}/$SLURM_ARRAY_TASK_ID.pid
case $SLURM_ARRAY_TASK_ID in {late}|{killed}) export PYTHONPATH={folder}/slow:$PYTHONPATH;; esac
exec {python} -m hz_cli.run {command} --out {folder}/out --shard array
"""
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}


def hz_run(*words: object) -> Result:
    """In this process; of commands that only read what jobs left."""
    return CliRunner().invoke(run.main, [str(word) for word in words])


def wait(seen: Callable[[], bool]) -> None:
    """Until it is seen, asking seldom: the jobs need the machine."""
    limit = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.5)


def test_status_names_the_three_and_the_printed_command_runs_only_them(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("HZ_SLURM") != "1":
        pytest.skip("takes most of a minute; HZ_SLURM=1 runs it")
    if problem := missing():
        pytest.skip(problem)
    scans = write_scans(tmp_path / "in", ELEMENTS)
    data = bytearray(scans[DAMAGED - 1].read_bytes())
    data[len(data) // 2] ^= 0x40
    scans[DAMAGED - 1].write_bytes(data)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    how = (tmp_path / "in", "--model", tiny_bundle, "--backend", "onnxruntime-cpu", "--threads", 1, "--plain")
    command = shlex.join(map(str, how))
    out, script = tmp_path / "out", tmp_path / "job.sh"
    script.write_text(
        JOB.format(folder=tmp_path, late=LATE, killed=KILLED, python=sys.executable, command=command)
    )
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])

    def in_flight(element: int) -> bool:
        journal = out / "shards" / f"{element:02}-of-{ELEMENTS}.jsonl"
        return journal.exists() and b'"begun"' in journal.read_bytes()

    with SmallSlurm(tmp_path / "slurm", cpus=4) as slurm:
        job = slurm.submit(script, f"--array=1-{ELEMENTS}", f"--output={tmp_path}/%a.log", "--export=ALL")
        wait(lambda: in_flight(LATE))
        slurm.asked("scontrol", "update", f"JobId={job}_{LATE}", "EndTime=now")  # the least limit is a minute
        wait(lambda: in_flight(KILLED))
        # As the kernel does where memory runs out. scancel, even --signal=KILL, sends SIGTERM before it.
        os.kill(int((tmp_path / f"{KILLED}.pid").read_text()), signal.SIGKILL)
        assert finished("run", *how, "--out", tmp_path / "serial")[0] == 3
        wait(lambda: sum(state in ENDED for state in slurm.states(job).values()) == ELEMENTS)
        states = slurm.states(job)
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    failed = {str(DAMAGED): "FAILED", str(LATE): "TIMEOUT", str(KILLED): "FAILED"}
    assert states == {str(n): failed.get(str(n), "COMPLETED") for n in range(1, ELEMENTS + 1)}, logs
    assert "stopping after the scans in flight" in logs[f"{LATE}.log"]

    shown = hz_run("status", out, "--json")
    assert shown.exit_code == 3
    named = {scan["input"]: (scan["state"], scan["reason"]) for scan in json.loads(shown.stdout)["scans"]}
    reason = named[scans[DAMAGED - 1].name][1]
    assert "damaged" in reason and named == {
        scans[LATE - 1].name: ("not reached", "its run ended before it was done"),  # it was withdrawn
        scans[DAMAGED - 1].name: ("failed", reason),
        scans[KILLED - 1].name: ("half done", f"it was in flight when shard {KILLED}/{ELEMENTS} was killed"),
    }

    words = shlex.split(hz_run("status", out, "--missing").stdout)
    code, said, told = finished("run", *words[1:])
    assert code == 3 and said.splitlines()[-1].startswith("3 scans: "), said + told
    assert hz_run("gather", out).exit_code == 3
    made = {name: data for name, data in results(out).items() if not name.startswith("shards/")}
    assert made == results(tmp_path / "serial")
