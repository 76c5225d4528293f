"""BIDS filter files mean what fMRIPrep and PyBIDS make of them, and nothing in them goes by in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hz_runtime.bids.filter_file import OTHER_QUERIES, read_filter
from hz_runtime.bids.layout import Wanted
from hz_runtime.errors import UsageError

SCANS = (
    "sub-01_ses-a_T1w.nii.gz",
    "sub-01_ses-b_acq-mprage_run-1_T1w.nii.gz",
    "sub-01_ses-b_acq-mprage_run-02_T1w.nii",
    "sub-02_T1w.nii.gz",
    "sub-02_ce-gadolinium_T1w.nii.gz",
)


def filter_file(folder: Path, content: object) -> Path:
    path = folder / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def taken(folder: Path, content: object) -> list[int]:
    """Numbers of the SCANS that a filter takes."""
    wanted = Wanted(entities=read_filter(filter_file(folder, content))[0])
    return [n for n, name in enumerate(SCANS) if wanted.takes(folder / name)]


@pytest.mark.parametrize(
    "asked, numbers",
    [
        ({"run": 2}, [2]),
        ({"run": [1, "2"]}, [1, 2]),
        ({"run": None}, [0, 3, 4]),
        ({"session": ["b", None], "acquisition": None, "suffix": "T1w", "datatype": "anat"}, [3, 4]),
        # fMRIPrep's decoder: null is Query.NONE, "*" is Query.ANY, in lists, too.
        ({"session": "*"}, [0, 1, 2]),
        ({"session": "*", "run": None}, [0]),
        ({"ceagent": "*"}, [4]),
        ({"run": ["*", None]}, [0, 1, 2, 3, 4]),
        # PyBIDS' queries as Python prints them; REQUIRED is another name of ANY.
        ({"ceagent": "Query.NONE"}, [0, 1, 2, 3]),
        ({"ceagent": "<Query.NONE: 1>"}, [0, 1, 2, 3]),
        ({"run": "Query.ANY"}, [1, 2]),
        ({"run": "<Query.REQUIRED: 2>"}, [1, 2]),
        ({"run": "Query.OPTIONAL", "session": "a"}, [0]),
        ({"space": None, "desc": None, "suffix": "*"}, [0, 1, 2, 3, 4]),
        ({"extension": [".nii"]}, [2]),
        ({"extension": [".nii", ".nii.gz"]}, [0, 1, 2, 3, 4]),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("key", ["t1w", "T1w"])
def test_which_scans_a_filter_takes(
    tmp_path: Path, key: str, asked: dict[str, object], numbers: list[int]
) -> None:
    assert taken(tmp_path, {key: asked}) == numbers


def test_queries_for_other_scans_are_said_to_be_ignored(tmp_path: Path) -> None:
    content = {"bold": {"task": "rest"}, "T2w": {"run": 1}, "t1w": {"run": 2}}
    entities, notes = read_filter(filter_file(tmp_path, content))
    assert entities == {"run": ("2",)} and notes == (
        "filter.json: bold, T2w: hz takes T1w scans only, ignored",
    )
    entities, notes = read_filter(filter_file(tmp_path, {key: {} for key in OTHER_QUERIES}))
    assert not entities and "every T1w scan is taken" in notes[1]
    assert read_filter(filter_file(tmp_path, {"t1w": {}}))[1] == ()


@pytest.mark.parametrize(
    "content, named",
    [
        ("", "not a BIDS filter file"),
        ("[1]", "not a BIDS filter file"),
        ('{"t1w": 3}', "not a BIDS filter file"),
        ({"t1": {"run": 1}}, "'t1'"),
        ({"t1w": {"run": 1}, "session": {"a": 1}}, "'session'"),
        ({"T1w": {"run": 1}, "t1w": {"run": 2}}, "T1w and t1w"),
        ({"t1w": {"task": "rest"}}, "'task'"),
        ({"t1w": {"run": {"a": 1}}}, "run"),
        ({"t1w": {"run": True}}, "run is true"),
        ({"t1w": {"run": "Query.SOME"}}, r"Query\.SOME"),
        ({"t1w": {"suffix": "UNIT1"}}, "suffix"),
        ({"t1w": {"datatype": ["func"]}}, "datatype"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, content: object, named: str) -> None:
    with pytest.raises(UsageError, match=r"filter\.json: ") as caught:
        read_filter(filter_file(tmp_path, content))
    caught.match(named)
