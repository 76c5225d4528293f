"""Every file, module, class and function that the pages name is there, and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "calibration", "train", "export", "cli")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md"))
    if path.name != "CHANGELOG.md"  # tells of what was
)
# Where a path may start: the repository, a room's folder, or the runtime, whose pages leave out the rest.
STARTS = (ROOT, *(ROOT / room for room in ROOMS), ROOT / "runtime" / "hz_runtime")
# Made by commands, so absent from a fresh clone.
MADE = re.compile(r"docs/before-after\.png|hz-demo/|build/")
DOTTED = re.compile(r"\bhz_(?:runtime|calibration|train|export|cli)(?:\.\w+)+")
CLASS = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+")


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def paths(text: str) -> set[str]:
    """What looks like a path of the repository."""
    found = set()
    for span in spans(text):
        for word in span.split():
            word = word.strip(",;:'\"()")
            first = word.split("/")[0]
            known = (
                "/" in word
                and first not in ("", ".", "..")
                and any((start / first).is_dir() for start in STARTS)
            )
            if (known or re.fullmatch(r"[\w./-]+\.(py|sh)", word)) and not MADE.match(word):
                found.add(word)
    return found | set(re.findall(r"\b(?:benchmarks|examples)/\w+\.(?:py|sh)\b", text))


def exists(path: str) -> bool:
    """Also of one test in a file, as pytest names it (FILE::TEST)."""
    path, _, test = path.partition("::")
    return any(list(start.glob(path.rstrip("/"))) for start in STARTS) and (not test or test in defined())


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@cache
def defined() -> frozenset[str]:
    """The names of all classes and functions, of the packages and of the tests."""
    names = set()
    for folder in (*ROOMS, "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    names.add(node.name)
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    new = set(re.findall(r"New file `([^`]+)`", text))  # made by a recipe's reader
    new_modules = {path.split("/", 1)[1].removesuffix(".py").replace("/", ".") for path in new}
    wrong = [path for path in sorted(paths(text) - new) if not exists(path)]
    wrong += [name for name in sorted(set(DOTTED.findall(text)) - new_modules) if not resolves(name)]
    for span in spans(text):
        if CLASS.fullmatch(span) or re.fullmatch(r"test_\w+", span):
            wrong += [] if span in defined() else [span]
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text)
    assert not [t for t in targets if not MADE.match(t) and not ((ROOT / page).parent / t).exists()]


def test_what_is_not_there_is_seen() -> None:
    text = (
        "`io/volume.py` `io/volumes.py` `benchmarks/results/*-simulated-32` `tests/none/`\n"
        "    python -m benchmarks/no_such.py\n"
    )
    assert {p for p in paths(text) if not exists(p)} == {
        "io/volumes.py",
        "tests/none/",
        "benchmarks/no_such.py",
    }
    assert resolves("hz_runtime.errors.HzError") and resolves("hz_runtime.io.volume")
    assert not resolves("hz_runtime.header") and not resolves("hz_runtime.errors.Nothing")
    assert PAGES
