#!/usr/bin/env bash
# A NIfTI-1 file whose sform (code 2, aligned) and qform (code 1, scanner) differ by 20 degrees about x, as
# registration tools write it.
#
# Guessed: readers agree, on the sform, since its code is set.
# Seen: nibabel 5.4.2 takes the sform, SimpleITK 2.5.7 the qform, without a warning: corners of a 160 mm box lie
# up to 79 mm apart between the two.
# Why hz cares: hz takes the sform, as nibabel does, and flags a scan whose two poses differ.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

path = Path(sys.argv[1]) / "scan.nii"
straight = np.diag([10.0, 10, 10, 1])
c, s = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
turned = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ straight
image = nib.Nifti1Image(np.zeros((17, 17, 17), np.int16), turned)
image.header.set_sform(turned, code=2)
image.header.set_qform(straight, code=1)
nib.save(image, path)

one = nib.load(path).affine
itk = sitk.ReadImage(str(path))
lps = np.eye(4)
lps[:3, :3] = np.array(itk.GetDirection()).reshape(3, 3) @ np.diag(itk.GetSpacing())
lps[:3, 3] = itk.GetOrigin()
other = np.diag([-1, -1, 1, 1]) @ lps
corners = np.array([[*at, 1] for at in np.ndindex(2, 2, 2)]) * [16, 16, 16, 1]
apart = float(np.linalg.norm(corners @ (one - other).T, axis=1).max())
print(f"nibabel takes the {'sform' if np.allclose(one, turned, atol=1e-4) else 'qform'}")
print(f"SimpleITK takes the {'qform' if np.allclose(other, straight, atol=1e-4) else 'sform'}")
print(f"corners lie up to {apart:.0f} mm apart")
same = np.allclose(one, turned, atol=1e-4) and np.allclose(other, straight, atol=1e-4) and apart > 50
sys.exit(0 if same else "changed: nibabel's sform and SimpleITK's qform expected")
PY
