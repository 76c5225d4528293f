"""hz inside your own program: a scan in, the harmonized scan out, and what hz noticed about it.

    python examples/embed_in_python.py SCAN.nii.gz HARMONIZED.nii.gz [BUNDLE.hz]

The scan is skull-stripped. Networks are opened once, and may be asked from several threads.
Needs: pip install "hz-mri[cpu]"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from hz_runtime import HzError, load_bundle, open_networks


def harmonize(source: Path, target: Path, bundle: Path | None = None) -> None:
    """One scan; prints its age, and why somebody should look at it."""
    with open_networks(load_bundle(bundle)) as networks:
        image = nib.load(source)
        result = networks.harmonizer.volume(image.get_fdata(dtype=np.float32), image.affine)
        nib.save(nib.Nifti1Image(result.native, image.affine), target)  # on the same voxels
        flags: Sequence[str] = result.prepared.flags
        if networks.age_predictor is not None:  # a bundle may hold none
            ages = networks.age_predictor(result.grid)
            flags = networks.age_predictor.flags(ages.corrected[0], flags)
            print(f"age {ages.corrected[0]:.1f} years")
            if ages.interval is not None:
                low, high = ages.interval[0]
                print(f"the true one may well be {low:.0f} to {high:.0f}")
    # A flag does not mean that the result is wrong: it means that nobody should use it unseen.
    print("\n".join(f"look: {flag}" for flag in flags) or "nothing noticed")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        harmonize(*map(Path, sys.argv[1:]))
    except HzError as error:  # what was found, and what to do; nothing was written
        sys.exit(str(error))
