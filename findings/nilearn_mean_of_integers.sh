#!/usr/bin/env bash
# nilearn's mean_img of scans of 4,000 throughout, kept as int16 as scanners' converters write them: from a list of 8 files,
# from a list of 9, and from the same 9 in one file of 4-D.
#
# Guessed: 4,000; a mean lies between the least and the greatest of what it is the mean of.
# Seen (nilearn 0.14.1): 4,000 of 8 and of the 4-D file, -3,282 of 9. The list is summed in the type that the first file is
# stored in and divided afterwards; 36,000 is beyond int16, and wraps without a word. Of uint8 two scans are enough.
# Averages of real scans look right in most places: only where the sum passes 32,767 do bright voxels turn dark or negative.
# Why hz cares: templates and site averages are made so, from int16 files of 0 to 4,095. hz reads every scan as float32 and
# takes its averages itself; of nilearn it uses the maps that come with it, and no arithmetic.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nilearn==0.14.1 nibabel==5.4.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.image import concat_imgs, mean_img

work, found = Path(sys.argv[1]), {}


def written(value, dtype, count):
    paths = [str(work / f"{np.dtype(dtype)}-{n}.nii.gz") for n in range(count)]
    for path in paths:
        nib.save(nib.Nifti1Image(np.full((8, 8, 8), value, dtype), np.eye(4)), path)
    return paths


eight, nine, bytes_ = written(4000, np.int16, 8), written(4000, np.int16, 9), written(200, np.uint8, 2)
cases = {
    "8 files of int16": (4000, eight),
    "9 files of int16": (4000, nine),
    "the 9 as one 4-D file": (4000, concat_imgs(nine, dtype=np.int16)),
    "2 files of uint8": (200, bytes_),
}
for name, (value, scans) in cases.items():
    mean = mean_img(scans).get_fdata()
    found[name] = (round(float(mean.min())), round(float(mean.max())))
    print(f"{name}, {value} throughout: mean {found[name][0]} to {found[name][1]}")
expected = {
    "8 files of int16": (4000, 4000),
    "9 files of int16": (-3282, -3282),
    "the 9 as one 4-D file": (4000, 4000),
    "2 files of uint8": (72, 72),
}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
