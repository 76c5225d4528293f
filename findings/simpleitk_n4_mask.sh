#!/usr/bin/env bash
# N4 inside a mask whose voxels are 1, and the same mask with 2 and with 255, as tools that keep masks as pictures write
# them. A ball of 100 +- 2 under a smooth field.
#
# Guessed: what is not 0 is inside, as the filter's description has it ("If a UseMaskLabel value is set to false (the
# default), all non-zero voxels"), or a mask without a voxel inside is refused.
# Seen: SimpleITK 2.5.7 says UseMaskLabel is true and MaskLabel 1. With 2 or 255 it gives the image back as it was, bit
# for bit, without an error or a warning. antspyx 0.6.3 and niimath 1.0.20261016 correct the same in all three.
# Why hz cares: an uncorrected head looks like a corrected one. hz takes a given mask for what lies above half of its
# maximum, hands its tools masks of 0 and 1, and takes niimath's N4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  SimpleITK==2.5.7 antspyx==0.6.3 niimath==1.0.20261016 nibabel==5.4.2 numpy==1.26.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import subprocess, sys

import ants
import nibabel as nib
import niimath
import numpy as np
import SimpleITK as sitk

at = np.indices((32, 32, 32))
ball = ((at - 15.5) ** 2).sum(0) < 180
scan = np.where(ball, np.random.default_rng(0).normal(100, 2, ball.shape) * np.exp((at.sum(0) - 46) / 60), 0).astype(np.float32)
nib.save(nib.Nifti1Image(scan, np.eye(4)), "scan.nii")


def by_simpleitk(mask):
    return sitk.GetArrayFromImage(sitk.N4BiasFieldCorrection(sitk.GetImageFromArray(scan), sitk.GetImageFromArray(mask)))


def by_ants(mask):
    return ants.n4_bias_field_correction(ants.from_numpy(scan), mask=ants.from_numpy(mask.astype(np.float32))).numpy()


def by_niimath(mask):
    nib.save(nib.Nifti1Image(mask, np.eye(4)), "mask.nii")
    command = [str(niimath.bin), "scan.nii", "-n4", "-mask", "mask.nii", "out"]
    subprocess.run(command, check=True, capture_output=True, env={"FSLOUTPUTTYPE": "NIFTI"})
    return nib.load("out.nii").get_fdata()


found = {"UseMaskLabel": sitk.N4BiasFieldCorrectionImageFilter().GetUseMaskLabel()}
print(f"SimpleITK's filter: UseMaskLabel {found['UseMaskLabel']}")
for name, correct in (("SimpleITK", by_simpleitk), ("antspyx", by_ants), ("niimath", by_niimath)):
    for inside in (1, 2, 255):
        corrected = correct((ball * inside).astype(np.uint8))
        left = float(corrected[ball].std() / corrected[ball].mean())
        found[name, inside] = "unchanged" if np.array_equal(corrected, scan) else "corrected" if left < 0.11 else "odd"
        print(f"{name}, mask of {inside}: {found[name, inside]}, variation inside {left:.3f} ({scan[ball].std() / scan[ball].mean():.3f} before)")
expected = {key: "corrected" for key in found} | {("SimpleITK", inside): "unchanged" for inside in (2, 255)}
expected["UseMaskLabel"] = True
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
