"""Boutiques descriptors of the commands, made from the commands themselves.

Boutiques (Glatard et al., GigaScience 7(5), 2018) describes a command line as JSON, so that workflow engines
can check and start it. `python -m hz_cli.boutiques` writes boutiques/NAME.json for every command of COMMANDS.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import click

COMMANDS = {"hz-bids": "bids", "hz-run": "run"}
SCHEMA = "0.5"
_CODE = re.compile(r"(\d+) ([^;.]+)")


def descriptor(name: str, version: str) -> dict[str, Any]:
    """The Boutiques descriptor of a command of COMMANDS, as JSON types."""
    command: click.Command = importlib.import_module(f"hz_cli.{COMMANDS[name]}").main
    shown = [p for p in command.params if p.expose_value and not getattr(p, "hidden", False)]
    shown.sort(key=lambda p: not isinstance(p, click.Argument))  # a stable sort: arguments first
    text = " ".join((command.help or "").split("\b")[0].split())
    return {
        "schema-version": SCHEMA,
        "name": name,
        "tool-version": version,
        "description": text,
        "command-line": " ".join([name, *(_key(p) for p in shown)]),
        "inputs": [_input(p) for p in shown],
        "output-files": [
            {
                "id": "results",
                "name": "results",
                "description": "Folder of all results.",
                "path-template": "[OUT]",
                "optional": False,
            }
        ],
        "error-codes": _error_codes(command.epilog or ""),
        "tags": {"domain": ["neuroinformatics", "mri"], "keyword": ["harmonization", "brain age", "bids"]},
    }


def encoded(value: dict[str, Any]) -> str:
    """A descriptor as the text of its file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _key(param: click.Parameter) -> str:
    return f"[{_id(param).upper()}]"


def _id(param: click.Parameter) -> str:
    """From the longest way to write it: "participant_label", not the name of a variable."""
    if isinstance(param, click.Argument):
        return str(param.name)
    return _flag(param).lstrip("-").replace("-", "_")


def _flag(param: click.Parameter) -> str:
    """How an option is written; of --x/--no-x the one that changes something."""
    options = param.secondary_opts if param.secondary_opts and param.default else param.opts
    return next(text for text in options if text.startswith("--"))


def _input(param: click.Parameter) -> dict[str, Any]:
    several = param.nargs == -1 or getattr(param, "multiple", False)
    found: dict[str, Any] = {
        "id": _id(param),
        "name": _id(param).replace("_", " "),
        "value-key": _key(param),
        "optional": not param.required,
        **_type(param),
    }
    if isinstance(param, click.Option):
        found["command-line-flag"] = _flag(param)
        if param.help:
            found["description"] = " ".join(param.help.split())
    if several:
        found |= {"list": True, "min-list-entries": 1}
    default = param.default
    if not several and isinstance(default, str | int | float) and not isinstance(default, bool):
        found["default-value"] = default
    return found


def _type(param: click.Parameter) -> dict[str, Any]:
    kind = param.type
    if getattr(param, "is_flag", False):
        return {"type": "Flag"}
    if isinstance(kind, click.Choice):
        return {"type": "String", "value-choices": list(kind.choices)}
    if isinstance(kind, click.types._NumberRangeBase):
        limits = {"minimum": kind.min, "maximum": kind.max}
        whole = {"integer": True} if isinstance(kind, click.IntRange) else {}
        return {"type": "Number", **whole, **{k: v for k, v in limits.items() if v is not None}}
    # What a command writes is not there yet, and a File must be.
    made = _id(param) in ("out", "work_dir")
    return {"type": "File" if isinstance(kind, click.Path) and not made else "String"}


def _error_codes(epilog: str) -> list[dict[str, Any]]:
    """From the epilog's "Exit codes: 0 all done; 2 usage; ..."; Boutiques lists those that are errors."""
    found = _CODE.findall(" ".join(epilog.split()))
    return [{"code": int(code), "description": text.strip()} for code, text in found if code != "0"]


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("boutiques"),
    show_default=True,
    help="Folder for NAME.json.",
)
def main(out: Path) -> None:
    """Write the Boutiques descriptors of hz-bids and hz-run."""
    import hz_runtime

    out.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        (out / f"{name}.json").write_text(encoded(descriptor(name, hz_runtime.__version__)), encoding="utf-8")
        click.echo(f"{name}.json")


if __name__ == "__main__":
    main()
