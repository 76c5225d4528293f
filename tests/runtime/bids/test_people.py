"""Ages and sites by the tables of a data set, and the notes on what is not taken from them."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hz_runtime.batch.executor import Event
from hz_runtime.batch.run import RunOptions
from hz_runtime.bids.layout import Unit, find_units
from hz_runtime.bids.participant import run_participants
from hz_runtime.bundle.store import load_bundle
from small_scans import write_scan


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two participants, the second in two sessions."""
    root = tmp_path / "raw"
    for name in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a", "sub-02/ses-b/anat/sub-02_ses-b"):
        (root / f"{name}_T1w.nii.gz").parent.mkdir(parents=True)
        (root / f"{name}_T1w.nii.gz").touch()
    return root


def units(root: Path, table: str | bytes, **dictionary: object) -> tuple[Unit, ...]:
    (root / "participants.tsv").write_bytes(table.encode() if isinstance(table, str) else table)
    if dictionary:
        (root / "participants.json").write_text(json.dumps(dictionary))
    return find_units(root)[0]


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (b"participant_id\tage\tsite\nsub-01\t31\tK\xf6ln\nsub-02\t42\tA\n", "line 2: .* not UTF-8"),
        ("participant_id\tage\nsub-01\t31\n".encode("utf-16"), "line 1: .* UTF-16"),
        ("participant_id,age\nsub-01,31\n", "line 1: .* participant_id; .* separated by commas"),
        ("participant_id  age\nsub-01  31\n", "line 1: .* separated by spaces"),
        (
            "participant\tage\nsub-01\t31\n",
            "line 1: lacks the column participant_id; it has participant, age",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_heard_of_in_every_unit(
    study: Path, table: str | bytes, note: str
) -> None:
    for unit in units(study, table):
        assert (unit.age, unit.site, len(unit.notes)) == (None, None, 1)
        assert re.match(
            rf"participants\.tsv, {note}.*No age or site is taken from it\. (Give|Write) ", unit.notes[0]
        )


def test_no_table_is_nothing_to_hear_of(study: Path) -> None:
    assert [unit.notes for unit in find_units(study)[0]] == [(), (), ()]


@pytest.mark.parametrize(
    ("table", "age", "note"),
    [
        (
            "participant_id\tage_years\nsub-01\t31\n",
            None,
            ", line 1: lacks the column age; it has .*age_years",
        ),
        ("participant_id\tage\nsub-01\t31,5\n", None, ", line 2: age '31,5' is not a number of years"),
        ("participant_id\tage\nsub-02\t3\nsub-01\t89+\n", None, ", line 3: age '89[+]' is not a number"),
        ("participant_id\tage\nsub-01\t372\n", None, ", line 2: age '372' is not within 0 to 120 years"),
        ("participant_id\tage\nsub-01\t-3\n", None, ", line 2: age '-3' is not within 0 to 120 years"),
        ("participant_id\tage\nsub-1\t30\n", None, ": no row for sub-01, so no age"),
        (
            "participant_id\tage\nsub-01\t30\nsub-02\t3\nsub-01\t31\n",
            None,
            ", line 2 and participants.tsv, line 4: ages that differ",
        ),
        ("participant_id\tage\nsub-01\tn/a\n", None, None),
        ("participant_id\tage\nsub-01\t31\n", 31, None),
    ],
)
def test_why_a_participant_has_no_age(study: Path, table: str, age: float | None, note: str | None) -> None:
    unit = units(study, table)[0]
    assert (unit.name, unit.age, len(unit.notes)) == ("sub-01", age, int(note is not None))
    assert note is None or re.match(rf"participants\.tsv{note}", unit.notes[0])


def test_ages_in_months_become_years(study: Path) -> None:
    """Of both tables; a sessions.json at the data set's root holds for all, one beside a table for it."""
    (study / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tage\nses-a\t130.5\nses-b\t732\n")
    (study / "sessions.json").write_text('{"age": {"Units": "weeks"}}')
    table = "participant_id\tage\nsub-01\t372\nsub-02\t480\n"
    one, two, three = units(study, table, age={"Description": "age", "Units": "months"})
    assert (one.age, one.notes) == (31.0, ())
    assert (two.age, three.age) == (pytest.approx(130.5 * 7 / 365.25), pytest.approx(732 * 7 / 365.25))
    (study / "sub-02" / "sub-02_sessions.json").write_text('{"age": {"Units": "months"}}')
    assert [unit.age for unit in units(study, table)] == [31.0, 130.5 / 12, 61.0]


def test_a_unit_that_is_not_understood_is_no_age(study: Path) -> None:
    unit = units(study, "participant_id\tage\tsite\nsub-01\t3\tA\n", age={"Units": "decades"})[0]
    assert (unit.age, unit.site) == (None, "A")
    assert unit.notes == (
        "participants.tsv, line 2: age '3' is in a unit that is not understood, 'decades'.",
    )


def test_a_folder_that_cannot_be_listed_is_heard_of(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A participant's, and an anat: the others go on."""
    listed = Path.iterdir

    def denied(path: Path) -> Iterator[Path]:
        if path in (study / "sub-01", study / "sub-02/ses-a/anat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    found, notes = find_units(study)
    assert [unit.name for unit in found] == ["sub-01", "sub-02_ses-b"]
    assert notes == (
        "sub-01: the folder cannot be listed (Permission denied)",
        "sub-02_ses-a: its folder anat cannot be listed (Permission denied)",
    )


def test_notes_are_heard_once_and_logged_with_every_unit(tmp_path: Path, tiny_bundle: Path) -> None:
    root, heard = tmp_path / "raw", []
    for label in ("01", "02"):
        write_scan(root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", int(label))
    found = units(root, "participant_id,age\nsub-01,31\nsub-02,42\n")

    def listen(event: Event) -> None:
        if event.kind == "note":
            heard.append(event.text)

    options = RunOptions(report=False)
    level = run_participants(
        found, load_bundle(tiny_bundle), root, tmp_path / "out", options, on_event=listen
    )
    assert level.exit_code == 0 and [scan.age for scan in level.scans] == [None, None]
    assert [text for text in heard if "participants.tsv" in text] == list(found[0].notes)
    for label in ("01", "02"):
        assert found[0].notes[0] in (tmp_path / f"out/logs/sub-{label}.log").read_text()
