#!/usr/bin/env bash
# A NIfTI-1 file that does not say where the head lies: sform and qform code are 0, as `nib.Nifti1Image(voxels, None)` leaves
# them. One bright voxel.
#
# Guessed: every reader takes one default. nifti1.h (method 1) has none: "No particular spatial orientation is attached".
# Seen: nibabel 5.4.2 and niimath 1.0.20261016 let the second axis run to the front and put the middle at 0; SimpleITK
# 2.5.7 and antspyx 0.6.3 let it run to the back and put the first voxel at 0 (so do MONAI and TorchIO, which read by the
# one and by the other). One head, mirrored front to back between the two, without a word. Written again by SimpleITK its
# codes are 1 and 1, as if a scanner had said so.
# Why hz cares: a mask that one of them makes of the other's scan is mirrored. hz reads such files as nibabel does, and flags
# them: "it may be mirrored".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 niimath==1.0.20261016 SimpleITK==2.5.7 antspyx==0.6.3 numpy==1.26.4
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import ants
import nibabel as nib
import niimath
import numpy as np
import SimpleITK as sitk

work, found = Path(sys.argv[1]), {}
path = work / "scan.nii"
values = np.zeros((20, 24, 28), np.float32)
values[5, 20, 9] = 1
nib.save(nib.Nifti1Image(values, None), path)
header = nib.load(path).header
assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def affine_of_itk(direction, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) @ np.diag(spacing)
    affine[:3, 3] = origin
    return np.diag([-1.0, -1, 1, 1]) @ affine


by_sitk, by_ants = sitk.ReadImage(str(path)), ants.image_read(str(path))
assert np.array_equal(by_ants.numpy(), values)  # the same order of voxels, so that the affines alone differ
assert np.array_equal(sitk.GetArrayFromImage(by_sitk).T, values)
subprocess.run([str(niimath.bin), path, "-add", "0", work / "out"], check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
affines = {
    "nibabel": nib.load(path).affine,
    "niimath": nib.load(work / "out.nii").affine,
    "SimpleITK": affine_of_itk(by_sitk.GetDirection(), by_sitk.GetSpacing(), by_sitk.GetOrigin()),
    "antspyx": affine_of_itk(by_ants.direction, by_ants.spacing, by_ants.origin),
}
for reader, affine in affines.items():
    found[reader] = "".join(nib.aff2axcodes(affine))
    place = (affine @ [5, 20, 9, 1])[:3]
    print(f"{reader}: axes {found[reader]}, the voxel {place[0]:g} mm to the right, {place[1]:g} to the front, {place[2]:g} up")
sitk.WriteImage(by_sitk, str(work / "again.nii"))
again = nib.load(work / "again.nii").header
codes = (int(again["sform_code"]), int(again["qform_code"]))
print(f"written again by SimpleITK: sform and qform code {codes}")
expected = {"nibabel": "LAS", "niimath": "LAS", "SimpleITK": "LPS", "antspyx": "LPS"}
sys.exit(0 if found == expected and codes == (1, 1) else f"changed: expected {expected}, found {found}, {codes}")
PY
