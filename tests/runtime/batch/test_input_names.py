"""What the scans of a run are called: names that tell them apart, and results that overwrite none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hz_runtime.batch.inputs import collect
from hz_runtime.errors import UsageError


def names(inputs, out: Path) -> dict[str, str]:
    return {s.label: s.name for s in collect(inputs, out).scans}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_names_take_in_parents_only_where_needed(tmp_path: Path) -> None:
    a, b, c = (tmp_path / p for p in ("sub-1/anat/T1.nii.gz", "sub-2/anat/T1.nii.gz", "sub-3/x_T1w.nii"))
    touch(a, b, c)
    assert names([a, b, c], tmp_path / "out") == {
        "sub-1/anat/T1.nii.gz": "sub-1_anat_T1",
        "sub-2/anat/T1.nii.gz": "sub-2_anat_T1",
        "x_T1w.nii": "x",
    }
    assert names([b, a], tmp_path / "out") == {  # the order changes nothing
        "sub-2/anat/T1.nii.gz": "sub-2_anat_T1",
        "sub-1/anat/T1.nii.gz": "sub-1_anat_T1",
    }


def test_neighbours_of_one_stem_get_different_names(tmp_path: Path) -> None:
    paths = [tmp_path / p for p in ("a/T1.nii", "a/T1.nii.gz", "a/T1_T1w.nii", "b/T1.nii", "a/t1.mgz")]
    touch(*paths)
    given = names(paths, tmp_path / "out")
    assert len({n.casefold() for n in given.values()}) == len(given) == 5
    assert names(paths[::-1], tmp_path / "out") == given


def test_folders_give_scans_only_and_never_results(tmp_path: Path) -> None:
    keep = [tmp_path / p for p in ("in/b.nii.gz", "in/deep/a.mgz")]
    drop = ["in/.b.nii.gz.12.tmp", "in/._b.nii.gz", "in/notes.txt", "in/out/x.nii.gz", "in/old/y.nii.gz"]
    touch(*keep, *(tmp_path / p for p in drop), tmp_path / "in/old/.hz.lock")
    assert list(names([tmp_path / "in"], tmp_path / "in/out")) == ["b.nii.gz", "deep/a.mgz"]
    assert next(iter(names([f"{tmp_path}/in/*"], tmp_path / "in/out"))) == "b.nii.gz"
    assert list(names([f"{tmp_path}/in/**/*.mgz"], tmp_path / "in/out")) == ["a.mgz"]


def test_a_result_never_overwrites_an_input(tmp_path: Path) -> None:
    paths = [tmp_path / "a_T1w.nii.gz", tmp_path / "a_desc-harmonized_T1w.nii.gz"]
    touch(*paths)
    with pytest.raises(UsageError, match="would overwrite"):
        collect(paths, tmp_path)
