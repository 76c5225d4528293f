"""Cohort tables and splits; the real cohort's rescans are the trap."""

from __future__ import annotations

import numpy as np
import pytest

from hz_runtime.errors import UsageError
from hz_train.cohort import read_participants


def table(folder, rows, header="file\tsite\tage\tsex\tgroup\tparticipant_id"):
    for row in rows:
        (folder / row.split("\t")[0]).write_bytes(b"x")
    path = folder / "participants.tsv"
    path.write_text(header + "\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def rescans(tmp_path):
    rows = [f"s{i}_{r}.nii\t{'AB'[i % 2]}\t{20 + i}\tF\tcontrol\tsub-{i}" for i in range(20) for r in (1, 2)]
    return read_participants(table(tmp_path, rows))


def subjects(cohort):
    return {scan.subject for scan in cohort.scans}


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_on_both_sides(rescans, seed):
    training, held = rescans.split(0.3, seed)
    assert not subjects(training) & subjects(held)
    assert len(training.scans) + len(held.scans) == 40
    assert {len([s for s in held.scans if s.site == site]) for site in "AB"} == {6}
    assert rescans.split(0.3, seed) == (training, held)


def test_folds_hold_everyone_out_once(rescans):
    held = [h for _, h in rescans.folds(4, 0)]
    assert sorted(s for h in held for s in subjects(h)) == sorted(subjects(rescans))
    for training, out in rescans.folds(4, 0):
        assert not subjects(training) & subjects(out)


def test_a_subject_scanned_at_two_sites_is_on_one_side(tmp_path):
    rows = [f"{site}{i}.nii\t{site}\t30\tM\tcontrol\tsub-{i}" for site in "AB" for i in range(10)]
    cohort = read_participants(table(tmp_path, rows))
    for seed in range(10):
        training, held = cohort.split(0.4, seed)
        assert not subjects(training) & subjects(held)


def test_travellers_are_held_out_at_the_share_of_everyone(tmp_path):
    """A fifth of each site's own subjects travels: a share of them is held out, with all their scans."""
    rows = []
    for home in "ABCDE":
        for i in range(20):
            for site in "ABCDE" if i < 4 else home:
                rows.append(f"{site}-{home}{i}.nii\t{site}\t30\tM\tcontrol\tsub-{home}{i}")
    cohort = read_participants(table(tmp_path, rows))
    held = [cohort.split(0.3, seed)[1] for seed in range(20)]
    travellers = [sum(s.site == "E" and not s.subject.startswith("sub-E") for s in h.scans) for h in held]
    assert np.mean(travellers) == pytest.approx(0.3 * 16, rel=0.25)
    for part in held:
        for subject in subjects(part):
            assert len(part.of([subject]).scans) == len(cohort.of([subject]).scans)


@pytest.mark.parametrize("k", [0, 1, 21])
def test_folds_that_cannot_be(rescans, k):
    with pytest.raises(UsageError, match=f"20 subjects cannot be held out in {k} folds"):
        rescans.folds(k, 0)


def test_real_cohort_keeps_its_rescans_together(scans):
    cohort = read_participants(scans / "real_cohort_2mm" / "participants.tsv")
    assert len(cohort.scans) == 107
    assert len(cohort.scans) - len(cohort.subjects) == 4  # as participant_id has it
    for seed in range(20):
        training, held = cohort.split(0.3, seed)
        assert not subjects(training) & subjects(held)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.nii\tA\tforty\tF\tcontrol\ts", "age 'forty' is not a number"),
        ("a.nii\tA\t140\tF\tcontrol\ts", "age '140'"),
        ("a.nii\t\t40\tF\tcontrol\ts", "site is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(UsageError, match=f"line 2: .*{message}"):
        read_participants(table(tmp_path, [row]))


def test_the_first_subjects_of_each_site_come_with_all_scans(rescans):
    few = rescans.first(3)
    assert subjects(few) == {f"sub-{i}" for i in range(6)}
    assert len(few.scans) == 12
    assert rescans.first(99) == rescans


def test_missing_file_and_column(tmp_path):
    path = table(tmp_path, ["a.nii\tA\t40\tF\tcontrol\ts"])
    (tmp_path / "a.nii").unlink()
    with pytest.raises(UsageError, match=r"'a\.nii' does not exist"):
        read_participants(path)
    with pytest.raises(UsageError, match="lacks the columns site, sex and group"):
        read_participants(table(tmp_path, ["a.nii\t40"], "file\tage\tsex"[:8]))


def test_empty_site_is_refused_early(rescans):
    with pytest.raises(UsageError, match="site 'C' has no scans in this cohort; it has A, B"):
        rescans.at(["A", "C"])


def test_a_quote_swallows_no_rows(tmp_path):
    """A cell that begins with a double quote and has no end, as free comments do."""
    header = "file\tsite\tage\tsex\tgroup\tcomment"
    rows = ['a.nii\tA\t40\tF\tc\t"left', "b.nii\tA\t41\tM\tc\tn/a", 'c.nii\tB\t42\tF\tc\tright"']
    cohort = read_participants(table(tmp_path, [*rows, "d.nii\tB\t43\tM\tc\tn/a"], header))
    assert [(s.path.name, s.site, s.age) for s in cohort.scans] == [
        ("a.nii", "A", 40), ("b.nii", "A", 41), ("c.nii", "B", 42), ("d.nii", "B", 43)
    ]  # fmt: skip


def test_a_fault_below_a_blank_line_is_named_by_its_line_in_the_file(tmp_path):
    path = table(tmp_path, ["a.nii\tA\t40\tF\tc\ts", "b.nii\tA\t-1\tF\tc\tt"])
    path.write_text(path.read_text().replace("\nb.nii", "\n\nb.nii"))
    with pytest.raises(UsageError, match="line 4: age '-1' is not within 0 to 120 years"):
        read_participants(path)


def test_ages_in_months(tmp_path):
    path = table(tmp_path, ["a.nii\tA\t372\tF\tc\ts", "b.nii\tA\tn/a\tF\tc\tt"])
    (tmp_path / "participants.json").write_text('{"age": {"Units": "months"}}')
    assert [s.age for s in read_participants(path).scans] == [31.0, None]
