#!/usr/bin/env bash
# MONAI's GaussianSmooth and GaussianSharpen (and RandGaussianSmooth, which augments) of a volume of 100 throughout, with
# standard deviations of 1 and 2 voxels.
#
# Guessed: 100 stays 100, as by scipy's gaussian_filter, SimpleITK and TorchIO; no setting says what lies beyond the edge.
# Seen (MONAI 1.6.1): beyond the edge lies 0. The outermost layer comes out at 69 and 60, its corners at 33 and 21. Sharpened
# (the defaults) the same volume is 101 to 444. MedianSmooth leaves it at 100.
# Why hz cares: a head that is cut by its field of view, as most necks are, fades towards the cut, in augmentation as in a
# preparation. hz's augmentation blurs by scipy, which mirrors at the edge.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  monai==1.6.1 torch==2.13.0 torchio==1.2.1 scipy==1.17.1 SimpleITK==2.5.7 numpy==2.4.6
"$work/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import numpy as np
import SimpleITK as sitk
import torch
import torchio
from monai import transforms
from scipy.ndimage import gaussian_filter

scan = torch.full((1, 24, 24, 24), 100.0)
found = {}
for sigma in (1.0, 2.0):
    image = sitk.GetImageFromArray(scan[0].numpy())
    drawn = transforms.RandGaussianSmooth((sigma, sigma), (sigma, sigma), (sigma, sigma), prob=1.0)
    answers = {
        "scipy": gaussian_filter(scan[0].numpy(), sigma),
        "SimpleITK": sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma)),
        "TorchIO": torchio.Blur(sigma)(scan)[0].numpy(),
        "MONAI": transforms.GaussianSmooth(sigma)(scan)[0].numpy(),
        "MONAI, drawn": drawn(scan)[0].numpy(),
        "MONAI, median": transforms.MedianSmooth(2)(scan)[0].numpy(),
    }
    for name, answer in answers.items():
        answer = np.asarray(answer)
        found[name, sigma] = tuple(round(float(answer[at])) for at in ((12, 12, 12), (0, 12, 12), (0, 0, 0)))
        print(f"deviation {sigma:.0f}, {name}: middle, face and corner of 100 are {found[name, sigma]}")
sharp = np.asarray(transforms.GaussianSharpen()(scan)[0])
found["sharpened"] = (round(float(sharp.min())), round(float(sharp.max())))
print(f"MONAI, sharpened: {found['sharpened'][0]} to {found['sharpened'][1]}")
expected = {key: (100, 100, 100) for key in found}
expected |= {("MONAI", 1.0): (100, 69, 33), ("MONAI", 2.0): (100, 60, 21)}
expected |= {("MONAI, drawn", s): expected["MONAI", s] for s in (1.0, 2.0)} | {"sharpened": (101, 444)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
