"""Small made-up heads as files, for tests that run whole batches: 50 x 60 x 50 voxels of 4 mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hz_runtime.io.volume import Geometry, write_volume

SHAPE = (50, 60, 50)
SPACING = 4.0
CENTRE = (0.0, -21.0, 11.0)  # where the default recipe expects a brain, mm


def small_head(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(data, affine): an ellipsoid with a brighter core whose size and noise depend on `seed`."""
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = np.array(CENTRE) - (np.array(SHAPE) - 1) / 2 * SPACING
    x, y, z = (
        (np.arange(n) - (n - 1) / 2) * SPACING / half for n, half in zip(SHAPE, (62, 80, 60), strict=True)
    )
    radius = np.sqrt(x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2)
    rng = np.random.default_rng(seed)
    bright = 0.5 + 0.4 * (radius < 0.55 + 0.02 * (seed % 7)) + 0.05 * rng.random(SHAPE)
    return np.asfortranarray((radius < 1) * bright * 900, dtype=np.float32), affine


def write_scan(path: Path, seed: int = 0) -> Path:
    """A head as a file; the folder is made."""
    data, affine = small_head(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, data, Geometry.from_affine(SHAPE, affine), dtype="int16")
    return path


def write_scans(folder: Path, count: int) -> list[Path]:
    """`count` different heads, sub-01_T1w.nii.gz and so on."""
    return [write_scan(folder / f"sub-{n:02}_T1w.nii.gz", n) for n in range(1, count + 1)]


def results(out: Path) -> dict[str, bytes]:
    """Every file of an output folder that must not differ between runs, by relative name."""
    own = {"run.json", "report.html", "hz-run.log", ".hz.lock"}  # these tell of one run: times
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name not in own
    }
