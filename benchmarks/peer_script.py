"""The script one would write today for raw heads, without hz: antspyx, deepbet, torch, nibabel and scipy.

    python peer_script.py HEAD... --out FOLDER --template FILE --generator STATE.pt --threads N

Of every head: N4 and a rigid registration by antspyx, the mask by deepbet, and then what plain_script.py does
with a brain in the template's place. Writes NAME_mask.nii.gz and NAME_harmonized.nii.gz on the head's own
voxels; prints JSON: seconds of each step, versions. `peers.py` runs it in an environment of its own. It has
no checks, no report and no resume.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

PACKAGES = ("antspyx", "deepbet", "torch", "nibabel", "numpy", "scipy")
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--template", type=Path, required=True, help="the brain that heads are brought to")
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    for variable in ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = str(given.threads)  # before the libraries start theirs
    import ants
    import torch
    from deepbet.bet import BrainExtraction

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
    from hz_train.age_cnn import AgeCNN
    from hz_train.volume_cyclegan import Generator

    torch.set_num_threads(given.threads)
    generator = Generator()
    generator.load_state_dict(torch.load(given.generator))
    age = AgeCNN()  # the work does not depend on the weights
    template, extraction = ants.image_read(str(given.template)), BrainExtraction(no_gpu=True)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [{"head": "start-up", "seconds": {"imports": round(time.perf_counter() - START, 3)}}]
    for head in given.heads:
        rows.append(harmonized(head, given.out, template, extraction, generator.eval(), age.eval()))
    print(json.dumps({"heads": rows, "packages": {name: version(name) for name in PACKAGES}}))


def harmonized(head, out, template, extraction, generator, age) -> dict[str, object]:
    """One raw head; returns its name and the seconds of each step."""
    import ants
    import nibabel as nib

    from plain_script import harmonize_one

    name, seconds, last = head.name.split(".")[0], {}, time.perf_counter()

    def step(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[what], last = round(now - last, 3), now

    mask_file, brain_file = out / f"{name}_mask.nii.gz", out / f"{name}_brain.nii.gz"
    extraction.run(str(head), mask_path=str(mask_file))
    step("mask")
    mask = ants.image_read(str(mask_file))
    brain = ants.n4_bias_field_correction(ants.image_read(str(head)), mask=mask) * mask
    step("n4")
    found = ants.registration(fixed=template, moving=brain, type_of_transform="Rigid")
    pose = world_map(ants.read_transform(found["fwdtransforms"][0]))
    step("registration")
    # As the scan of a brain that lies where the template does: its voxels stay as they are.
    image = nib.load(head)
    inside = np.asarray(nib.load(mask_file).dataobj) > 0
    placed = nib.Nifti1Image(np.where(inside, brain.numpy(), 0).astype(np.float32), pose @ image.affine)
    nib.save(placed, brain_file)
    made = out / f"{name}_harmonized.nii.gz"
    harmonize_one(brain_file, made, generator, age)  # and an age of random weights, which is none
    result = nib.load(made)
    nib.save(nib.Nifti1Image(np.asarray(result.dataobj), image.affine, image.header), made)
    step("harmonization")
    return {"head": head.name, "seconds": seconds}


def world_map(transform) -> np.ndarray:
    """(4, 4) from the moving image's world, RAS mm, to the fixed one's; ANTs maps points the other way."""
    corners = np.vstack([np.zeros(3), 100 * np.eye(3)])
    to_moving = np.array([transform.apply_to_point(tuple(point)) for point in corners])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = (to_moving[1:] - to_moving[0]).T / 100, to_moving[0]
    return np.asarray(RAS_OF_LPS @ np.linalg.inv(matrix) @ RAS_OF_LPS)


if __name__ == "__main__":
    main()
