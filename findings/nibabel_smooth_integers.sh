#!/usr/bin/env bash
# nibabel's smooth_image (a Gaussian of 6 mm at half height) on volumes that are kept as integers: a mask of a cube of 1s,
# and noise of 100 +- 10, each also as float32.
#
# Guessed: the same to within rounding, since nibabel hands out floats of every file (get_fdata).
# Seen (nibabel 5.4.2): the mask, of 1,000 voxels, comes back empty: not one voxel is left. The noise loses 1.5 of its mean of
# 100. Each of the three axes is smoothed into an array of the file's own type and what follows the point is cut off, three
# times, always downwards. As float32 the mask keeps its sum and the noise its mean. The documentation speaks of the class
# of the result, not of its type. (nilearn did the same to unsigned integers, its issue 6440; 0.14.1 smooths in floats.)
# Why hz cares: masks and most scans are integers; weights from a smoothed mask would all be 0. hz blurs in float32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 scipy==1.17.1 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import smooth_image

path, affine, found = Path(sys.argv[1]) / "scan.nii.gz", np.diag([2.0, 2, 2, 1]), {}
mask = np.zeros((24, 24, 24), np.uint8)
mask[7:17, 7:17, 7:17] = 1
noise = np.random.default_rng(0).normal(100, 10, mask.shape).round()
inside = (slice(5, -5),) * 3  # further from the edges than the Gaussian reaches
for dtype in (np.uint8, np.int16, np.float32):
    kept = []
    for values in (mask, noise):
        nib.save(nib.Nifti1Image(values.astype(dtype), affine), path)
        kept.append(smooth_image(nib.load(path), 6).get_fdata())
    found[np.dtype(dtype).name] = (round(float(kept[0].sum())), round(float((kept[1] - noise)[inside].mean()), 1))
    print(
        f"{np.dtype(dtype)}: the mask's sum {kept[0].sum():.0f} of {mask.sum()}, "
        f"the noise's mean {kept[1][inside].mean():.2f} of {noise[inside].mean():.2f}"
    )
same = all(found[t][0] == 0 and -1.9 < found[t][1] < -1.1 for t in ("uint8", "int16"))
same &= found["float32"][0] == 1000 and abs(found["float32"][1]) < 0.2
sys.exit(0 if same else f"changed: {found}")
PY
