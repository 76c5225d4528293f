"""Ages of a run from a table or for one scan: what is refused, what is left out with a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.errors import UsageError


def scan(label: str) -> InputScan:
    return InputScan(Path(f"{label}_T1w.nii.gz"), f"{label}_T1w.nii.gz", label)


def write(folder: Path, *ages: str) -> Path:
    path = folder / "people.tsv"
    rows = [f"sub-{n}\t{age}" for n, age in enumerate(ages, 1)]
    path.write_text("\n".join(("participant_id\tage", *rows)) + "\n")
    return path


@pytest.mark.parametrize("age", ["372", "-1", "inf"])
def test_a_table_with_an_impossible_age_is_refused_by_its_line(tmp_path: Path, age: str) -> None:
    with pytest.raises(UsageError, match=rf"people\.tsv, line 3: age '{age}' is not within 0 to 120 years"):
        KnownAges.from_tsv(write(tmp_path, "30", age))


def test_ages_in_months_become_years(tmp_path: Path) -> None:
    path = write(tmp_path, "372", "n/a")
    path.with_suffix(".json").write_text('{"age": {"Units": "months"}}')
    known = KnownAges.from_tsv(path)
    assert [known.of(scan(f"sub-{n}")) for n in (1, 2)] == [31.0, None]
    path.with_suffix(".json").write_text('{"age": {"Units": "decades"}}')
    with pytest.raises(UsageError, match="a unit that is not understood, 'decades'"):
        KnownAges.from_tsv(path)


def test_ages_that_are_no_numbers_are_heard_of(tmp_path: Path) -> None:
    known = KnownAges.from_tsv(write(tmp_path, "30", "31,5", "89+"))
    note = "people.tsv, line 3: age '31,5' is not a number of years. (and 1 more)"
    assert known.gaps([scan("sub-1")]) == (note,)
    assert known.gaps([scan("sub-1"), scan("sub-2")])[0] == note


@pytest.mark.parametrize("age", [-1.0, 120.5, float("nan"), float("inf")])
def test_the_age_of_one_scan_is_one(age: float) -> None:
    with pytest.raises(UsageError, match="not within 0 to 120 years"):
        KnownAges(only=age)
