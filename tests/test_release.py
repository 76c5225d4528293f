"""What release/make.py refuses, and that its lock files are those of pyproject.toml and constraints.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from scripts_as_modules import load_script

pytestmark = pytest.mark.requirement("known-parts")

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "release" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    return load_script("release/make.py")


def test_two_builds_that_differ_are_refused(make: ModuleType) -> None:
    make.same_builds({"a.whl": b"1"}, {"a.whl": b"1"})
    for other in ({"a.whl": b"2"}, {}, {"a.whl": b"1", "b.whl": b""}):
        with pytest.raises(make.Failed, match="two builds differ"):
            make.same_builds({"a.whl": b"1"}, other)
    with pytest.raises(make.Failed, match="nothing was built"):
        make.same_builds({}, {})


def test_an_unlisted_package_is_refused(make: ModuleType) -> None:
    bom = {"components": [{"name": "Typing_Extensions", "version": "4.16.0"}]}
    make.unlisted({"typing-extensions": "4.16.0", "hz-mri": "0.1.0", "pip": "25"}, bom)
    for installed in ({"typing-extensions": "4.15.0"}, {"typing-extensions": "4.16.0", "leftpad": "1"}):
        with pytest.raises(make.Failed, match=r"not in the bill of materials: (typing|leftpad)"):
            make.unlisted(installed, bom)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_has_its_lock(make: ModuleType, extra: str) -> None:
    """With every package that pyproject.toml asks for, in constraints.txt's version, and hashes for all."""
    text = (LOCKS / f"{extra}.txt").read_text()
    locked = make.pinned(text)
    asked = [*PROJECT["dependencies"], *EXTRAS[extra]]
    names = {make.canonical(re.split(r"[\[<>=~!; ]", one)[0]) for one in asked}
    assert names <= set(locked)
    fixed = make.pinned((ROOT / "constraints.txt").read_text())
    assert {name: locked[name] for name in locked if name in fixed} == {
        name: fixed[name] for name in locked if name in fixed
    }
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert len(requirements) == len(locked)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", one) for one in requirements)


def test_no_lock_of_an_extra_that_is_gone() -> None:
    assert {path.stem for path in LOCKS.iterdir()} == set(EXTRAS)
