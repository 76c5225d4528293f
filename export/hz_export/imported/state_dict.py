"""Weights that torch stored (.pth, .p, .pt): a state dict, unpickled as weights only and within bounds.

`torch.load(weights_only=True)` makes tensors, containers of them and a few other plain things. What it does
not look at is how much they come to. That is done here, before and after; in between, where a few bytes may
ask for gigabytes, it works in a process of its own (`reader_process`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hz_export.imported.reader_process import hand_over, read_apart
from hz_export.imported.weight_file import (
    MOST_BYTES,
    MOST_TENSORS,
    OTHER_FILE,
    Array,
    WeightFile,
    check_values,
    named,
)
from hz_runtime.errors import UsageError

CPU = torch.device("cpu")
TYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip
PARALLEL = "module."  # what torch.nn.DataParallel puts before every name


def read_state_dict(path: Path) -> WeightFile:
    """The tensors of a state dict by name, without DataParallel's prefix.

    Raises UsageError for a file that holds anything else, is damaged, or is not safe to read.
    """
    return read_apart("hz_export.imported.state_dict", path)


def read_here(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """(tensors, nothing), read in this process, whose memory is all that bounds it.

    Raises UsageError as `read_state_dict`.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UsageError(f"{path.name} has {size / 1e9:.1f} GB; no network here has as many.", OTHER_FILE)
    _refuse_packed(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of torch's readers
        raise UsageError(
            f"{path.name} cannot be read as weights alone "
            f"({type(error).__name__}: {named(' '.join(str(error).split()))}).",
            OTHER_FILE,
        ) from None
    return _tensors(found, path.name), {}


def _refuse_packed(path: Path) -> None:
    """torch packs nothing: a file that unpacks to more than it is was not written by it."""
    with open(path, "rb") as file:
        begins = file.read(4) == b"PK\x03\x04"  # torch takes such a file for an archive, and would unpack it
    try:
        if not begins and not zipfile.is_zipfile(path):
            return  # the format of before torch 1.6
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise UsageError(f"{path.name} is damaged ({error}).", OTHER_FILE) from None
    if len(entries) > MOST_TENSORS:
        raise UsageError(f"{path.name} holds more than {MOST_TENSORS} parts.", OTHER_FILE)
    if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
        raise UsageError(f"{path.name} is packed, which torch's files are not.", OTHER_FILE)
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UsageError(f"{path.name} is damaged: its parts lie over each other.", OTHER_FILE)


def _tensors(found: Any, name: str) -> dict[str, Array]:
    sound = isinstance(found, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    )
    if not sound or not found:
        raise UsageError(f"{name} holds no state dict, tensors by name.", OTHER_FILE)
    if len(found) > MOST_TENSORS:
        raise UsageError(f"{name} holds more than {MOST_TENSORS} tensors.", OTHER_FILE)
    for key, value in found.items():
        if (
            value.is_nested
            or value.layout != torch.strided
            or value.dtype not in TYPES
            or value.device != CPU
        ):
            raise UsageError(f"{name}: {named(key)} is no plain tensor.", OTHER_FILE)
    # A view can claim more than its file holds: sizes are counted before anything is made contiguous.
    if sum(t.numel() * t.element_size() for t in found.values()) > MOST_BYTES:
        raise UsageError(f"{name} unpacks to more than {MOST_BYTES >> 30} GB.", OTHER_FILE)
    parallel = all(key.startswith(PARALLEL) for key in found)
    tensors: dict[str, Array] = {}
    for key, value in found.items():
        values = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
        check_values(name, named(key), values)
        tensors[key.removeprefix(PARALLEL) if parallel else key] = values
    return tensors


if __name__ == "__main__":
    hand_over(read_here)
