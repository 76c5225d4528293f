"""hz-run --shard, status and gather as a cluster's user meets them, with a job that is killed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from help_pages import help_of
from hz_cli import run
from processes import finished, started, until
from small_scans import results, write_scans


def hz_run(*arguments: object) -> Result:
    return CliRunner().invoke(run.main, [str(a) for a in arguments])


def test_help_of_the_commands() -> None:
    for name in ("status", "gather"):
        shown, imported = help_of("run", name)
        assert "OUT" in shown and "INPUT" not in shown and not imported
    assert "run gather" in help_of("run")[0]


def test_a_job_that_is_killed_is_named_and_run_again(tmp_path: Path, tiny_bundle: Path) -> None:
    """The printed command, typed as it is, runs what is missing and nothing else; gathered, all is as of one
    process."""
    write_scans(tmp_path / "in with spaces", 12)
    (tmp_path / "in with spaces" / "sub-00_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    out = tmp_path / "out"
    how = (tmp_path / "in with spaces", "--model", tiny_bundle, "--threads", 1, "--plain", "--out")
    journal = out / "shards" / "2-of-2.jsonl"
    job = started("run", *how, out, "--shard", "2/2")
    try:
        until(lambda: journal.exists() and journal.read_bytes().count(b'"begun"') >= 2, job)
    finally:
        job.kill()
        job.communicate()
    code, said, told = finished("run", *how, out, "--shard=1/2")
    assert code == 3 and "shard 1/2. When all have ended:  hz-run gather" in said, told
    shown = hz_run("status", out)
    assert shown.exit_code == 3 and "sub-00_T1w.nii.gz  failed" in shown.output
    assert "in flight when shard 2/2 was killed" in shown.output and "shard 2/2  killed" in shown.output
    status = json.loads(hz_run("status", out, "--json").stdout)
    missing = status["counts"]["failed"] + status["counts"]["half done"] + status["counts"]["not reached"]
    words = shlex.split(hz_run("status", out, "--missing").stdout)
    assert words[0] == "hz-run" and words[-1] == "--missing" and "--shard" not in " ".join(words)
    code, said, told = finished("run", *words[1:])
    assert code == 3 and said.splitlines()[-1].startswith(f"{missing} scan"), told
    assert hz_run("gather", out).exit_code == 3
    assert finished("run", *how, tmp_path / "serial")[0] == 3
    made = {name: data for name, data in results(out).items() if not name.startswith("shards/")}
    assert made == results(tmp_path / "serial")
    assert hz_run("status", out).exit_code == 3 and "1 failed" in hz_run("status", out).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status", "nowhere"), "does not exist"),
        (("status", "."), "holds no results of hz-run"),
        (("gather", "."), "was not divided into shards"),
        (("x.nii.gz", "--shard", "5/3"), "there is no shard 5/3"),
        (("x.nii.gz", "--shard", "array"), "no element of a job array"),
    ],
)
def test_usage(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    done = hz_run(*arguments)
    assert done.exit_code == 2 and says in done.output


def test_the_choice_of_a_part_is_left_out_of_the_command() -> None:
    given = ["in", "--shard", "1/2", "--out", "o", "--missing", "--shard=3/4", "--", "--shard"]
    assert run.without_shard(given) == ["in", "--out", "o", "--", "--shard"]
