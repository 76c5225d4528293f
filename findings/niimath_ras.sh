#!/usr/bin/env bash
# niimath's -ras (axes reordered and flipped to right, anterior, superior) on a volume whose sform (code 2, aligned) and
# qform (code 1, scanner) are the same, stored from right to left as most scans are. One bright voxel marks the left.
#
# Guessed: both poses follow the voxels, as with every tool that flips.
# Seen (niimath 1.0.20261016): the voxels are flipped, the sform follows, the qform and its code stay. nibabel 5.4.2, which
# takes the sform, finds the bright voxel where it was; SimpleITK 2.5.7, which takes the qform of such a header, finds it
# in the other half of the head: left and right are exchanged. Stored as sagittal slices, all three axes are. With codes 1
# and 1 SimpleITK takes the sform, too, and is right.
# Why hz cares: a mirrored head is the worst that can come of a header. hz reads the sform, as nibabel does, and flags a
# qform that lies elsewhere; it never calls -ras.
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
STORAGES = {
    "axial, right to left": np.array([[-1.5, 0, 0, 20], [0, 1.2, 0, -15], [0, 0, 2, -30], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 2.0, -30], [-1.5, 0, 0, 20], [0, -1.2, 0, 15], [0, 0, 0, 1]]),
}


def bright_place(path, reader):
    """Where the brightest voxel lies, in mm to the right, to the front and upwards."""
    if reader == "nibabel":
        volume = nib.load(path)
        at = np.unravel_index(volume.get_fdata().argmax(), volume.shape)
        return (volume.affine @ [*at, 1])[:3]
    volume = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(volume)
    at = np.unravel_index(values.argmax(), values.shape)[::-1]
    return np.array(volume.TransformIndexToPhysicalPoint([int(n) for n in at])) * [-1, -1, 1]


for storage, affine in STORAGES.items():
    for codes in ((2, 1), (1, 1)):
        values = np.zeros((24, 26, 20), np.float32)
        values[20, 5, 6] = 1
        image = nib.Nifti1Image(values, affine)
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
        nib.save(image, work / "scan.nii")
        command = [str(niimath.bin), work / "scan.nii", "-ras", work / "out"]
        subprocess.run(command, check=True, env={"FSLOUTPUTTYPE": "NIFTI"})
        header = nib.load(work / "out.nii").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == codes
        for reader in ("nibabel", "SimpleITK"):
            before, after = (bright_place(work / name, reader) for name in ("scan.nii", "out.nii"))
            found[storage, codes, reader] = bool(np.allclose(before, after, atol=1e-3))
            print(f"{storage}, sform and qform code {codes}: {reader} finds it at {before.round(1)} before and {after.round(1)} after")
expected = {key: key[1] == (1, 1) or key[2] == "nibabel" for key in found}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
