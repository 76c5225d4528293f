"""Which scans of a BIDS data set are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from hz_runtime.bids.layout import Wanted, check_raw, entities, find_units
from hz_runtime.errors import UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return touch(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_acq-mprage_run-1_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_acq-mprage_run-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_part-phase_T1w.nii.gz",
        "sub-02/anat/sub-02_part-mag_T1w.nii.gz",
        "sub-02/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/.sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/anat/sub-02_T1w.json",
        "sub-03/func/sub-03_task-rest_bold.nii.gz",
        "sub-4 Doe/anat/sub-4 Doe_T1w.nii.gz",
        "derivatives/x/sub-05/anat/sub-05_T1w.nii.gz",
        "sourcedata/sub-06/anat/sub-06_T1w.nii.gz",
    )


def names(root: Path, **wanted: object) -> list[str]:
    units, _ = find_units(root, Wanted(**wanted))  # type: ignore[arg-type]
    return [path.name.removesuffix("_T1w.nii.gz") for unit in units for path in unit.scans]


def test_what_is_taken_and_what_is_not(study: Path) -> None:
    units, notes = find_units(study)
    assert [(u.name, u.folder.as_posix(), len(u.scans)) for u in units] == [
        ("sub-01_ses-a", "sub-01/ses-a", 1),
        ("sub-01_ses-b", "sub-01/ses-b", 2),
        ("sub-02", "sub-02", 2),
    ]
    assert names(study)[3:] == ["sub-02", "sub-02_part-mag"]
    lines = "\n".join(notes)
    assert "sub-03: no T1w scan" in lines and "sub-01_T1w.nii.gz: not named for sub-02" in lines
    assert "sub-02_T1w.nii: there is a sub-02_T1w.nii.gz" in lines and len(notes) == 3


def test_labels(study: Path) -> None:
    assert names(study, subjects=("sub-02", "02")) == ["sub-02", "sub-02_part-mag"]
    assert names(study, sessions=("ses-a",)) == ["sub-01_ses-a"]
    with pytest.raises(UsageError, match="no sub-09, sub-10"):
        find_units(study, Wanted(subjects=("01", "09", "10")))
    with pytest.raises(UsageError, match="session c"):
        find_units(study, Wanted(sessions=("a", "c")))
    with pytest.raises(UsageError, match="no T1w scan found"):
        find_units(study, Wanted(subjects=("03",)))


def test_ages_and_sites(study: Path) -> None:
    (study / "participants.tsv").write_text(
        "\ufeffparticipant_id\tage\tsite\nsub-01\t30\tA\nsub-02\t89+\tn/a\n", encoding="utf-8"
    )
    (study / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\nses-b\t32.5\nses-a\tn/a\n")
    assert [(u.age, u.site) for u in find_units(study)[0]] == [(30, "A"), (32.5, "A"), (None, None)]
    (study / "participants.tsv").write_bytes(b"\xff\xfe\0")
    assert [(u.age, u.site) for u in find_units(study)[0]] == [(None, None), (32.5, None), (None, None)]


@pytest.mark.parametrize(
    ("table", "wanted_ages"),
    [
        # One row a session, and the table says which.
        ("participant_id\tsession_id\tage\nsub-01\tses-a\t60\nsub-01\tb\t65\n", [60, 65, None]),
        ("participant_id\tsession_id\tage\nsub-01\tses-a\t60\n", [60, None, None]),
        ("participant_id\tsession_id\tage\nsub-01\tn/a\t60\nsub-01\tses-b\t65\n", [60, 65, None]),
        ("participant_id\tsession_id\tage\nsub-01\tses-a\t60\nsub-01\tses-a\t61\n", [None, None, None]),
        # Without sessions in the data set no row is of another one.
        ("participant_id\tsession_id\tage\nsub-02\tses-1\t60\n", [None, None, 60]),
        ("participant_id\tsession_id\tage\nsub-02\tses-1\t60\nsub-02\tses-2\t65\n", [None] * 3),
        # Rows of one participant that the table does not tell apart.
        ("participant_id\tage\nsub-01\t60\nsub-01\t65\nsub-02\t50\nsub-02\t50.0\n", [None, None, 50]),
        ("participant_id\tage\nsub-01\t60\nsub-01\t89+\n", [None, None, None]),
        # Labels without their prefix.
        ("participant_id\tage\n01\t60\n02\t50\n", [60, 60, 50]),
        ("participant_id\tage\nsub-01\t60\n01\t65\n", [None, None, None]),
        # A quote is a character, except around a whole cell.
        ('participant_id\tnote\tage\nsub-01\t"left\t60\nsub-02\tso" said\t50\n', [60, 60, 50]),
        ('"participant_id"\t"age"\n"sub-01"\t60\n"sub-02"\t"50"\n', [60, 60, 50]),
        ("participant_id\tage\tnote\nsub-01\t60\nsub-02\t50\tx\ty\n\n", [60, 60, 50]),
    ],
)
def test_ages_that_a_table_leaves_no_doubt_about(
    study: Path, table: str, wanted_ages: list[float | None]
) -> None:
    (study / "participants.tsv").write_text(table)
    assert [unit.age for unit in find_units(study)[0]] == wanted_ages


def test_a_session_has_the_last_word(study: Path) -> None:
    (study / "participants.tsv").write_text("participant_id\tage\tsite\nsub-01\t30\tA\n")
    sessions = study / "sub-01" / "sub-01_sessions.tsv"
    sessions.write_text("session_id\tage\tsite\nb\t31\tB\nses-a\t30\tB\nses-a\t33\tB\n")
    assert [(u.age, u.site) for u in find_units(study)[0]][:2] == [(None, "B"), (31, "B")]


def test_the_check_of_a_raw_data_set(study: Path) -> None:
    with pytest.raises(UsageError, match="--skip-bids-validation"):
        check_raw(study)
    description = study / "dataset_description.json"
    description.write_text('{"BIDSVersion": "1.9.0", "DatasetType": "derivative"}')
    with pytest.raises(UsageError, match="derivative"):
        check_raw(study)
    description.write_text('{"BIDSVersion": "1.9.0"}')
    check_raw(study)


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="typo: no such folder"):
        check_raw(tmp_path / "typo")


def test_entities() -> None:
    assert entities("sub-01_run-2_T1w.nii.gz") == {"sub": "01", "run": "2"}
