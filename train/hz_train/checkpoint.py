"""Checkpoints: tensors in safetensors, everything else in a JSON file of the same stem. Never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_file


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors) and its JSON; each is complete or absent, the JSON last.

    The JSON holds the tensors' sha256, so that a pair torn by a kill between the two is recognised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(flat, part)
    digest = sha256_file(part)
    os.replace(part, path)
    text = json.dumps({**meta, "sha256": digest}, indent=1, sort_keys=True)
    atomic_write_bytes(path.with_suffix(".json"), (text + "\n").encode())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a checkpoint. Raises UsageError where they are missing or torn."""
    again = "Train again, or copy both files of the checkpoint: NAME.safetensors and NAME.json."
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        digest = sha256_file(path)
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path.name} is not a complete checkpoint: {error}.", again) from error
    if meta.get("sha256") != digest:
        raise UsageError(f"{path.name} does not match its JSON (sha256 {digest[:12]}...).", again)
    try:
        return load_file(path), meta
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}.", again) from error


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with `prefix.` before every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `prefix.*`, the prefix taken off."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter index."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` saved; learning rates come from the schedule, not from here."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
