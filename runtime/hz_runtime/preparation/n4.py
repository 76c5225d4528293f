"""N4: the receive field out of a scan (Tustison 2010), by niimath's port of ITK's filter.

Komandur 2023 corrects every volume so before anything else. A scan that is harmonized does not need it,
since the harmonizer is trained on simulated fields; scans that a harmonizer learns its target from do, or
it learns their field as well.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError, ProgramDied, UnpreparedScan, UsageError
from hz_runtime.io.programs import run_program
from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.preparation.exchange import hand_over, take_back

F32 = NDArray[np.float32]

# Early stopping: at 1e-3 the field is within a hundredth of where ten times as many iterations leave it.
CONVERGENCE = 1e-3
ITERATIONS = "50x50x50x50"
MAX_SECONDS = 1800  # a head takes some, on a busy machine a minute
LEAST_ROOM = 2**20  # bytes: with less, a program that failed may have failed for that
COARSEST_MM = 4.0  # the field is estimated on voxels of about this size, as ITK's shrink factor of 4 does


def corrected(data: F32, affine: NDArray[np.float64]) -> F32:
    """The scan divided by its smooth multiplicative field, whose geometric mean in the foreground is 1.

    The field is estimated in the foreground and applied everywhere: dark fluid inside the brain must not
    be left behind.

    data : (I, J, K) float32, any unit.  affine : (4, 4) float64, voxel -> mm.
    Raises UsageError where niimath is missing, UnpreparedScan where it finds no field, HzError where it is
    killed or has no disk, NoBrain for an empty scan.
    """
    mask = data > foreground_threshold(data)
    spacing = float(np.linalg.norm(affine[:3, :3], axis=0).mean())
    shrink = max(1, round(COARSEST_MM / spacing))
    with tempfile.TemporaryDirectory(prefix="hz-n4-") as name:
        folder = Path(name)
        hand_over(folder / "scan.nii", data, affine)
        hand_over(folder / "mask.nii", mask.view(np.uint8), affine)
        options = ["-mask", "mask.nii", "-shrink", str(shrink), "-iter", ITERATIONS]
        command = ["scan.nii", "-n4", *options, "-convergence", str(CONVERGENCE)]
        complaint = niimath("N4", [*command, "-field", "field.nii", "out.nii", "-odt", "float"], folder)
        if complaint is not None or not (folder / "field.nii").exists():
            raise UnpreparedScan(
                f"niimath found no receive field ({complaint or 'it wrote nothing'}).",
                "Look at the scan, or correct it elsewhere.",
            )
        field = take_back(folder / "field.nii", data.shape)
    if not (np.isfinite(field).all() and field.min() > 0):
        raise UnpreparedScan(
            "niimath's receive field is not positive everywhere.",
            "Look at the scan, or correct it elsewhere.",
        )
    level = np.exp(np.log(field[mask]).mean())
    out = np.divide(data, field, out=field)
    out *= level
    return out


def niimath(step: str, arguments: Sequence[str], folder: Path, threads: int | None = None) -> str | None:
    """Run niimath in `folder`; None where it succeeds, else what it said, in at most 200 characters.

    threads : OpenMP's; None: as the environment says. A Ctrl-C of the terminal does not reach it, so that a
    scan in flight is finished. Raises UsageError where it is missing, ProgramDied where it crashes or
    takes over half an hour, HzError where something killed it or the disk is full: that says nothing about
    the scan.
    """
    more = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    done = run_program(
        [niimath_program(step), *arguments],
        folder,
        seconds=MAX_SECONDS,
        given=sum(path.stat().st_size for path in folder.iterdir()),
        # A site's large stacks, one a thread, would count against the bound on its memory.
        environment={**os.environ, "FSLOUTPUTTYPE": "NIFTI", "OMP_STACKSIZE": "8M", **more},
    )
    if done.code is None:
        raise ProgramDied(
            f"{step} took more than {MAX_SECONDS:g} s (niimath).",
            "Look at the scan, or prepare it elsewhere.",
        )
    if done.crashed:
        raise ProgramDied(
            f"{step} crashed (niimath, signal {-done.code}).",
            "Look at the scan; where memory is short, run the same command again with fewer --workers.",
        )
    if done.code < 0:
        raise HzError(
            f"{step} was ended from outside (niimath, signal {-done.code}).",
            "Most often memory ran out: run the same command again, with fewer --workers.",
        )
    if not done.code:
        return None
    if shutil.disk_usage(folder).free < LEAST_ROOM:
        raise HzError(
            f"{step} failed, and the disk for temporary files is full.",
            "Make room, or name another place for them:  TMPDIR=FOLDER, before the command.",
        )
    return " ".join((done.err or done.out).split())[:200]


def niimath_words() -> str:
    """What the installed program says of itself, its version among it; empty where it cannot be run."""
    try:
        with tempfile.TemporaryDirectory(prefix="hz-niimath-") as folder:
            done = run_program([niimath_program("The self-test")], Path(folder), seconds=20, given=0)
    except OSError:
        return ""
    return " ".join((done.out or done.err).split())[:200]


def niimath_program(step: str) -> str:
    """Path of niimath's binary. Raises UsageError that names the step where it is not installed."""
    try:
        import niimath
    except ImportError:
        raise UsageError(
            f"{step} needs niimath.", "pip install 'hz-mri[prep]'  (or do it elsewhere first)"
        ) from None
    return str(niimath.bin)
