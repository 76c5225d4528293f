#!/usr/bin/env bash
# An MGH file that does not say where the head lies: its goodRASFlag is 0, as the format allows. One bright voxel.
#
# Guessed: every reader takes FreeSurfer's default, coronal slices: to the left, down, to the front (setDirectionCosine in
# utils/mriio.cpp: x_r = -1, y_s = -1, z_a = 1).
# Seen: surfa 0.6.3, FreeSurfer's own, does. nibabel 5.4.2 takes the same slices for ones that run up and to the back: the
# head stands upside down and looks backwards. antspyx 0.6.3 takes them for axial ones and puts the first voxel at 0. None
# says a word, and the sizes, the shape and the handedness of nibabel's are right.
# Why hz cares: hz had it from nibabel until this was found. It now lays such heads as FreeSurfer does and flags them: "it
# may be mirrored". Tested in tests/runtime/io/test_nifti_header.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  surfa==0.6.3 nibabel==5.4.2 antspyx==0.6.3 numpy==1.26.4
"$work/venv/bin/python" - "$work" <<'PY'
import struct, sys
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import surfa

path = Path(sys.argv[1]) / "scan.mgh"
values = np.zeros((20, 24, 28), np.float32)
values[5, 4, 24] = 1  # by FreeSurfer's default on the right, high, and in front
nib.save(nib.MGHImage(values, np.eye(4)), path)
raw = bytearray(path.read_bytes())
struct.pack_into(">h", raw, 28, 0)  # goodRASFlag
path.write_bytes(raw)


def by_ants():
    image = ants.image_read(str(path))
    assert np.array_equal(image.numpy(), values)  # the same order of voxels, so that the affines alone differ
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = image.direction @ np.diag(image.spacing), image.origin
    return np.diag([-1.0, -1, 1, 1]) @ affine


affines = {
    "surfa": np.asarray(surfa.load_volume(str(path)).geom.vox2world.matrix),
    "nibabel": nib.load(path).affine,
    "antspyx": by_ants(),
}
found = {}
for reader, affine in affines.items():
    found[reader] = "".join(nib.aff2axcodes(affine))
    place = (affine @ [5, 4, 24, 1])[:3]
    print(f"{reader}: axes {found[reader]}, the voxel {place[0]:g} mm to the right, {place[1]:g} to the front, {place[2]:g} up")
expected = {"surfa": "LIA", "nibabel": "LSP", "antspyx": "LPS"}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
