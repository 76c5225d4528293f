"""What containers say of hz-dicom process to orchestrators, made from the command itself.

`python -m hz_cli.descriptors` writes into containers/descriptors: app.json and pkg.json of a MONAI
application package (which the Dockerfile puts into /etc/holoscan), Kaapana's processing-container.json, and
XNAT's commands, which are the value of the Dockerfile's label org.nrg.commands. mercure needs no descriptor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

IMAGE = "hz"
COMMAND = ("hz-dicom", "process")
LABEL = "org.nrg.commands"
MOST_LABEL_LETTERS = 2048  # of XNAT's command line; the whole label keeps to it
_HOLOSCAN = "/var/holoscan"
_MEMORY = "8Gi"
_SECONDS = 1800


def _process() -> click.Command:
    from hz_cli.process import process

    return process


def _option(name: str) -> click.Option:
    return next(p for p in _process().params if p.name == name and isinstance(p, click.Option))


def _described() -> str:
    """The first sentence of the command's help."""
    return " ".join((_process().help or "").split("\n\n")[0].split())


def _help(name: str) -> str:
    return re.sub(r"\s*\[.*\]", "", " ".join((_option(name).help or "").split()))


def _semantic(version: str) -> str:
    """The version as three numbers, as MONAI wants it."""
    found = re.match(r"\d+\.\d+\.\d+", version)
    return found[0] if found else "0.0.0"


def app(version: str) -> dict[str, Any]:
    """app.json: how the application of a MONAI application package is run."""
    return {
        "apiVersion": "1.0.0",
        "type": "application",
        "command": " ".join(COMMAND),
        "environment": {
            "HOLOSCAN_INPUT_PATH": f"{_HOLOSCAN}/input/",
            "HOLOSCAN_OUTPUT_PATH": f"{_HOLOSCAN}/output/",
            "HOLOSCAN_WORKDIR": f"{_HOLOSCAN}/",
        },
        "input": {"path": "input/", "formats": ["file"]},
        "output": {"path": "output/", "format": "file"},
        "timeout": _SECONDS,
        "version": _semantic(version),
        "workingDirectory": f"{_HOLOSCAN}/",
    }


def package(version: str) -> dict[str, Any]:
    """pkg.json: what a MONAI application package holds and needs."""
    return {
        "apiVersion": "1.0.0",
        "applicationRoot": "/venv",
        "version": _semantic(version),
        "resources": {"cpu": 2, "gpu": 0, "memory": _MEMORY, "sharedMemory": "64Mi"},
    }


def kaapana(version: str) -> dict[str, Any]:
    """processing-container.json: each item of the input channel is a study, each result has its name."""
    settings = [
        {
            "name": str(_option(name).envvar),
            "value": value,
            "type": kind,
            "adjustable": True,
            "description": _help(name),
            **({"choices": list(choices)} if choices else {}),
        }
        for name, value, kind, choices in (
            ("page", str(_option("page").default), "string", _option("page").type.choices),  # type: ignore[attr-defined]
            ("keep_ids", "false", "boolean", None),
        )
    ]
    return {
        "name": IMAGE,
        "description": f"{_described()} hz {version}, research use only.",
        "templates": [
            {
                "identifier": "process",
                "description": _described(),
                "inputs": [
                    {"name": "studies", "mounted_path": "/input", "description": "A folder of DICOM a study."}
                ],
                "outputs": [
                    {
                        "name": "results",
                        "mounted_path": "/output",
                        "description": "A folder of DICOM a study.",
                    }
                ],
                "env": settings,
                "command": [*COMMAND, "--each", "/input", "/output"],
            }
        ],
    }


def xnat(version: str) -> list[dict[str, Any]]:
    """XNAT's commands: on an imaging session, its results as a resource of it."""
    page = _option("page")
    return [
        {
            "name": "harmonize",
            "label": "hz",
            "description": _described(),
            "version": version,
            "schema-version": "1.0",
            "type": "docker",
            "image": f"{IMAGE}:{version}",
            "command-line": " ".join([*COMMAND, "/input", "/output", "--page #PAGE# #KEEP_IDS#"]),
            "override-entrypoint": True,
            "mounts": [
                {"name": "in", "path": "/input", "writable": False},
                {"name": "out", "path": "/output", "writable": True},
            ],
            "inputs": [
                {
                    "name": "page",
                    "description": _help("page"),
                    "type": "string",
                    "required": True,
                    "default-value": page.default,
                    "replacement-key": "#PAGE#",
                    "select-values": list(page.type.choices),  # type: ignore[attr-defined]
                },
                {
                    "name": "keep-ids",
                    "description": _help("keep_ids"),
                    "type": "boolean",
                    "required": False,
                    "default-value": False,
                    "replacement-key": "#KEEP_IDS#",
                    "true-value": _option("keep_ids").opts[0],
                    "false-value": "",
                },
            ],
            "outputs": [{"name": "results", "mount": "out", "required": True}],
            "xnat": [
                {
                    "name": "harmonize-session",
                    "contexts": ["xnat:mrSessionData"],
                    "external-inputs": [
                        {
                            "name": "session",
                            "type": "Session",
                            "required": True,
                            "provides-files-for-command-mount": "in",
                        }
                    ],
                    "output-handlers": [
                        {
                            "name": "results",
                            "accepts-command-output": "results",
                            "as-a-child-of": "session",
                            "type": "Resource",
                            "label": "HZ",
                        }
                    ],
                }
            ],
        }
    ]


FILES: dict[str, Callable[[str], Any]] = {
    "app.json": app,
    "pkg.json": package,
    "processing-container.json": kaapana,
    "xnat-commands.json": xnat,
}


def encoded(value: Any) -> str:
    """A descriptor as the text of its file."""
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"


def label(version: str) -> str:
    """The value of the image's label: XNAT's commands on one line."""
    return json.dumps(xnat(version), separators=(",", ":"), ensure_ascii=True)


def label_line(version: str) -> str:
    """The Dockerfile's line with the label."""
    quoted = label(version).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'LABEL {LABEL}="{quoted}"'


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("containers"),
    show_default=True,
    help="Folder of the Dockerfile.",
)
def main(out: Path) -> None:
    """Write descriptors/ and the label of the Dockerfile."""
    import hz_runtime

    folder, version = out / "descriptors", hz_runtime.__version__
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        (folder / name).write_text(encoded(make(version)), encoding="utf-8")
        click.echo(name)
    recipe = out / "Dockerfile"
    lines = recipe.read_text(encoding="utf-8").splitlines()
    written = [label_line(version) if line.startswith(f"LABEL {LABEL}=") else line for line in lines]
    recipe.write_text("\n".join(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
