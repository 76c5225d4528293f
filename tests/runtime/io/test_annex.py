"""Content that git-annex has not fetched: links and pointers, as git-annex leaves them in a tree."""

from __future__ import annotations

import shlex
from pathlib import Path

from hz_runtime.io.annex import fetch_command, leads_into_annex, unfetched


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
