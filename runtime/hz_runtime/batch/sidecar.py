"""The JSON beside an output volume: BIDS derivative metadata. The commit record in it is a `Record`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hz_runtime.batch.output_names import Grid
from hz_runtime.batch.scan_stages import DrawnScan
from hz_runtime.model_space.intensity import ANCHORS
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.results.versions import hz_version

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend
    from hz_runtime.bundle.store import Bundle


def sidecar_metadata(
    drawn: DrawnScan, grid: Grid | None, bundle: Bundle, recipe: Recipe, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What made one output volume, and from what; without a grid, what made the predictions.

    options : those that shape a result; "to" is the site that scans are harmonized to.
    """
    model_input, preparation = drawn.on_grid.model_input, drawn.on_grid.preparation
    if grid is None:
        about = {"Description": "Predictions from a T1-weighted scan, which was not harmonized"}
    else:
        about = {"Description": f"T1-weighted scan harmonized to {options['to'] or 'the reference site'}"}
    return {
        **about,
        "Sources": [_plain(drawn.ticket.scan.path.name)],
        "SpatialReference": "orig" if grid == "native" else _grid_reference(drawn, recipe),
        **({} if grid == "native" else {"Resolution": "the voxel grid of the network"}),
        "Units": "arbitrary",
        "SkullStripped": True,
        "GeneratedBy": [
            {
                "Name": "hz",
                "Version": hz_version(),
                "Bundle": {"Name": bundle.name, "Id": bundle.id},
                "Engine": dict(drawn.engine),
                "Options": dict(options),
            }
        ],
        "SourceIntensityRange": [_digits(model_input.low), _digits(model_input.high)],
        "IntensityScale": f"of the source: {ANCHORS[recipe.intensity]}",
        "TranslationMm": [_digits(x) for x in model_input.shift_mm],
        "Features": {k: _digits(v) for k, v in sorted(model_input.features.items())},
        **({"Preparation": preparation} if preparation else {}),
    }


def engine_metadata(backend: Backend) -> dict[str, str]:
    """What a sidecar says about the engine that ran the harmonizer."""
    return {"Name": backend.name, "Provider": backend.provider, "Precision": backend.precision}


def sidecar_bytes(metadata: Mapping[str, Any]) -> bytes:
    return (json.dumps(metadata, indent=2, allow_nan=False) + "\n").encode()


def _grid_reference(drawn: DrawnScan, recipe: Recipe) -> str:
    """Where the model grid lies: of a raw head in the template's world; else its affine is in the scan's own
    world, so that it overlays the scan."""
    shape = " x ".join(map(str, recipe.grid_shape))
    field_of_view = f"{recipe.template} template field of view on {shape} voxels"
    if drawn.on_grid.geometry is not None:
        return f"{field_of_view}, in template coordinates (Preparation.transform leads there)"
    return f"{field_of_view}{', moved to the scan' if any(drawn.on_grid.model_input.shift_mm) else ''}"


def _plain(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digits(value: float) -> float:
    """Six significant digits: what a reader needs, and no noise of the last bit."""
    return float(f"{float(value):.6g}")
