"""hz-bids as a BIDS App is called, and what the BIDS validator says of its derivatives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from help_pages import help_of
from hz_cli import bids
from small_bids import write_study

Call = Callable[..., Result]


@pytest.fixture
def hz_bids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command in this process, in an empty folder, signals left as they were."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(bids.main, [str(a) for a in args])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("bids") / "study")


def test_both_levels(hz_bids: Call, study: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = hz_bids(
        study,
        out,
        "participant",
        "--no-prepare",
        "--model",
        tiny_bundle,
        "--n-cpus",
        1,
        "--participant-label",
        "02",
    )
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines()[-1] == "2 scans: 2 ok; see sub-*.html and logs/ in out"
    assert str(tmp_path) not in run.output
    group = hz_bids(study, out, "group")
    assert group.exit_code == 0 and "predictions.tsv and report.html" in group.stdout
    assert len((out / "predictions.tsv").read_text().splitlines()) == 3
    (tmp_path / "f.json").write_text('{"t1w": {"run": 2}}')
    chosen = hz_bids(
        study, tmp_path / "o2", "participant", "--no-prepare", "--model", tiny_bundle,
        "--bids-filter-file", "f.json", "-w", "scratch", "-q", "--skip_bids_validator",
    )  # fmt: skip
    assert chosen.exit_code == 0 and chosen.stdout.startswith("1 scan: 1 ok")
    assert (tmp_path / "scratch" / "sub-02").is_dir() and not (tmp_path / "o2" / ".hz").exists()


def test_scans_are_raw_heads_unless_it_is_said(
    hz_bids: Call, study: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """An ellipsoid is no head: a gate refuses it, and the record says what was asked and why not."""
    pytest.importorskip("niimath", reason="needs the extra prep")
    only = ("--participant-label", "01", "--session-label", "1")
    run = hz_bids(study, tmp_path / "out", "participant", "--dof", 12, "--model", tiny_bundle, *only)
    assert run.exit_code == 3 and "1 scan: 1 failed" in run.stdout
    told = json.loads((tmp_path / "out" / "logs" / "sub-01_ses-1_run.json").read_text())
    assert told["options"]["prepare"]["dof"] == 12 and told["scans"][0]["reason"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_what_is_wrong_is_said(hz_bids: Call, study: Path, tmp_path: Path) -> None:
    assert hz_bids(study, "out", "session").exit_code == 2
    assert hz_bids(tmp_path / "none", "out", "participant").exit_code == 2
    missing = hz_bids(study, "out", "participant", "--participant_label", "01", "99")
    assert missing.exit_code == 2 and "no sub-99" in missing.output
    early = hz_bids(study, "out", "group")
    assert early.exit_code == 2 and "hz-bids BIDS_DIR OUT participant" in early.output


LABEL = "--participant-label"


@pytest.mark.parametrize(
    "given, meant",
    [
        (["in", "out", "group", LABEL, "1", "2"], ["in", "out", "group", LABEL, "1", LABEL, "2"]),
        ([LABEL, "1", "2", "in", "out", "group"], [LABEL, "1", LABEL, "2", "in", "out", "group"]),
        ([LABEL, "1", "-w", "x", "in", "out", "group"], [LABEL, "1", "-w", "x", "in", "out", "group"]),
        (["in", "out", "group", LABEL], ["in", "out", "group", LABEL]),
    ],
)
def test_labels_are_given_as_to_other_bids_apps(given: list[str], meant: list[str]) -> None:
    assert bids.spread(given) == meant


def test_help_is_light() -> None:
    shown, imported = help_of("bids")
    assert "--participant-label" in shown and "--skip-bids-validation" in shown
    assert not imported


def validated(root: Path) -> list[str]:
    """Codes of the errors that the BIDS validator finds; skips where it is not installed."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.is_file() else shutil.which("bids-validator-deno")
    if not program:
        pytest.skip("needs the BIDS validator:  pip install bids-validator-deno")
    told = subprocess.run(
        [program, "--json", str(root)], capture_output=True, text=True, timeout=300, check=False
    )
    issues = json.loads(told.stdout)["issues"]["issues"]
    return [
        f"{i['code']} {i.get('subCode', '')} {i.get('location', '')}"
        for i in issues
        if i["severity"] == "error"
    ]


def test_the_validator_finds_no_error(hz_bids: Call, study: Path, tiny_bundle: Path) -> None:
    """Neither in the raw data set, with derivatives in it, nor in the derivatives; but it does find one."""
    out = study / "derivatives" / "hz"
    assert (
        hz_bids(
            study, out, "participant", "--no-prepare", "--model", tiny_bundle, "--space", "both"
        ).exit_code
        == 0
    )
    assert hz_bids(study, out, "group").exit_code == 0
    assert validated(out) == []
    assert validated(study) == []
    (out / "sub-01" / "ses-1" / "anat" / "sub-09_T1w.nii.gz").write_bytes(b"")
    assert validated(out)


def test_options_of_other_bids_apps(hz_bids: Call, study: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """As fMRIPrep and MRIQC write them, with dashes or underscores; stdout is one JSON object a line."""
    out = tmp_path / "out"
    run = hz_bids(
        study, out, "participant", "--no_prepare", f"--model={tiny_bundle}", "--nthreads", 1,
        "--omp_nthreads=1", "--mem_mb", 2000, "--bids_database_dir", "db", "--notrack", "--n_cpus", 1,
        "--skip_bids_validation", "--participant_label", "02", "01", "--progress", "json",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    events = [json.loads(line, parse_constant=pytest.fail) for line in run.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "note"] == ["start", *["scan"] * 4, "end"]
    assert events[-1]["exit_code"] == 0 and events[-1]["counts"]["ok"] == 4
    assert [event["done"] for event in events if event["event"] == "scan"] == [1, 2, 3, 4]
    page = out / "sub-02.html"
    before = page.read_bytes()
    page.write_text("another")
    again = hz_bids(study, out, "participant", "--reports_only", "--participant-label", "02")
    assert again.exit_code == 0 and again.stdout.startswith("2 scans: 2 ok; see sub-*.html"), again.output
    assert page.read_bytes() == before
    none = hz_bids(study, tmp_path / "empty", "participant", "--reports-only")
    assert none.exit_code == 2 and "holds nothing that pages could be made of" in none.stderr


def test_stop_on_first_crash(hz_bids: Call, study: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(study, tmp_path / "study")
    (bad / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz").write_bytes(b"\x1f\x8b nothing")
    how = ("participant", "--no-prepare", "--model", tiny_bundle, "--n-cpus", 1, "--mem-mb", 1)
    run = hz_bids(bad, tmp_path / "out", *how, "--stop-on-first-crash")
    assert run.exit_code == 3 and "1 failed" in run.stdout and run.stdout.splitlines()[-1].count("3 ok") == 0
    rest = hz_bids(bad, tmp_path / "out", *how)
    assert rest.exit_code == 3 and len(list((tmp_path / "out" / "logs").glob("*_run.json"))) == 3


def test_a_value_that_ends_like_an_option_is_that_value(tmp_path: Path) -> None:
    # "auto" is "--to" behind two other letters: it once became the option.
    words = [str(tmp_path), "out", "participant", "--backend", "auto", "--brain-mask", "auto"]
    params = bids.main.make_context("hz-bids", words).params
    assert (params["backend"], params["brain_mask"], params["to"]) == ("auto", "auto", None)
