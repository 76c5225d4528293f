"""What a release has to agree about with itself (docs/release.md)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    # What the format requires of a file and of each reference.
    assert citation["message"] and citation["title"] and citation["authors"]
    assert all({"authors", "title", "type"} <= set(one) for one in citation["references"])


def test_the_changelog_has_this_version_and_what_comes_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert headings[0] == "Unreleased" and PROJECT["version"] in headings


def test_addresses_are_whole() -> None:
    for label, address in PROJECT["urls"].items():
        assert len(label) <= 32 and re.fullmatch(r"https://[\w.-]+\.\w+/\S*", address)


def test_decisions_are_numbered_and_say_what_why_and_what_follows() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for number, path in enumerate(records, 1):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.+)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], path
