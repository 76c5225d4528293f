"""Of whom an age network has learned: a bundle's "anatomy", from its checkpoint or from the scans themselves.

    python -m hz_export.anatomy_reference BUNDLE.hz SCAN...

gives it to a bundle of before hz measured it, from the scans that its age network was trained on, and says so
on the model card. The networks stay as they are; the bundle's id changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hz_export.model_card import after_anatomy
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import UsageError
from hz_runtime.inference.open import NetworkOptions, open_networks
from hz_runtime.io.volume import read_volume
from hz_runtime.model_space.anatomy import MEASURES, anatomy
from hz_runtime.model_space.recipe import to_model_space

CARD = "MODEL_CARD.md"
FEWEST = 8  # people; the range of fewer says little of the next


def anatomy_of(statistics: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The part of an age checkpoint's statistics that is anatomy; empty for one of before it was measured."""
    return {name: row for name, row in statistics.items() if name in MEASURES}


def measured(bundle: Bundle, scans: Sequence[Path]) -> list[dict[str, float]]:
    """`model_space.anatomy` of stripped scans, harmonized by the bundle's float32 network.

    Raises what `read_volume` and `to_model_space` raise.
    """
    found = []
    with open_networks(bundle, NetworkOptions(backend="onnxruntime-cpu")) as networks:
        recipe = networks.harmonizer.recipe
        for scan in scans:
            grid = to_model_space(read_volume(scan), recipe).grid
            found.append(anatomy(networks.harmonizer(grid), grid, recipe))
    return found


def with_anatomy(bundle: Bundle, measures: Sequence[Mapping[str, float]]) -> Bundle:
    """Write the bundle again, in its place, with the range of these measures.

    measures : of the age network's training scans. Raises UsageError for fewer than 8.
    """
    if len(measures) < FEWEST:
        raise UsageError(f"{len(measures)} scans are no training cohort.", f"Give all, {FEWEST} at least.")
    table: dict[str, dict[str, float]] = {}
    for name in MEASURES:
        values = np.array([row[name] for row in measures], np.float64)
        row = {"min": values.min(), "max": values.max(), "mean": values.mean(), "sd": values.std(ddof=1)}
        table[name] = {key: float(f"{value:.4g}") for key, value in row.items()}
    manifest: dict[str, Any] = {**bundle.raw, "anatomy": table}
    for key in ("id", "created", "files"):
        manifest.pop(key, None)
    files = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    if CARD in files:
        files[CARD] = after_anatomy(files[CARD].decode(), manifest).encode()
    return write_bundle(bundle.path, manifest, files, overwrite=True)


if __name__ == "__main__":
    path, *names = sys.argv[1:] or sys.exit(__doc__)
    given = load_bundle(path)
    print(with_anatomy(given, measured(given, [Path(name) for name in names])).id)
