"""The names that orchestrators give to the same thing: where the study is, where results go, what was set.

Each contract is names alone. What a study becomes under it is the same, to the byte: `process`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.errors import UsageError

TASK_NAME = "task.json"
_MOST_TEXT = 1 << 20  # characters; mercure's tasks have some thousands


@dataclass(frozen=True)
class Contract:
    """An orchestrator that names its folders in the environment.

    source, out : variables with the folder of the study and that for results.
    settings : whether the source's task.json holds settings, in process.settings.
    """

    name: str
    source: str
    out: str
    settings: bool = False


# The first one whose variables are set counts: mercure sets those of MONAI, too.
CONTRACTS = (
    Contract("mercure", "MERCURE_IN_DIR", "MERCURE_OUT_DIR", settings=True),
    Contract("MONAI", "HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH"),
)


@dataclass(frozen=True)
class Job:
    """Folders and settings of one call."""

    source: Path
    out: Path
    settings: Mapping[str, Any]


def read_job(source: Path | None, out: Path | None, environment: Mapping[str, str]) -> Job:
    """The job of a call with these arguments, or without them in this environment.

    Raises UsageError where neither says where, or task.json is none.
    """
    if source is not None and out is not None:
        return Job(source, out, {})
    if source is not None:
        raise UsageError("IN without OUT.", "hz-dicom process IN OUT")
    for contract in CONTRACTS:
        if environment.get(contract.source) and environment.get(contract.out):
            folder = Path(environment[contract.source])
            settings = _settings(folder / TASK_NAME) if contract.settings else {}
            return Job(folder, Path(environment[contract.out]), settings)
    wanted = ", or ".join(f"{one.source} and {one.out}" for one in CONTRACTS)
    raise UsageError("no IN and OUT.", f"hz-dicom process IN OUT, or set {wanted}")


def _settings(path: Path) -> Mapping[str, Any]:
    """process.settings of a task.json; nothing where there is no such file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise OSError
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{TASK_NAME} cannot be read.", "Look at the task's folder.") from error
    try:
        process = json.loads(text).get("process") or {}
        steps = process if isinstance(process, list) else [process]
        return {str(key): value for step in steps for key, value in (step.get("settings") or {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{TASK_NAME} is not a task of mercure.", "Look at the module's settings."
        ) from error
