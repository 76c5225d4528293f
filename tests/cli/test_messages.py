"""What hz tells people to type exists: packages to install, commands, and the options of those commands.

Read from the source: every string constant of the five rooms, docstrings among them.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "calibration", "train", "export", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = {
    re.split(r"[\[<>=~!; ]", text)[0].lower()
    for text in [*PROJECT["dependencies"], *(name for names in EXTRAS.values() for name in names)]
}
# The distribution, folders of results, a file format, threads.
NOT_COMMANDS = {"hz-mri", "hz-out", "hz-demo", "hz-figure", "hz-engine", "hz-first-scan", "hz-workers"}
# Options of pip, mri_convert, docker, torchrun, Triton, BABS, Apptainer and Slurm; a variable of a style
# sheet; any flag with its opposite.
OTHERS = {
    "--disable-pip-version-check", "--no-deps", "--only-binary", "--require-hashes", "--hash", "--upgrade",
    "--frame", "--cpus", "--nproc-per-node", "--standalone", "--local-addr", "--soft", "--x", "--no-x",
    "--model-repository", "--container_config", "--container_name", "--containall", "--cleanenv",
    "--writable-tmpfs", "--nodes", "--ntasks", "--cpus-per-task",
}  # fmt: skip
UNKNOWN = "{}"  # what a formatted value becomes
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string constant; parts of one formatted string as one."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
            parts = (part.value if isinstance(part, ast.Constant) else UNKNOWN for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


@cache
def sources() -> list[tuple[str, ast.AST]]:
    """(path, syntax tree) of every file of the rooms."""
    paths = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def options_of(command: click.Command) -> set[str]:
    declared = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    own = {command.name} if command.name and command.name.startswith("--") else set()  # hz-run --info
    return {name for option in declared for name in (*option.opts, *option.secondary_opts)} | own | {"--help"}


def installed_commands() -> dict[str, dict[str, set[str]]]:
    """{hz-command: {subcommand or "": its options}}; "" also stands for all of a group's together."""
    found = {}
    for name, place in PROJECT["scripts"].items():
        module, _, function = place.partition(":")
        held = vars(importlib.import_module(module))
        here = {c.name: c for c in held.values() if isinstance(c, click.Command)}
        main = held[function]
        if not isinstance(main, click.Command):  # a function that calls the module's group
            (main,) = (c for c in here.values() if isinstance(c, click.Group))
        below = dict(main.commands) if isinstance(main, click.Group) else {}
        below |= {key: c for key, c in here.items() if key and c is not main and key != "main"}
        for group in [c for c in below.values() if isinstance(c, click.Group)]:
            below |= group.commands
        options = {key: options_of(command) for key, command in below.items()}
        whole = (
            options_of(main).union(*options.values()) if isinstance(main, click.Group) else options_of(main)
        )
        found[name] = {**options, "": whole}
    return found


COMMANDS = installed_commands()
ANY_OPTION = OTHERS.union(*(options for command in COMMANDS.values() for options in command.values()))


def wrong_packages(text: str) -> list[str]:
    """What follows `pip install` and is neither hz with its extras nor something that hz uses."""
    wrong = []
    for asked in re.findall(r"pip install ((?:--[a-z-]+ )*\S+)", text):
        package = asked.split()[-1].strip("'\"`,;:.)")
        name, _, extras = package.partition("[")
        known = name in {"hz-mri", UNKNOWN} or name.lower() in DEPENDENCIES
        extras_known = {"", UNKNOWN, *EXTRAS}.issuperset(extras.rstrip("]").split(","))
        if not known or not extras_known:
            wrong.append(asked)
    return wrong


def wrong_commands(text: str) -> list[str]:
    """Commands that pyproject does not install, options that the command or no command at all has."""
    wrong = [option for option in OPTION.findall(text) if option not in ANY_OPTION]
    for found in re.finditer(r"(?<![\w./'-])hz-[a-z]+(?:-[a-z]+)*(?![\w/-]|\.\w)", text):
        name = found[0]
        if name in NOT_COMMANDS:
            continue
        if name not in COMMANDS:
            wrong.append(name)
            continue
        words = []
        for word in text[found.end() :].split("\n")[0].split("  ")[0].split(" ")[1:]:
            if word.startswith("hz-"):
                break
            words.append(word)
            if re.search(r"[.,;:)`]$", word) and not word.endswith("..."):
                break
        below = next((word for word in map(_bare, words[:1]) if word in COMMANDS[name]), "")
        options = {option for word in words for option in OPTION.findall(word)}
        wrong += [f"{name} {below} {option}" for option in sorted(options - COMMANDS[name][below])]
    return wrong


def _bare(word: str) -> str:
    return word.strip("'\"`,;:.()")


def test_every_package_to_install_exists() -> None:
    wrong = [
        f"{path}:{line}: pip install {asked}"
        for path, tree in sources()
        for line, text in strings(tree)
        for asked in wrong_packages(text)
    ]
    assert not wrong


def test_every_command_and_option_exists() -> None:
    wrong = [
        f"{path}:{line}: {found}"
        for path, tree in sources()
        for line, text in strings(tree)
        for found in wrong_commands(text)
    ]
    assert not wrong


def test_every_extra_that_a_command_asks_for_exists() -> None:
    """`options.need(who, extra, packages...)` puts the extra into its remedy."""
    asked = [
        (path, node.args[1].value)
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "options.need"
        and len(node.args) > 2
        and isinstance(node.args[1], ast.Constant)
    ]
    assert asked
    assert not [(path, extra) for path, extra in asked if extra not in EXTRAS]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Upgrade hz:  pip install --upgrade hz", ["--upgrade hz"]),
        ("Upgrade hz (pip install --upgrade hz-mri), or not.", []),
        ("pip install 'hz-mri[prep]'  (or do it elsewhere first)", []),
        ("pip install 'hz-mri[preparation]'", ["'hz-mri[preparation]'"]),
        ("pip install onnxruntime_gpu", ["onnxruntime_gpu"]),
        ("pip install {}", []),
    ],
)
def test_wrong_packages_are_seen(text: str, wrong: list[str]) -> None:
    assert wrong_packages(text) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Make one:  hz-export brain-mask --out MASK.hz", []),
        ("Make one:  hz-export brain-mask --fp16", ["hz-export brain-mask --fp16"]),
        ("hz-harmonize SCAN", ["hz-harmonize"]),
        ("hz-run without --no-build, or hz-export --fp16 --engine rtx ...", []),
        ("hz-run --fp16, or hz-export --fp16", ["hz-run  --fp16"]),
        ("hz-train cyclegan --labels a,b", ["hz-train cyclegan --labels"]),
        ("hz-train with another --labels", []),
        ("Leave --requires out.", ["--requires"]),
        ("writes hz-run.log and hz-n4-", []),
    ],
)
def test_wrong_commands_are_seen(text: str, wrong: list[str]) -> None:
    assert wrong_commands(text) == wrong


def test_engines_that_are_named_exist() -> None:
    from hz_runtime.backends.registry import backend_names

    named = [
        (path, line, found)
        for path, tree in sources()
        for line, text in strings(tree)
        for found in re.findall(r"--(?:backend|require) ((?:onnx|openv|tensor)[\w-]*)", text)
    ]
    assert named and [where for where in named if where[2] not in backend_names()] == []


def test_every_command_has_its_version() -> None:
    assert [name for name, options in COMMANDS.items() if "--version" not in options[""]] == []
