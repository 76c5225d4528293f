#!/usr/bin/env bash
# niimath's -subsamp2 and -subsamp2offc (every second voxel, voxels twice as large) on a volume whose sform and qform are
# equal, once stored from left to right and once from right to left.
#
# Guessed: both poses follow the new grid, and one volume gives the same result however it is stored.
# Seen (niimath 1.0.20261016): only the sform follows. Stored from left to right (as most scans are not), -subsamp2
# leaves sform and qform one old voxel apart, -subsamp2offc half a voxel, in both storages; readers that prefer the qform
# place the result elsewhere than those that prefer the sform. -subsamp2 keeps other voxels in the two storages, too.
# Why hz cares: a scan that went through such a tool says two things about where it is. hz reads the sform, flags a
# qform of more than 2 mm away, and shrinks volumes by its own resampling.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check nibabel==5.4.2 niimath==1.0.20261016 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import nibabel as nib
import niimath
import numpy as np

work, found = Path(sys.argv[1]), {}
values = np.random.default_rng(0).random((12, 12, 12), np.float32)
for storage, sign in (("left to right", 1), ("right to left", -1)):
    affine = np.diag([sign * 1.5, 1.2, 2.0, 1])
    image = nib.Nifti1Image(values[::sign], affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, work / "scan.nii")
    for operation in ("-subsamp2", "-subsamp2offc"):
        subprocess.run([str(niimath.bin), work / "scan.nii", operation, work / "out"], check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
        small = nib.load(work / "out.nii")
        apart = float(np.abs(small.get_sform()[:3, 3] - small.get_qform()[:3, 3]).max())
        found[storage, operation] = round(apart, 3)
        print(f"stored from {storage}, {operation}: sform and qform {apart:g} mm apart")
expected = {
    ("left to right", "-subsamp2"): 1.5,
    ("left to right", "-subsamp2offc"): 1.0,
    ("right to left", "-subsamp2"): 0.0,
    ("right to left", "-subsamp2offc"): 1.0,
}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
