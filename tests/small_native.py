"""Small brains as files with known site effects, and harmonizers with known answers, at scans' own
resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hz_runtime.io.volume import Geometry, Volume, write_volume
from hz_train.cohort import Cohort, Scan
from hz_train.studies import native_scans
from small_study import SITES, SIZE, brain

MM = 5.0


def write_brains(folder: Path, per_site: Mapping[str, int], labels: bool = False) -> Cohort:
    """Brains of `small_study`, 5 mm, each with its site's tone curve and its scan's own gain."""
    affine = np.diag([MM, MM, MM, 1.0])
    scans = []
    for s, (site, count) in enumerate(per_site.items()):
        for n in range(count):
            maps, volume = brain(100 * s + n)
            data = np.asfortranarray((50 + 7 * n) * volume ** SITES[site], np.float32)
            geometry = Geometry.from_affine((SIZE,) * 3, affine)
            path, marked = folder / f"{site}-{n}.nii", folder / f"{site}-{n}_dseg.nii"
            write_volume(path, data, geometry, dtype="float32")
            write_volume(marked, np.asfortranarray(maps, np.float32), geometry, dtype="float32")
            scans.append(
                Scan(path, f"{site}/{n}", site, 30.0, "n/a", "control", labels=marked if labels else None)
            )
    return Cohort(tuple(scans))


def judged(
    written: Callable[[Volume], np.ndarray], known: frozenset[str] = frozenset({"oslo"})
) -> Callable[..., SimpleNamespace]:
    """Stands where `TrainedHarmonizer` is called. written : a volume to what is written of it."""
    return lambda *_: SimpleNamespace(
        name="judged", written=written, map_to=lambda _: None, known_sites=known, seen=frozenset()
    )


def leave_fields(patch: pytest.MonkeyPatch, *modules: object) -> None:
    """These brains have no receive field, and N4 takes a second each: only the median becomes 1."""

    def flat(sound: Volume) -> np.ndarray:
        inside = sound.data[native_scans.foreground(sound.data)]
        return np.asarray(sound.data / np.float32(np.median(inside)), np.float32)

    for module in modules:
        patch.setattr(module, "without_field", flat)
