"""A stranger's weight file read in a process of its own, with bounds on its memory and time.

HDF5's own library does not survive every damaged file (a bit of a name's length, and it reads where nothing
is), and a pickle of a hundred bytes may ask torch's reader for as much memory as it likes. So either works in
a process that may die, and hands the tensors over as safetensors:

    python -m hz_export.imported.keras_file FILE.h5 OUT.safetensors
    python -m hz_export.imported.state_dict FILE.pth OUT.safetensors

What is refused, and why, is theirs to say; nothing of it is known here.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hz_export.imported.weight_file import OTHER_FILE, Array, WeightFile
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.programs import run_program

Held = tuple[Mapping[str, Array], Mapping[str, Any]]  # (tensors, architecture)
MOST_SECONDS = 600
REFUSED = 3  # exit code of the process that reads; its reason is on stdout


def read_apart(module: str, path: Path) -> WeightFile:
    """What `module`, run as a program that ends in `hand_over`, reads of a file.

    Raises UsageError with its reason where it refuses the file, dies of it or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="hz-import-") as name:
        out = Path(name) / "out.safetensors"
        ended = run_program(
            [sys.executable, "-m", module, os.path.abspath(path), str(out)],
            Path(name),
            seconds=MOST_SECONDS,
            given=path.stat().st_size,
            environment={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if ended.code == REFUSED:
            raise UsageError(ended.out.strip(), OTHER_FILE)
        if ended.code:
            raise UsageError(
                f"{path.name} is damaged: its reader died of it (exit {ended.code}).", OTHER_FILE
            )
        if ended.code is None:
            raise UsageError(f"{path.name} took more than {MOST_SECONDS} s to read.", OTHER_FILE)
        tensors, config = _handed_over(out)
    return WeightFile(path.name, sha256_file(path), tensors, config)


def hand_over(read: Callable[[Path], Held]) -> None:
    """The whole program: read sys.argv[1] in this process, and write its tensors to sys.argv[2]."""
    from safetensors.numpy import save_file

    try:
        tensors, config = read(Path(sys.argv[1]))
    except UsageError as error:
        print(error.message)
        sys.exit(REFUSED)
    # By number: a stranger's name may be one that safetensors keeps for itself, or no text at all.
    plain = {
        str(number): np.asarray(values, values.dtype.newbyteorder("="), order="C")
        for number, values in enumerate(tensors.values())
    }
    save_file(plain, sys.argv[2], {"names": json.dumps(list(tensors)), "config": json.dumps(config)})


def _handed_over(out: Path) -> Held:
    from safetensors import safe_open

    with safe_open(out, "np") as file:
        said = file.metadata()
        names = json.loads(said["names"])
        tensors = {name: np.asarray(file.get_tensor(str(number))) for number, name in enumerate(names)}
    return tensors, json.loads(said["config"])
