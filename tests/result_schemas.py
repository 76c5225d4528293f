"""The JSON files that a run leaves, held to docs/schemas.

`conftest.py` asks `faults` about whatever a test left in its folders, so that no test has to think of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
# How a file's name ends -> its schema; the first that fits. A run's own is the whole name, RUN.
RUN = "run.json"
KINDS = {
    "_run.json": "run",
    "_desc-harmonized_T1w.json": "harmonized",
    "_desc-preparation.json": "preparation",
    "_mode-image_xfm.json": "transform",
}


@cache
def validators() -> dict[str, Draft202012Validator]:
    """One for each schema, by name."""
    schemas = {
        path.name.split(".")[0]: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob("*.schema.json"))
    }
    registry: Any = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()]
    )
    return {name: Draft202012Validator(schema, registry=registry) for name, schema in schemas.items()}


def kind_of(name: str) -> str | None:
    """The schema of a file of this name; None for all others, and for temporaries."""
    if name.startswith("."):
        return None
    if name == RUN:
        return "run"
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), None)


def results_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, schema) of all that a run may have left below a folder. Links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            kind = kind_of(name)
            path = Path(place, name)
            if kind and path.is_file() and not path.is_symlink():
                yield path, kind


def wrong_with(content: Any, kind: str) -> list[str]:
    """Where a file's content departs from its schema: one line each, the deepest places first."""
    found = sorted(validators()[kind].iter_errors(content), key=lambda error: -len(error.absolute_path))
    return [f"{error.json_path}: {error.message[:300]}" for error in found]


def faults(folder: Path) -> list[str]:
    """One line for every departure of a result below `folder`."""
    lines = []
    for path, kind in results_below(folder):
        try:
            content = json.loads(path.read_bytes())
        except OSError:  # made unreadable by the test
            continue
        except ValueError as error:
            lines.append(f"{path}: {error}")
            continue
        lines += [f"{path}: {line}" for line in wrong_with(content, kind)]
    return lines
