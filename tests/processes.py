"""hz commands in processes of their own: how tests start, watch and kill them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hz_runtime.results.record import intact, read_record

ROOMS = [str(Path(__file__).resolve().parent.parent / room) for room in ("runtime", "cli")]
PATIENCE = 600  # seconds: a busy machine is no failure

_NIIMATH = """#!{python} -IS
import array, json, os, pathlib, struct, sys, time
folder, arguments = pathlib.Path({folder!r}), sys.argv[1:]
(folder / f"begun-{{os.getpid()}}").touch()
while (folder / "hold").exists():
    time.sleep(0.01)
if "-n4" in arguments:
    head = open("scan.nii", "rb").read(352)
    i, j, k = struct.unpack_from("<3h", head, 42)
    name = arguments[arguments.index("-field") + 1]
    open(name, "wb").write(head + array.array("f", [1.0]).tobytes() * (i * j * k))
else:
    name = arguments[arguments.index("-savemat") + 1]
    same = [[float(row == column) for column in range(4)] for row in range(4)]
    open(name, "w").write(json.dumps({{"moving_to_fixed": same}}))
"""


def arguments(command: str, *more: object) -> list[str]:
    """What starts hz-COMMAND with this interpreter."""
    return [sys.executable, "-m", f"hz_cli.{command}", *map(str, more)]


def environment(*first: Path) -> dict[str, str]:
    """The environment with the rooms on the path, the folders `first` before them, and one core a command."""
    path = [*map(str, first), *ROOMS, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def started(command: str, *more: object, path: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
    """hz-COMMAND as the leader of its own group of processes, as a shell starts it."""
    return subprocess.Popen(
        arguments(command, *more),
        env=environment(*path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def finished(command: str, *more: object, path: tuple[Path, ...] = ()) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of hz-COMMAND."""
    done = subprocess.run(
        arguments(command, *more),
        env=environment(*path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def until(seen: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something to be seen, or for the process to end before that."""
    limit = time.monotonic() + PATIENCE
    while not seen() and (process is None or process.poll() is None):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.002)


# A second a head, for heads that lie where the template does; what happens to processes does not hang on it.
_PACKAGE = """from pathlib import Path

import numpy as np

from hz_runtime.preparation import registration, steps

bin = str(Path(__file__).with_name("program"))


def registered(data, affine, template, threads=1, *, bare=False):
    seen = registration._through(data, affine, np.eye(4), template)
    return np.eye(4), registration.similarity(seen, template), seen


steps.registered = registered
steps.refined_pose = lambda data, affine, pose, template, *, bare: pose
"""


def fake_niimath(folder: Path) -> Path:
    """A package "niimath", for the path of a command, that moves nothing and finds no field.

    With it nothing is searched for, either: every head is taken to lie where the template does.
    Every call of it leaves a file begun-PID in `folder`, and waits there while a file "hold" exists.
    """
    package = folder / "path" / "niimath"
    package.mkdir(parents=True)
    program = package / "program"
    program.write_text(_NIIMATH.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    (package / "__init__.py").write_text(_PACKAGE)
    return folder / "path"


def whole_records(out: Path) -> int:
    """How many scans of an output folder have a record, every output of which is there as recorded."""
    records = [record for path in sorted(out.glob("*.json")) if (record := read_record(path))]
    assert all(intact(out, record) for record in records)
    return len(records)
