#!/usr/bin/env bash
# A head's grid that SimpleITK writes as NIfTI and as MINC-2; one bright voxel marks the patient's left, in front.
#
# Guessed: whichever of the two files is read, and by whom, the bright voxel lies on the left and in front.
# Seen: SimpleITK 2.5.7 writes its own coordinates (x to the left, y to the back) into the MINC file as they are, where
# MINC's point to the right and to the front. nibabel 5.4.2 finds the voxel on the right and at the back: the head is turned
# by half a circle about its long axis. SimpleITK makes the same slip as it reads, so that a round trip through it looks
# right; a MINC file of other programs comes in turned. ITK has corrected this for its version 6 (pull request 4864).
# Why hz cares: nothing is mirrored, so that no look at handedness finds it, and left and right are exchanged. hz
# refuses MINC by name and asks for NIfTI.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  SimpleITK==2.5.7 nibabel==5.4.2 h5py==3.16.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

work, found = Path(sys.argv[1]), {}
values = np.zeros((20, 26, 24), np.float32)  # z, y, x
values[6, 5, 20] = 1
volume = sitk.GetImageFromArray(values)
volume.SetSpacing((1.5, 1.2, 2))
volume.SetOrigin((-10, -20, -15))  # of ITK: x to the left, y to the back


def where(place):
    return ("right" if place[0] > 0 else "left") + (" front" if place[1] > 0 else " back")


for name in ("head.nii", "head.mnc"):
    path = work / name
    sitk.WriteImage(volume, str(path))
    image = nib.load(path)
    at = np.unravel_index(np.asarray(image.dataobj).argmax(), image.shape)
    again = sitk.ReadImage(str(path))
    index = np.unravel_index(sitk.GetArrayFromImage(again).argmax(), values.shape)[::-1]
    places = {
        "nibabel": (image.affine @ [*at, 1])[:3],
        "SimpleITK": np.array(again.TransformIndexToPhysicalPoint([int(n) for n in index])) * [-1, -1, 1],
    }
    for reader, place in places.items():
        found[name, reader] = where(place)
        print(f"{name}: {reader} finds the voxel at {place.round(1)} mm to the right, front and top: {where(place)}")
expected = {key: "left front" for key in found} | {("head.mnc", "nibabel"): "right back"}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
