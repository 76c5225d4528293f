#!/usr/bin/env bash
# A difference of two heads, of whole numbers from -100 to 100, handed to antspyx as an array of int16 (int8, int32, int64),
# and as float32.
#
# Guessed: one image, whatever the array's type, or an error; what antspyx keeps has uint8, uint32, float32 and float64.
# Seen (antspyx 0.6.3): signed integers become uint32 without a warning: -1 is 4,294,967,295, the mean of values that
# cancel is 1.7e9. float32 arrays, and int16 files by image_read, which makes them float, are right. Of uint8, two images of
# 200 add up to 144.
# Why hz cares: most scans are stored as int16, and nibabel's arrays of them go to from_numpy. hz never calls antspyx; the
# peer script of its benchmarks has it read files, and so gets float32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  antspyx==0.6.3 nibabel==5.4.2 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import ants
import nibabel as nib
import numpy as np

steps = np.array([-100, -10, 0, 10, 100])
found = {}
for kind in ("float32", "int8", "int16", "int32", "int64"):
    values = np.broadcast_to(steps.reshape(5, 1, 1), (5, 4, 4)).astype(kind)
    image = ants.from_numpy(values)
    like = ants.from_numpy(np.zeros(values.shape, np.float32)).new_image_like(values)
    assert np.array_equal(image.numpy(), like.numpy())
    found[kind] = (image.pixeltype, float(image.numpy()[0, 0, 0]), round(float(image.mean()), 1))
    print(f"{kind}: {found[kind][0]}, -100 is {found[kind][1]:.0f}, the mean of values that cancel {found[kind][2]:.1f}")
nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), "scan.nii")
read = ants.image_read("scan.nii")
found["file"] = (read.pixeltype, float(read.numpy()[0, 0, 0]), round(float(read.mean()), 1))
print("int16 file:", found["file"])
white = ants.from_numpy(np.full((4, 4, 4), 200, np.uint8))
found["200 + 200"] = int((white + white).numpy().max())
print("200 + 200 as uint8:", found["200 + 200"])
signed = ("unsigned int", 2.0**32 - 100, 1717986918.4)
expected = {"float32": ("float", -100.0, 0.0), "file": ("float", -100.0, 0.0), "200 + 200": 144}
expected |= {kind: signed for kind in ("int8", "int16", "int32", "int64")}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
