"""Small made-up cohorts: heads whose bright core fades with age, every site with its own tone curve."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hz_runtime.io.volume import Geometry, write_volume
from small_scans import SHAPE, small_head

CURVES = {"oslo": 1.0, "rome": 0.6, "bonn": 1.5}  # exponent of each site's tone curve; oslo's is none
HEADER = ("file", "participant_id", "site", "age", "sex", "group")


def write_cohort(
    folder: Path,
    per_site: Mapping[str, int],
    groups: Sequence[str] = ("control",),
    ages: bool = True,
) -> Path:
    """`participants.tsv` and its scans, 4 mm in template space; groups take turns within a site."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for s, (site, count) in enumerate(per_site.items()):
        for n in range(count):
            seed = 100 * s + n
            name = f"{site}-{n:02}.nii.gz"
            age = 20 + 60 * n / max(count - 1, 1)
            data, affine = small_head(seed)
            bright = data / 900
            bright -= 0.2 * (bright > 0.8) * (age - 20) / 60
            curved = (np.clip(bright, 0, None) ** CURVES[site] * 900).astype(np.float32)
            write_volume(
                folder / name, np.asfortranarray(curved), Geometry.from_affine(SHAPE, affine), dtype="int16"
            )
            shown = f"{age:.1f}" if ages else "n/a"
            rows.append((name, f"{site}/{n:02}", site, shown, "n/a", groups[n % len(groups)]))
    table = folder / "participants.tsv"
    with open(table, "w", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([HEADER, *rows])
    return table
