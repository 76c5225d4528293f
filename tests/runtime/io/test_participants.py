"""The reader of participants tables: rows, lines, ages and their units."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hz_runtime.errors import UsageError
from hz_runtime.io.participants import AgeIsNoNumber, check_age, read_table

TEXT = "participant_id\tage\tsite\nsub-01\t31\tKöln\nsub-02\t42\tZürich\n"


def write(folder: Path, data: str | bytes, **dictionary: object) -> Path:
    """participants.tsv, and its data dictionary where one is given."""
    path = folder / "participants.tsv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    if dictionary:
        path.with_suffix(".json").write_text(json.dumps(dictionary))
    return path


def ages(path: Path, *dictionaries: Path) -> list[float | None]:
    table = read_table(path, dictionaries)
    return [table.age(row) for row in table.rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_and_their_lines(tmp_path: Path, encoding: str, end: str) -> None:
    table = read_table(write(tmp_path, ("\n" + TEXT + "\n\t\t\n").replace("\n", end).encode(encoding)))
    assert table.headings == ("participant_id", "age", "site")
    assert [(row.line, row.texts) for row in table.rows] == [
        (3, ("sub-01", "31", "Köln")),
        (4, ("sub-02", "42", "Zürich")),
    ]


def test_columns_are_lower_case_and_unknown_cells_left_out(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, 'Participant_ID\t"Age"\tSex\n1\t n/a\t"F" \n2\t3\tM\tmore\n3\n'))
    assert (table.headings[0], table.columns) == ("Participant_ID", ("participant_id", "age", "sex"))
    assert [dict(row.known) for row in table.rows] == [
        {"participant_id": "1", "sex": "F"},
        {"participant_id": "2", "age": "3", "sex": "M"},
        {"participant_id": "3"},
    ]
    assert table.rows[0].get("age") == "" and table.rows[0].get("age", "?") == "?"


def test_a_quote_swallows_no_rows(tmp_path: Path) -> None:
    text = 'participant_id\tcomment\tage\na\t"left\t1\nb\tx\t2\nc\tright" said\t3\nd\t"whole"\t4\n'
    table = read_table(write(tmp_path, text))
    assert [row.get("participant_id") for row in table.rows] == list("abcd")
    assert [row.get("comment") for row in table.rows] == ['"left', "x", 'right" said', "whole"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("latin-1"), "participants.tsv, line 2: .*0xf6 is not UTF-8 .Latin-1"),
        (TEXT.replace("Köln", "Koln").encode("latin-1"), "participants.tsv, line 3: .*0xfc is not UTF-8"),
        (TEXT.encode("utf-16"), "participants.tsv, line 1: .*UTF-16"),
        (TEXT.encode("utf-16-le"), "participants.tsv, line 1: .*UTF-16"),
    ],
)
def test_other_encodings_are_refused_by_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_table(write(tmp_path, data))


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"participants\.tsv: cannot be read as a table: No such file"):
        read_table(tmp_path / "participants.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "participant_id,age\n1,2\n",
            "column participant_id; it has participant_id,age, separated by commas",
        ),
        ("participant_id;age\n", "separated by semicolons"),
        ("participant_id  age\n", "separated by spaces"),
        ("participant\tage\n", "line 1: lacks the column participant_id; it has participant, age\\."),
        ("sex\n", "lacks the columns participant_id and age"),
        ("", "it has none"),
    ],
)
def test_what_a_table_lacks(tmp_path: Path, text: str, message: str) -> None:
    table = read_table(write(tmp_path, text))
    with pytest.raises(UsageError, match=message):
        table.need("participant_id", *(["age"] if text == "sex\n" else []))


@pytest.mark.parametrize(
    ("unit", "given", "years"),
    [
        ("years", 31.5, 31.5), ("Year", 31.5, 31.5), ("a", 31.5, 31.5), ("", 31.5, 31.5), (None, 31.5, 31.5),
        ("months", 378, 31.5), ("mo", 378, 31.5), ("weeks", 52.1785714, 1), ("wk", 1461 / 7, 4),
        ("days", 1461, 4), ("d", 1461, 4), ("Days.", 1461, 4),
    ],
)  # fmt: skip
def test_ages_become_years(tmp_path: Path, unit: str | None, given: float, years: float) -> None:
    """A year has 12 months and 365.25 days: four years are 1461 days."""
    path = write(tmp_path, f"participant_id\tAge\n1\t{given}\n2\tn/a\n3\tN/A\n4\tnan\n", Age={"Units": unit})
    assert ages(path) == [pytest.approx(years, rel=1e-8), None, None, None]


def test_the_dictionary_beside_the_table_has_the_last_word(tmp_path: Path) -> None:
    above = tmp_path / "above.json"
    above.write_text('{"age": {"Units": "months"}}')
    path = write(tmp_path, "age\n36\n")
    assert (
        ages(path) == [36.0] and ages(path, above) == [3.0] and ages(path, tmp_path / "none.json") == [36.0]
    )
    assert ages(write(tmp_path, "age\n36\n", age={"Description": "at scan"}), above) == [3.0]
    assert ages(write(tmp_path, "age\n36\n", age={"Units": "years"}), above) == [36.0]
    path.with_suffix(".json").write_text("[1]")  # no data dictionary
    assert ages(path) == [36.0]


@pytest.mark.parametrize("text", ['{"age": {"Units": "decades"}}', '{"age": {"Units": 3}}', "{", ""])
def test_a_unit_that_is_not_understood_is_no_age(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "age\tsite\n36\tA\nn/a\tA\n")
    path.with_suffix(".json").write_text(text)
    table = read_table(path)
    assert table.rows[0].get("site") == "A" and table.age(table.rows[1]) is None
    with pytest.raises(UsageError, match=r"participants\.tsv, line 2: age '36' is in a unit that is not"):
        table.age(table.rows[0])


@pytest.mark.parametrize("text", ["372", "-1", "120.5", "inf", "-inf", "1e99"])
def test_ages_beyond_a_life_are_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"age\n40\n{text}\n")
    with pytest.raises(UsageError, match=f"line 3: age '{text}' is not within 0 to 120 years"):
        ages(path)
    with pytest.raises(UsageError, match=r"The known age: .* is not within 0 to 120 years"):
        check_age(float(text), "The known age")
    assert ages(write(tmp_path, "age\n0\n120\n")) == [0, 120]


@pytest.mark.parametrize("text", ["31,5", "89+", "forty", ">89"])
def test_what_is_no_number_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(AgeIsNoNumber, match=f"line 2: age '{text}' is not a number".replace("+", "[+]")):
        ages(write(tmp_path, f"age\n{text}\n"))
