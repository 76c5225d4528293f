"""Results that a later fix concerns are listed by what made them; no others, and nothing is guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hz_cli.run import main
from hz_runtime.preparation.preparer import VERSION
from hz_runtime.results import affected
from hz_runtime.results.affected import Fix, Made, concerns
from hz_runtime.results.record import RECORD_VERSION

pytestmark = pytest.mark.made_up_results
ROOT = Path(__file__).resolve().parents[3]
NOW = Made("now", "0.1.0", RECORD_VERSION, VERSION, "sha256:ab")
Write = Callable[..., None]


def _fix(*made_by: dict[str, Any]) -> Fix:
    return Fix("a", "0.2.0", made_by, "all", "wrong")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the record of a result, as hz-run writes it."""

    def record(
        name: str, number: int = RECORD_VERSION, preparation: int | None = None, **others: str
    ) -> None:
        options = {"space": "native", **({"prepare": {"version": preparation}} if preparation else {})}
        made = {"Name": "hz", "Version": others.get("hz", "0.1.0"), "Options": options}
        path = tmp_path / f"{name}_desc-harmonized_T1w.json"
        path.parent.mkdir(exist_ok=True)
        stored = {"record": number, "bundle": others.get("bundle", "sha256:ab")}
        path.write_text(json.dumps({"GeneratedBy": [made], "hz": stored}))

    return record


def _status(out: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["status", str(out), "--affected", *options])
    return done.exit_code, done.output


def test_results_of_today_are_concerned_by_nothing(tmp_path: Path, write: Write) -> None:
    write("sub-1")
    write("sub-2", preparation=VERSION)
    (tmp_path / "run.json").write_text('{"schema": "1.0", "scans": []}')  # no record
    assert _status(tmp_path) == (0, "2 results: no later fix concerns them\n")


def test_each_result_is_listed_under_the_fixes_of_what_made_it(tmp_path: Path, write: Write) -> None:
    write("sub-1/sub-1", 3)
    write("sub-2/sub-2", 5, preparation=3)
    write("sub-3/sub-3")
    write(".hz/sub-1", 3)  # where hz-bids works
    code, text = _status(tmp_path, "--json")
    found = json.loads(text)
    named = {fix["id"]: fix["results"] for fix in found["fixes"]}
    one, two = (f"sub-{n}/sub-{n}_desc-harmonized_T1w.json" for n in (1, 2))
    assert code == 3
    assert found["results"] == 3
    assert named == {
        "low-pass-of-oblique-scans": [one],
        "frame-of-zeros": [one],
        "ages-of-unusual-anatomy": [one, two],
        "air-by-the-darkest-voxel": [one, two],
        "pose-of-raw-heads": [two],
        "coarse-search": [two],
        "torn-dicom-files": [one, two],
        "mgh-without-a-pose": [one, two],
    }
    code, text = _status(tmp_path)
    assert code == 3
    assert "3 results: later fixes concern 2" in text
    assert "moire" in text
    assert "made anew by the same command" in text


def test_a_bundle_is_known_by_its_id(tmp_path: Path, write: Write) -> None:
    first = next(fix for fix in affected.fixes() if "bundle" in fix.made_by[0])
    write("sub-1", bundle=first.made_by[0]["bundle"])
    found = json.loads(_status(tmp_path, "--json")[1])
    assert [fix["id"] for fix in found["fixes"]] == [first.id]


def test_a_record_that_does_not_say_it_is_told_apart(tmp_path: Path) -> None:
    """hz-prepare's records hold no version of the preparation."""
    record = {"gates": [], "hz": {"record": RECORD_VERSION, "bundle": "0f" * 32}}
    (tmp_path / "sub-1_desc-preparation.json").write_text(json.dumps(record))
    code, text = _status(tmp_path)
    assert code == 3
    assert "sub-1_desc-preparation.json  (its record does not say)" in text
    assert concerns(_fix({"preparation": 2}), Made("x", "", 6, -1, "")) is None
    assert concerns(_fix({"record": 5, "preparation": 2}), Made("x", "", 6, -1, "")) is False
    assert concerns(_fix({"preparation": 2}, {"record": 6}), Made("x", "", 6, -1, "")) is True


@pytest.mark.parametrize(
    ("installed", "made", "concerned"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.2.0", "0.1.0", True),
        ("0.10.0", "0.2.0", False),
        ("0.10.0", "0.1.0rc1", True),
    ],
)
def test_versions_of_hz_count_from_the_next_one_on(
    monkeypatch: pytest.MonkeyPatch, installed: str, made: str, concerned: bool
) -> None:
    """Between releases results of before and after a fix are of one version."""
    monkeypatch.setattr(affected, "hz_version", lambda: installed)
    assert concerns(_fix({"hz": "0.1.0"}), Made("x", made, 6, None, "")) is concerned


@pytest.mark.parametrize("text", ["[]", "{}", '{"hz": {"record": "x"}}', '{"hz": 3}', "[" * 2000, "\x00"])
def test_files_of_others_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert list(affected.results_of(tmp_path)) == []


def test_the_table_has_a_line_for_each_release() -> None:
    """In the order of CHANGELOG.md, and no fix concerns what this version makes."""
    releases = [row["version"] for row in json.loads(affected.TABLE.read_text())["releases"]]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases == headings
    names = [fix.id for fix in affected.fixes()]
    assert len(names) == len(set(names))
    assert [fix.id for fix in affected.fixes() if concerns(fix, NOW)] == []
    keys = {key for fix in affected.fixes() for one in fix.made_by for key in one}
    assert keys <= {"hz", "record", "preparation", "bundle"}
    assert all(fix.made_by and fix.scans and fix.what for fix in affected.fixes())


def test_affected_and_missing_are_two_questions(tmp_path: Path) -> None:
    code, text = _status(tmp_path, "--missing")
    assert code == 2
    assert "leave one out" in text
