"""The API reference: HTML pages of hz_runtime's public names, made from their docstrings by pdoc.

Docstrings here say `name : what it is.  other : what that is.` in running lines. For the pages, each becomes
an item of a list, and what is returned and raised a paragraph of its own; nothing in the sources changes. Any
warning is an error, and so is a described parameter that the function does not have.

    python docs/build_api.py build/api
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

PACKAGE = "hz_runtime"
NAMES = r"\*{0,2}[a-zA-Z_]\w*(?:, \*{0,2}[a-zA-Z_]\w*)*"
FIRST = re.compile(rf"({NAMES}) : ")
LATER = re.compile(rf"(?<=[.;)])( {{1,2}})({NAMES}) : ")
ENDING = re.compile(r"(Returns|Gives|Raises)\b")


def readable(text: str, known: Collection[str] = ()) -> tuple[str, list[str]]:
    """A docstring as Markdown, and the names that it describes.

    text : dedented.  known : parameters and attributes; only these are looked for behind a single blank.
    """
    blocks, described = [], []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):  # code
            blocks.append(block)
            continue
        out: list[str] = []
        for sentence in _sentences(block):
            before, items = _items(sentence, known)
            if before:
                out.append(_paragraph(before) + ("\n" if items else ""))
            for names, said in items:
                described += [name.lstrip("*") for name in names]
                out.append(f"- **{', '.join(map(escaped, names))}**: {escaped(said)}")
        blocks.append("\n".join(out))
    return "\n\n".join(blocks), described


def _sentences(block: str) -> Iterator[str]:
    """The lines of a block joined into what belongs together: parameters, endings, list items, the rest."""
    held: list[str] = []
    for line in block.splitlines():
        said = line.strip()
        starts = FIRST.match(said) or ENDING.match(said) or re.match(r"[-*] |\d+\. ", said)
        fresh = held and held[-1].endswith(".") and line == line.lstrip() and said[0].isupper()
        after_items = held and FIRST.match(held[0])
        if held and (starts or (fresh and after_items)):
            yield " ".join(held)
            held = []
        held.append(said)
    if held:
        yield " ".join(held)


def _items(sentence: str, known: Collection[str]) -> tuple[str, list[tuple[list[str], str]]]:
    """What stands before the parameters that a sentence describes, and [(names, what is said of them)]."""
    first = FIRST.match(sentence)
    starts = [(0, first.end(), first[1])] if first else []
    for found in LATER.finditer(sentence):
        names = found[2].replace("*", "").split(", ")
        if (first and found[1] == "  ") or all(name in known for name in names):
            starts.append((found.start(), found.end(), found[2]))
    if not starts:
        return sentence, []
    ends = [start for start, _, _ in starts[1:]] + [len(sentence)]
    return sentence[: starts[0][0]], [
        (names.split(", "), sentence[begin:end].strip())
        for (_, begin, names), end in zip(starts, ends, strict=True)
    ]


def _paragraph(sentence: str) -> str:
    if ENDING.match(sentence):
        parts = re.split(r"(?<=[.;]) (?=(?:Returns|Gives|Raises)\b)", sentence)
        return "".join(re.sub(ENDING, r"\n**\1**", escaped(part), count=1) + "\n" for part in parts)
    marker = re.match(r"([-*]|\d+\.) ", sentence)
    return marker[0] + escaped(sentence[marker.end() :]) if marker else escaped(sentence)


def escaped(text: str) -> str:
    """Plain text for Markdown; what stands in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\\])", r"\\\1", part) for part in parts)


def documented(module: ModuleType) -> Iterator[tuple[str, Any, set[str]]]:
    """(where, object, names that its docstring may describe) of everything that a module defines."""
    yield module.__name__, module, set()
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            yield f"{module.__name__}.{name}", value, parameters(value)
        elif isinstance(value, type):
            yield from _documented_class(f"{module.__name__}.{name}", value)


def _documented_class(where: str, kind: type) -> Iterator[tuple[str, Any, set[str]]]:
    own = {name for base in kind.__mro__[:-1] for name in (*vars(base), *inspect.get_annotations(base))}
    source = inspect.getsource(kind)
    own |= set(re.findall(r"\bself\.(\w+)\b", source))  # attributes that __init__ sets
    yield where, kind, own | parameters(kind.__init__)
    for name, value in vars(kind).items():
        inner = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(inner, FunctionType) and inner.__module__ == kind.__module__:
            yield f"{where}.{name}", inner, parameters(inner)
        elif isinstance(inner, (property, cached_property)):
            yield f"{where}.{name}", inner, set()


def resolve_inherited_fields(kind: type) -> None:
    """Turn the types of a dataclass's inherited fields, which are text, into types.

    pdoc reads them as if they had been written in the class's own module, where their names may mean nothing.
    """
    for base in kind.__mro__[1:-1]:
        if base.__module__ != kind.__module__ and dataclasses.is_dataclass(base):
            for name, text in inspect.get_annotations(base).items():
                if isinstance(text, str):
                    kind.__init__.__annotations__[name] = eval(text, names_for_types(base.__module__))


def names_for_types(module: str) -> dict[str, Any]:
    """What annotations of a module may name: its own names, and those that it imports for types alone."""
    found = sys.modules[module]
    names = dict(vars(found))
    for block in ast.parse(inspect.getsource(found)).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(block.body, []), module, "exec"), names)
    return names


def parameters(function: Any) -> set[str]:
    """The names of a function's parameters."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def modules() -> list[ModuleType]:
    """All public modules of the package."""
    package = importlib.import_module(PACKAGE)
    for name in package.__all__:  # found on first use; pdoc looks for what is there
        setattr(package, name, getattr(package, name))
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return [package, *(importlib.import_module(name) for name in public)]


def make_readable(found: list[ModuleType]) -> list[str]:
    """Turn the docstrings of these modules into Markdown, in place.

    Returns a line for every parameter that is described and not there.
    """
    wrong = []
    for module in found:
        for where, item, known in list(documented(module)):
            text = item.__doc__
            if not text:
                continue
            markdown, described = readable(inspect.cleandoc(text), known)
            item.__doc__ = markdown
            if isinstance(item, FunctionType):
                inspect.unwrap(item).__doc__ = markdown  # pdoc looks through decorators
            if dataclasses.is_dataclass(item):
                resolve_inherited_fields(item)
            if isinstance(item, FunctionType):
                wrong += [f"{where}: describes {name}" for name in described if name not in known]
    return wrong


def build(out: Path) -> int:
    """Write the pages into `out`; their number. Warnings are raised."""
    import pdoc

    warnings.simplefilter("error")
    found = modules()
    if wrong := make_readable(found):
        sys.exit("Parameters that are described and not there:\n  " + "\n  ".join(wrong))
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text="hz: for research only")
    asked: list[str] = []
    reached: set[str] = set()  # naming a package brings its modules, unless it has an __all__
    for module in found:
        if module.__name__ not in reached:
            asked.append(module.__name__)
            reached.update(pdoc.extract.walk_specs([module.__name__]))
    pdoc.pdoc(*asked, output_directory=out)
    return len(list(out.rglob("*.html")))


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    print(f"{build(target)} pages in {target}; open {target / PACKAGE}.html")
