"""What containers say of hz-dicom process: the files are those of the command, and agree with each other."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from hz_cli import descriptors
from hz_cli.process import PAGES, process
from hz_runtime.hospital.contracts import CONTRACTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers" / "descriptors"
DOCKER = (ROOT / "containers" / "Dockerfile").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
AGAIN = "the command has changed; in the repository:  python -m hz_cli.descriptors"
MADE: dict[str, Any] = {name: make(VERSION) for name, make in descriptors.FILES.items()}


def object_of(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


TEXT, PATH = {"type": "string"}, {"type": "string", "pattern": "^/"}
LIST = {"type": "array", "items": TEXT}
NUMBERS = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
MOUNTS = {"type": "array", "items": object_of({"name": TEXT, "mounted_path": PATH}, description=TEXT)}
# What the tables of the specifications demand: MONAI Application Package 1.0, Kaapana's Task API.
APP = object_of(
    {"command": TEXT, "type": {"enum": ["application", "service"]},
     "input": object_of({"formats": {"type": "array"}}, path=TEXT), "output": object_of({"format": {}}),
     "environment": {"type": "object", "additionalProperties": TEXT}},
    version=NUMBERS, apiVersion=NUMBERS, timeout={"type": "integer"}, workingDirectory=PATH,
)  # fmt: skip
PACKAGE = object_of({"applicationRoot": PATH}, version=NUMBERS, resources={"type": "object"})
ENV = object_of(
    {"name": TEXT, "value": TEXT}, type={"enum": ["boolean", "string", "int"]}, choices=LIST,
    adjustable={"type": "boolean"}, description=TEXT,
)  # fmt: skip
TEMPLATE = object_of(
    {"identifier": TEXT, "description": TEXT, "inputs": MOUNTS, "outputs": MOUNTS,
     "env": {"type": "array", "items": ENV}}, command=LIST,
)  # fmt: skip
KAAPANA = object_of(
    {"name": TEXT, "description": TEXT, "templates": {"type": "array", "items": TEMPLATE, "minItems": 1}}
)


@pytest.mark.parametrize("name", descriptors.FILES)
def test_the_committed_file_is_that_of_the_command(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == descriptors.encoded(MADE[name]), AGAIN


def test_the_label_is_that_of_the_command() -> None:
    (line,) = re.findall(r'^LABEL org\.nrg\.commands="(.*)"$', DOCKER, re.MULTILINE)
    value = line.replace('\\"', '"').replace("\\$", "$").replace("\\\\", "\\")
    assert json.loads(value) == MADE["xnat-commands.json"], AGAIN
    assert len(value) <= descriptors.MOST_LABEL_LETTERS
    assert all(len(command["command-line"]) <= 2048 for command in json.loads(value))


@pytest.mark.parametrize(
    "name, schema", [("app.json", APP), ("pkg.json", PACKAGE), ("processing-container.json", KAAPANA)]
)
def test_they_hold_what_is_asked_for(name: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(MADE[name], schema)


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command understands of a command line."""
    assert words[:2] == ["hz-dicom", "process"]
    return process.make_context("process", words[2:], auto_envvar_prefix=None).params


def test_every_command_line_is_one_of_the_command() -> None:
    assert parsed(shlex.split(MADE["app.json"]["command"]))["source"] is None  # the environment says where
    (template,) = MADE["processing-container.json"]["templates"]
    params = parsed(template["command"])
    assert params["each"]
    assert [str(params["source"]), str(params["out"])] == [
        template[key][0]["mounted_path"] for key in ("inputs", "outputs")
    ]
    (command,) = MADE["xnat-commands.json"]
    inputs = {one["name"]: one for one in command["inputs"]}
    line = (
        command["command-line"]
        .replace("#PAGE#", "pdf")
        .replace("#KEEP_IDS#", inputs["keep-ids"]["true-value"])
    )
    params = parsed(shlex.split(line))
    assert params["page"] == "pdf" and params["keep_ids"] is True
    assert [str(params["source"]), str(params["out"])] == [mount["path"] for mount in command["mounts"]]
    assert "#" not in line


def test_they_agree_with_each_other_and_with_the_recipes() -> None:
    environment = MADE["app.json"]["environment"]
    monai = next(one for one in CONTRACTS if one.name == "MONAI")
    for variable, key in ((monai.source, "input"), (monai.out, "output")):
        app = MADE["app.json"]
        assert environment[variable] == app["workingDirectory"] + app[key]["path"]
    known = {param.envvar for param in process.params if getattr(param, "envvar", None)}
    settings = {one["name"]: one for one in MADE["processing-container.json"]["templates"][0]["env"]}
    assert set(settings) <= known
    (command,) = MADE["xnat-commands.json"]
    pages = next(one for one in command["inputs"] if one["name"] == "page")
    assert pages["select-values"] == settings["HZ_PAGE"]["choices"] == list(PAGES)
    assert pages["default-value"] == settings["HZ_PAGE"]["value"]
    names = {mount["name"] for mount in command["mounts"]}
    assert {out["mount"] for out in command["outputs"]} <= names
    assert command["version"] == VERSION and MADE["pkg.json"]["version"] == MADE["app.json"]["version"]
    apptainer = (ROOT / "containers" / "hz.def").read_text()
    for name, where in (
        ("app.json", "/etc/holoscan/"), ("pkg.json", "/etc/holoscan/"), ("processing-container.json", "/")
    ):  # fmt: skip
        assert re.search(rf"^COPY .*descriptors/{name}.* {where}$", DOCKER, re.MULTILINE)
        assert f"containers/descriptors/{name} {where}{name}" in apptainer
    assert MADE["pkg.json"]["applicationRoot"] in DOCKER


def test_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM x\nLABEL org.nrg.commands="[]"\nUSER 1\n')
    done = CliRunner().invoke(descriptors.main, ["--out", str(tmp_path)])
    assert done.exit_code == 0
    first, label, last = (tmp_path / "Dockerfile").read_text().splitlines()
    assert (first, last) == ("FROM x", "USER 1") and "hz-dicom process" in label
    assert {p.name for p in (tmp_path / "descriptors").iterdir()} == set(descriptors.FILES)
