"""Content that git-annex has not fetched: links and pointers, as git-annex leaves them in a tree."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hz_runtime.errors import UsageError
from hz_runtime.io.annex import fetch_command, in_data_set, leads_into_annex, require_fetched, unfetched
from unfetched import unfetch


def test_what_stands_for_content_that_is_not_here(tmp_path: Path) -> None:
    key = "MD5E-s3--900150983cd24fb0d6963f7d28e17f72.nii"
    objects = tmp_path / ".git" / "annex" / "objects" / "wq" / "J8"
    objects.mkdir(parents=True)
    (objects / "here").write_bytes(b"abc")
    (tmp_path / "here").symlink_to(f".git/annex/objects/wq/J8/{'here'}")
    (tmp_path / "absent").symlink_to(f".git/annex/objects/wq/J8/{key}")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "here")
    (tmp_path / "pointer").write_text(f"/annex/objects/{key}\n")
    (tmp_path / "plain").write_bytes(b"abc")
    names = ("here", "absent", "broken", "elsewhere", "pointer", "plain", "none")
    assert [n for n in names if unfetched(tmp_path / n)] == ["absent", "broken", "pointer"]
    assert [n for n in names if leads_into_annex(tmp_path / n)] == ["here", "absent"]


def test_the_command_is_one_that_a_shell_takes() -> None:
    assert fetch_command("sub-01/anat") == "datalad get sub-01/anat"
    assert shlex.split(fetch_command("a b's")) == ["datalad", "get", "a b's"]


@pytest.mark.parametrize("pointer", [False, True])
def test_a_path_is_from_the_root_of_the_data_set(tmp_path: Path, pointer: bool) -> None:
    """Also of a link to it from elsewhere; of a file of no data set only the name is given away."""
    scan = tmp_path / "study" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    unfetch(scan, tmp_path / "study", pointer)
    (tmp_path / "links").symlink_to("study/sub-01")
    (tmp_path / "one.nii.gz").symlink_to(scan)
    for path in (scan, tmp_path / "links" / "anat" / scan.name, tmp_path / "one.nii.gz"):
        assert in_data_set(path) == "sub-01/anat/sub-01_T1w.nii.gz"
        with pytest.raises(UsageError) as error:
            require_fetched(path)
        assert error.value.remedy.endswith("datalad get sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "lost").symlink_to("nowhere/at/all")
    (tmp_path / "round").symlink_to("round")
    assert in_data_set(tmp_path / "lost") == "lost" and in_data_set(tmp_path / "round") == "round"
    require_fetched(tmp_path / "study")
