#!/usr/bin/env bash
# A NIfTI-1 file that gives its lengths in micrometres, and one that gives them in metres (xyzt_units 3 and 1): the same
# volume of 1 x 1.2 x 1.4 mm.
#
# nifti1.h: the units of pixdim, qoffset and srow are those of xyzt_units. Guessed: every reader converts, or refuses.
# Seen: SimpleITK 2.5.7 converts to mm. nibabel 5.4.2 gives the bare numbers as affine and voxel size, 1000 or .001
# to the millimetre; niimath 1.0.20261016 blurs by "-s 2", which it calls mm, within the voxel for micrometres (nothing
# changes) and across the whole field of view for metres (all voxels become almost equal).
# Why hz cares: hz converts, where the bare numbers would be no head's, and writes mm.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 SimpleITK==2.5.7 niimath==1.0.20261016 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import nibabel as nib
import niimath
import numpy as np
import SimpleITK as sitk

work, found = Path(sys.argv[1]), {}
values = np.random.default_rng(0).random((12, 12, 12), np.float32)
for unit, to_unit in (("mm", 1.0), ("micron", 1000.0), ("meter", 0.001)):
    image = nib.Nifti1Image(values, np.diag([to_unit, 1.2 * to_unit, 1.4 * to_unit, 1]))
    image.header.set_xyzt_units(unit)
    path = work / f"{unit}.nii"
    nib.save(image, path)
    subprocess.run([str(niimath.bin), path, "-s", "2", work / "out"], check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
    left = nib.load(work / "out.nii").get_fdata().std() / values.std()
    sizes = float(nib.load(path).header.get_zooms()[1]), sitk.ReadImage(str(path)).GetSpacing()[1]
    found[unit] = (float(f"{sizes[0]:.3g}"), float(f"{sizes[1]:.3g}"))
    print(f"{unit}: second voxel size {sizes[0]:g} by nibabel, {sizes[1]:g} by SimpleITK; "
          f"{left:.0%} of the spread left after niimath's blur of 2 mm")
    found[unit] += ("all" if left > 0.99 else "none" if left < 0.01 else "some",)
expected = {"mm": (1.2, 1.2, "some"), "micron": (1200.0, 1.2, "all"), "meter": (0.0012, 1.2, "none")}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
