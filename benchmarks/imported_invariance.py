"""How far an age moves when the same raw head comes in another scale, voxel size or pose.

    python benchmarks/imported_invariance.py BUNDLE.hz HEAD HEAD... [--threads 2]

The first HEAD is taken as it is, multiplied by .01 and 10,000, on voxels of .5, .8 and 1.3 mm, and turned by
20 degrees about each axis; all HEADs say how much ages differ between people. All goes through hz-run
--prepare. Wanted: within 1 year, or, of a bundle with random weights, within 1 % of the spread over people.

Other voxels and turned ones take an interpolation, which blurs: such a form is another, softer scan. Beside
them, and apart from what is wanted, are the head turned by its header alone, whose voxels stay as they are,
and the head turned and turned back, which lies where it did and has been interpolated twice: what blur does.

Prints JSON: the age of every form, its distance from that of the head as it is, forms that were refused (with
which nothing counts as within), the same of the forms beside them, the SD over people, machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from machine import describe_machine
from raw_head import ROOMS, ROOT

sys.path[:0] = [str(ROOT / room) for room in ROOMS]
DEGREES = 20.0
YEARS, SHARE = 1.0, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("heads", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        forms = written(given.heads[0], Path(work))
        beside = written_beside(given.heads[0], Path(work))
        paths = [*forms.values(), *beside.values(), *given.heads]
        ages = predicted(given.bundle, paths, Path(work) / "out", given.threads)
    people = [age for age in ages[len(forms) + len(beside) :] if age is not None]
    spread = float(np.std(people, ddof=1)) if len(people) > 1 else None
    found = dict(zip([*forms, *beside], ages, strict=False))
    usual = next(iter(forms))
    result = {
        **compared({name: found[name] for name in forms}, spread),
        "beside": compared({name: found[name] for name in (usual, *beside)}, spread)["forms"],
        "people": {"n": len(people), "sd_years": spread},
        "machine": describe_machine(),
    }
    print(json.dumps(result, indent=2))


def compared(ages: Mapping[str, float | None], spread: float | None) -> dict[str, Any]:
    """How far the age of every form lies from that of the first, and whether all are near enough.

    ages : by form, None of one that was refused, which is near to nothing.  spread : SD over people, years.
    """
    usual = next(iter(ages.values()))
    rows = {}
    for name, age in ages.items():
        apart = None if age is None or usual is None else abs(age - usual)
        rows[name] = {
            "age": age,
            "apart_years": apart,
            "share_of_spread": apart / spread if spread and apart is not None else None,
        }

    def within(key: str, most: float) -> bool:
        return all(row[key] is not None and row[key] <= most for row in rows.values())

    return {
        "forms": rows,
        "refused": [name for name, age in ages.items() if age is None],
        "within_a_year": within("apart_years", YEARS),
        "within_1_percent_of_the_spread": within("share_of_spread", SHARE),
    }


def written(head: Path, folder: Path) -> dict[str, Path]:
    """The head in every form, as float32 files: name -> path, as it is first."""
    image = nib.as_closest_canonical(nib.load(head))
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    forms: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "as it is": (data, affine),
        "times 0.01": (data * np.float32(0.01), affine),
        "times 10000": (data * np.float32(10_000), affine),
    }
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    for mm in (0.5, 0.8, 1.3):
        factors = sizes / mm
        turned = affine.copy()
        resized = ndimage.zoom(data, factors, order=1, grid_mode=True, mode="nearest")
        shares = np.array(data.shape) / np.array(resized.shape)
        turned[:3, :3] = affine[:3, :3] * shares
        turned[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((shares - 1) / 2)
        forms[f"{mm} mm"] = (resized, turned)
    for axis, name in enumerate(("x", "y", "z")):
        forms[f"turned {DEGREES:g} degrees about {name}"] = (rotated(data, sizes, axis), affine)
    return saved(forms, folder, "form")


def written_beside(head: Path, folder: Path) -> dict[str, Path]:
    """The head turned by its header alone, and turned and turned back, about each axis: name -> path."""
    image = nib.as_closest_canonical(nib.load(head))
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    forms: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for axis, name in enumerate(("x", "y", "z")):
        turn = np.eye(4)
        turn[:3, :3] = turned_by(DEGREES, axis)
        forms[f"header turned {DEGREES:g} degrees about {name}"] = (data, turn @ affine)
        back = rotated(rotated(data, sizes, axis), sizes, axis, -DEGREES)
        forms[f"turned {DEGREES:g} degrees about {name} and back"] = (back, affine)
    return saved(forms, folder, "beside")


def saved(forms: Mapping[str, tuple[np.ndarray, np.ndarray]], folder: Path, stem: str) -> dict[str, Path]:
    paths = {}
    for number, (name, (voxels, placed)) in enumerate(forms.items()):
        paths[name] = folder / f"{stem}{number}_T1w.nii.gz"
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), placed), paths[name])
    return paths


def rotated(data: np.ndarray, sizes: np.ndarray, axis: int, degrees: float = DEGREES) -> np.ndarray:
    """The head turned about the middle of its box, on the same grid, which may cut its shoulders."""
    matrix = np.diag(1 / sizes) @ turned_by(degrees, axis) @ np.diag(sizes)
    middle = (np.array(data.shape) - 1) / 2
    return ndimage.affine_transform(data, matrix, middle - matrix @ middle, order=1)


def turned_by(degrees: float, axis: int) -> np.ndarray:
    """(3, 3) rotation about an axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    one, other = (k for k in range(3) if k != axis)
    turn[[one, one, other, other], [one, other, one, other]] = c, -s, s, c
    return turn


def predicted(bundle: Path, paths: list[Path], out: Path, threads: int) -> list[float | None]:
    """The raw age of every head, in their order; None of one that was refused."""
    from hz_runtime.batch.run import run_batch
    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.preparation.preparer import Preparation

    options = RunOptions(preparation=Preparation(), threads=threads, report=False)
    report = run_batch(paths, load_bundle(bundle), out, options)
    for scan in report.scans:
        if scan.status == "failed":
            print(f"{scan.name}: {scan.reason}", file=sys.stderr)
    return [scan.prediction.age_raw if scan.prediction else None for scan in report.scans]


if __name__ == "__main__":
    main()
