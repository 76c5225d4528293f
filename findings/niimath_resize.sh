#!/usr/bin/env bash
# niimath's -resize: a volume of 100 throughout, and volumes whose values are the places of their voxels in mm.
#
# Guessed: 100 stays 100, whatever the kernel, and the new header says where the new voxels are.
# Seen (niimath 1.0.20261016): with Lanczos (method 3), and no other, 100 becomes 98.3 to 100 in a pattern of every second
# voxel (twice the voxels) or 99.1 throughout (half of them): its weights do not sum to one. And where size times factor
# is no whole number (25 voxels by 1.3) the number of voxels is rounded, while the header's voxel size is not: with linear
# interpolation the ends lie half a voxel and more off what the header says, the middle is right. Exact factors are right.
# Why hz cares: a ripple of 2 % and a head that is 1 % too short look like a site. hz resamples by itself, onto grids that
# it states, with weights that sum to one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 niimath==1.0.20261016 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import nibabel as nib
import niimath
import numpy as np

work = Path(sys.argv[1])
AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])
METHODS = ("nearest", "linear", "spline", "Lanczos", "Mitchell")


def resized(values, factor, method):
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), work / "scan.nii")
    factors = [str(factor)] * 3
    command = [str(niimath.bin), work / "scan.nii", "-resize", *factors, str(method), work / "out"]
    subprocess.run(command, check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
    return nib.load(work / "out.nii")


flat = {}
for method, name in enumerate(METHODS):
    for factor in (2, 0.5):
        values = resized(np.full((24, 24, 24), 100), factor, method).get_fdata()[2:-2, 2:-2, 2:-2]
        flat[name, factor] = (round(float(values.min()), 1), round(float(values.max()), 1))
        print(f"100 throughout, {name}, factor {factor}: {flat[name, factor][0]} to {flat[name, factor][1]}")
apart = {}
for size, factor in ((24, 2), (25, 1.3)):
    places = np.broadcast_to(1.5 * np.arange(size)[:, None, None], (size,) * 3)
    volume = resized(places, factor, 1)
    said = volume.affine[0, 0] * np.arange(volume.shape[0]) + volume.affine[0, 3]
    off = (volume.get_fdata()[:, 12, 12] - said)[2:-2]
    apart[factor] = float(np.abs(off).max())
    print(
        f"{size} voxels of 1.5 mm by {factor}: {volume.shape[0]} voxels, called {volume.affine[0, 0]:.3f} mm, "
        f"{1.5 * size / volume.shape[0]:.3f} mm fit; up to {apart[factor]:.2f} mm apart, {np.abs(off).min():.2f} in the middle"
    )
rippled = {key for key, (least, most) in flat.items() if least < 99.5}
same = rippled == {("Lanczos", 2), ("Lanczos", 0.5)} and apart[2] < 1e-3 and apart[1.3] > 0.2
sys.exit(0 if same else f"changed: flat {flat}, apart {apart}")
PY
