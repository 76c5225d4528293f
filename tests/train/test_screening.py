"""The participants table that screening writes: the rows of the one it read, without the outliers."""

from __future__ import annotations

from pathlib import Path

from hz_train.cohort import read_participants
from hz_train.screening import without


def test_rows_and_cells_outlive_quotes(tmp_path: Path) -> None:
    """Four rows, of which two hold a quote that nothing ends; one row is left out."""
    table, out = tmp_path / "raw" / "participants.tsv", tmp_path / "screened"
    table.parent.mkdir()
    for name in "abcd":
        (table.parent / f"{name}.nii").touch()
    table.write_text(
        "File\tsite\tage\tsex\tgroup\tcomment\ttruth\n"
        'a.nii\tA\t30\tF\tc\t"left\tb.nii\n'
        "b.nii\tA\t31\tF\tc\t\tn/a\n"
        'c.nii\tB\t32\tM\tc\tright" he said\tn/a\n'
        "d.nii\tB\t33\tM\tc\tplain\n"
    )
    (table.parent / "participants.json").write_text('{"age": {"Units": "years"}}')
    scans = read_participants(table).scans
    assert len(scans) == 4
    written = without(table, out, [scan for scan in scans if scan.path.name == "b.nii"])
    assert written.read_text().splitlines() == [
        "File\tsite\tage\tsex\tgroup\tcomment\ttruth",
        '../raw/a.nii\tA\t30\tF\tc\t"left\t../raw/b.nii',
        '../raw/c.nii\tB\t32\tM\tc\tright" he said\tn/a',
        "../raw/d.nii\tB\t33\tM\tc\tplain\tn/a",
    ]
    assert [scan.path for scan in read_participants(written).scans] == [
        scan.path for scan in scans if scan.path.name != "b.nii"
    ]
    assert (out / "participants.json").read_bytes() == (table.parent / "participants.json").read_bytes()


def test_the_table_that_was_read_stays(tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    (tmp_path / "a.nii").touch()
    table.write_text("file\tsite\tage\tsex\tgroup\na.nii\tA\t30\tF\tc\n")
    before = table.read_bytes()
    assert without(table, tmp_path, []).name == "participants_without_outliers.tsv"
    assert table.read_bytes() == before
