#!/usr/bin/env bash
# Volumes of whole numbers, stored as int16 and as float32, through SimpleITK's Resample onto voxels of .7, its DiscreteGaussian
# and its SmoothingRecursiveGaussian: noise between 50 and 150, and a volume of ones (a mask).
#
# Guessed: of int16, the float answer rounded to the nearest whole number, as scipy 1.17.1 gives it.
# Seen (SimpleITK 2.5.7): it is cut off, not rounded. Resampled noise is .5 darker on average. DiscreteGaussian cuts once an
# axis: 1.5 darker. Of a volume of ones half of the voxels come out 0 by BSpline, whose answer is 1 but for rounding,
# and nearly all by Lanczos. SmoothingRecursiveGaussian alone gives float. Negative values get brighter.
# Why hz cares: scans and masks are stored as integers, and of a scan of few grey levels half a step is a site's difference.
# hz resamples and filters float32, and rounds where it stores integers (runtime/hz_runtime/io/volume.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  SimpleITK==2.5.7 scipy==1.17.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import affine_transform


def resampled(values, interpolator):
    image = sitk.GetImageFromArray(values)
    grid = sitk.Image([24] * 3, image.GetPixelID())
    grid.SetSpacing([0.7] * 3)
    grid.SetOrigin([2.3] * 3)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), interpolator)).astype(np.float64)


def filtered(name):
    return lambda values: sitk.GetArrayFromImage(getattr(sitk, name)(sitk.GetImageFromArray(values), 1.0)).astype(np.float64)


ways = {
    "scipy, linear": lambda v: affine_transform(v, [0.7] * 3, 2.3, (24,) * 3, order=1).astype(np.float64),
    "Resample, linear": lambda v: resampled(v, sitk.sitkLinear),
    "Resample, BSpline": lambda v: resampled(v, sitk.sitkBSpline),
    "DiscreteGaussian": filtered("DiscreteGaussian"),
    "SmoothingRecursiveGaussian": filtered("SmoothingRecursiveGaussian"),
}
noise = np.random.default_rng(0).integers(50, 151, (24, 24, 24))
found = {}
for name, way in ways.items():
    found[name] = tuple(round(float((way(v.astype(np.int16)) - way(v.astype(np.float32))).mean()), 1) + 0.0 for v in (noise, -noise))
    print(f"{name}: int16 less float32 {found[name][0]:+.1f} on average, of negative values {found[name][1]:+.1f}")
lost = {}
for name, interpolator in (("linear", sitk.sitkLinear), ("BSpline", sitk.sitkBSpline), ("Lanczos", sitk.sitkLanczosWindowedSinc)):
    ones = np.ones((24, 24, 24))
    lost[name] = float((resampled(ones.astype(np.int16), interpolator) == 0).mean())
    off = np.abs(resampled(ones.astype(np.float32), interpolator) - 1).max()
    print(f"a volume of ones, {name}: {lost[name]:.0%} of its voxels are 0; of float32 they are {off:.1g} off")
expected = dict.fromkeys(ways, (0.0, 0.0))
expected |= {"Resample, linear": (-0.5, 0.5), "Resample, BSpline": (-0.5, 0.5), "DiscreteGaussian": (-1.5, 1.5)}
same = found == expected and lost["linear"] == 0 and lost["BSpline"] > 0.25 and lost["Lanczos"] > 0.95
sys.exit(0 if same else f"changed: expected {expected}, found {found}, {lost}")
PY
