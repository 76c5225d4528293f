#!/usr/bin/env bash
# A NIfTI-1 file with scl_slope = 0 and scl_inter = 100, voxels 0 to 511.
#
# nifti1.h: "If the scl_slope field is nonzero, then each voxel value in the dataset should be scaled"; with a slope
# of 0 nothing is. Guessed: every reader gives 0 to 511.
# Seen: nibabel 5.4.2 gives 0 to 511; SimpleITK 2.5.7 and niimath 1.0.20261016 take the slope for 1 and add the
# intercept all the same: 100 to 611. One file, two scans, and no reader says a word.
# Why hz cares: hz reads such files unscaled, as the standard says, so that its numbers differ from those of
# programs built on ITK.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 SimpleITK==2.5.7 niimath==1.0.20261016 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import struct, subprocess, sys
from pathlib import Path

import nibabel as nib
import niimath
import numpy as np
import SimpleITK as sitk

work = Path(sys.argv[1])
path = work / "scan.nii"
nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), path)
raw = bytearray(path.read_bytes())
struct.pack_into("<ff", raw, 112, 0.0, 100.0)
path.write_bytes(raw)

subprocess.run([str(niimath.bin), path, "-mul", "1", work / "out", "-odt", "float"], check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
values = {
    "nibabel": nib.load(path).get_fdata(),
    "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage(str(path))),
    "niimath": nib.load(work / "out.nii").get_fdata(),
}
found = {name: (float(v.min()), float(v.max())) for name, v in values.items()}
for name, (low, high) in found.items():
    print(f"{name}: {low:g} to {high:g}")
expected = {"nibabel": (0, 511), "SimpleITK": (100, 611), "niimath": (100, 611)}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
