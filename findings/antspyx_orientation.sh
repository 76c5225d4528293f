#!/usr/bin/env bash
# One scan whose axes run to the right, to the front and upwards, and the three letters for that, asked of antspyx and
# SimpleITK; both are built on ITK.
#
# Guessed: "RAS" is what nibabel, SimpleITK and BIDS call it, and to ask for it changes nothing.
# Seen: antspyx 0.6.3 calls the scan "LPI", and reorient_image2(scan, "RAS") turns all three axes round: nibabel 5.4.2 finds
# LPI in the file that it writes. Its letters say where an axis comes from. SimpleITK 2.5.7 says "RAS", and
# DICOMOrient(scan, "RAS") leaves the voxels as they are: its letters say where an axis runs to, as nibabel's do.
# reorient_image2's documentation names neither.
# Why hz cares: affines stay right, so that viewers show nothing; a network that is fed the bare voxels gets a head that is
# upside down and mirrored. hz turns voxels by the affine alone and takes no letters from other programs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  antspyx==0.6.3 SimpleITK==2.5.7 nibabel==5.4.2 numpy==1.26.4
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import SimpleITK as sitk

work = Path(sys.argv[1])
values = np.random.default_rng(0).random((20, 24, 28), np.float32)
nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.2, 1.5, 1])), work / "scan.nii")
by_ants, by_sitk = ants.image_read(str(work / "scan.nii")), sitk.ReadImage(str(work / "scan.nii"))
names = {
    "nibabel": "".join(nib.aff2axcodes(nib.load(work / "scan.nii").affine)),
    "SimpleITK": sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(by_sitk.GetDirection()),
    "antspyx": by_ants.orientation,
}
ants.image_write(ants.reorient_image2(by_ants, "RAS"), str(work / "antspyx.nii"))
sitk.WriteImage(sitk.DICOMOrient(by_sitk, "RAS"), str(work / "SimpleITK.nii"))
found = {}
for tool in ("SimpleITK", "antspyx"):
    image = nib.load(work / f"{tool}.nii")
    turned = np.array_equal(image.get_fdata(), values[::-1, ::-1, ::-1].astype(float))
    found[tool] = ("".join(nib.aff2axcodes(image.affine)), turned)
    print(f"{tool} calls the scan {names[tool]} (nibabel: {names['nibabel']}); asked for RAS it gives {found[tool][0]}, all axes turned: {turned}")
same = names == {"nibabel": "RAS", "SimpleITK": "RAS", "antspyx": "LPI"}
same &= found == {"SimpleITK": ("RAS", False), "antspyx": ("LPI", True)}
sys.exit(0 if same else f"changed: {names}, {found}")
PY
