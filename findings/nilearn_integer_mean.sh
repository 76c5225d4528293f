#!/usr/bin/env bash
# nilearn's mean of volumes (image.mean_img), each stored as the integers that scanners and masks come in, all of one value:
# two of 200 as uint8, ten of 4,000 as int16; as a list and as one series of volumes.
#
# Guessed: 200 and 4,000, as of a list of floats. The description is "Compute the mean over images".
# Seen (nilearn 0.14.1): 72 and -2,553.6 from the list, without a warning; right as one series. The sum is kept in the type
# of the first volume and wraps round, and is divided afterwards. math_img("a + b") of two of 200 as uint8 gives 144, too.
# Why hz cares: an average head of nine scans of 12 bits is one of noise and holes, and a mean that wraps in the brightest
# voxels only looks like a scan. hz takes nothing but the MNI152 maps from nilearn; it reads volumes as float32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nilearn==0.14.1 nibabel==5.4.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import nibabel as nib
import numpy as np
from nilearn import image


def volume(value, kind):
    return nib.Nifti1Image(np.full((8, 9, 10), value, kind), np.eye(4))


def only(result):
    values = result.get_fdata()
    assert values.min() == values.max()
    return round(float(values.flat[0]), 1)


found = {}
for kind, value, count in (("float32", 200, 2), ("uint8", 200, 2), ("float32", 4000, 10), ("int16", 4000, 8), ("int16", 4000, 10)):
    volumes = [volume(value, kind) for _ in range(count)]
    series = nib.Nifti1Image(np.full((8, 9, 10, count), value, kind), np.eye(4))
    means = only(image.mean_img(volumes, copy_header=True)), only(image.mean_img(series, copy_header=True))
    found[kind, value, count] = means
    print(f"{count} volumes of {value} as {kind}: mean {means[0]} of the list, {means[1]} of the series")
found["a + b"] = only(image.math_img("a + b", a=volume(200, "uint8"), b=volume(200, "uint8")))
print(f"200 + 200 as uint8: {found['a + b']}")
expected = {
    ("float32", 200, 2): (200.0, 200.0),
    ("uint8", 200, 2): (72.0, 200.0),
    ("float32", 4000, 10): (4000.0, 4000.0),
    ("int16", 4000, 8): (4000.0, 4000.0),
    ("int16", 4000, 10): (-2553.6, 4000.0),
    "a + b": 144.0,
}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
