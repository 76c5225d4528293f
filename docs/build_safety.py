"""Writes the table of docs/safety.md that says which tests hold which requirement, from their markers.

    python docs/build_safety.py

A test says what it holds by `@pytest.mark.requirement("signed")`, a file of tests by `pytestmark`. Tests are
read and not run. tests/docs/test_safety.py finds a table that is not of these tests, or a requirement without
any.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "safety.md"
BEGIN, END = "<!-- made by docs/build_safety.py -->", "<!-- end -->"
REQUIREMENTS = {
    "unchanged": "A bundle runs only where every file is, byte for byte, the one that its manifest lists.",
    "signed": "With a key to trust, a bundle that it did not sign as it is ends in exit code 4, by name.",
    "works-here": "An installation that computes otherwise than the bundle expects is found, and why.",
    "accounted": "What runs did can be told afterwards; an edit, a cut or another order is found.",
    "no-identity": "No result, table or account holds a path, a machine's name or a header's words.",
    "damaged-scan": "A scan that is damaged, or made to do harm, is refused in one line and little memory.",
    "bounded-programs": "dcm2niix and niimath get bounded time and memory; their death is one scan's.",
    "foreign-weights": "Others' weight files are read as numbers alone, within bounds, or refused.",
    "answers": "Answers, tables, tasks and accounts of another form than theirs are refused, or passed over.",
    "image-quality": "Noise, blur, ghosts and field of known size are found; a sound head is not flagged.",
    "whole-or-not": "A result is whole or not there, whenever a run is killed; the same command goes on.",
    "one-scan": "A scan that fails becomes a row and takes no other with it.",
    "known-parts": "A release says every package that it needs, with its hash, and builds to the same bytes.",
}


def holders() -> dict[str, list[str]]:
    """Requirement -> "file::test", or "file" for all tests of a file, in their order."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                marks, holder = _marked(node.value), name
            elif isinstance(node, ast.FunctionDef):
                marks = [mark for one in node.decorator_list for mark in _marked(one)]
                holder = f"{name}::{node.name}"
            else:
                continue
            for mark in marks:
                found.setdefault(mark, []).append(holder)
    return found


def _marked(value: ast.expr) -> list[str]:
    calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
    return [
        str(call.args[0].value)
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.requirement" and isinstance(call.args[0], ast.Constant)
    ]


def table() -> str:
    """The table, in Markdown."""
    held = holders()
    rows = ["| requirement | what must hold | held by |", "| --- | --- | --- |"]
    for key, words in REQUIREMENTS.items():
        rows.append(f"| {key} | {words} | {', '.join(f'`{one}`' for one in held.get(key, []))} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
