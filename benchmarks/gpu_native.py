"""Native-resolution output of benchmarks/gpu_check.py: the guided filter's map where the network computes.

hz fits the map on the network's grid and applies it to the scan's own voxels on the CPU. Here the same is
done in torch on the device, beside it, and the two are compared. The scan is made up from a prepared volume,
at 1 mm on the same field of view, so that torch's interpolation and hz's read the same places.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from hz_export.bench import F32, OpenCandidate
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.guided_filter import EPS, RADIUS, native_harmonized
from hz_runtime.model_space.recipe import ModelInput, Recipe
from hz_runtime.model_space.resample import scaled_affine, upsampled_slabs

MILLIMETRE = (182, 218, 182)  # voxels of the template's field of view


def scan_of(grid: F32, recipe: Recipe) -> tuple[Volume, ModelInput]:
    """A scan of 1 mm and what the network gets of it.  grid : (D, H, W) float32 in [0, 1], prepared."""
    affine = scaled_affine(recipe.grid_shape, recipe.grid_affine, MILLIMETRE)
    fine = np.zeros(MILLIMETRE, np.float32, order="F")
    for part, (values,) in upsampled_slabs([grid], recipe.grid_affine, MILLIMETRE, affine):
        fine[:, :, part] = values
    fine[fine < 0.05] = 0  # air
    volume = Volume(fine, affine, Geometry.from_affine(MILLIMETRE, affine), "", "float32", None)
    return volume, ModelInput(grid, 0.0, 1.0, (0.0, 0.0, 0.0), recipe.grid_affine, {}, ())


def on_device(network: Any, grid: Any, scan: Any) -> Any:
    """Harmonized scan (1, 1, I, J, K), on the device of its inputs, by network, guided filter and its map."""
    import torch
    from torch.nn import functional

    def window_mean(x: Any) -> Any:
        return functional.avg_pool3d(functional.pad(x, (RADIUS,) * 6, "replicate"), 2 * RADIUS + 1, 1)

    target = network(grid).float().clamp(0, 1)
    mean_source, mean_target = window_mean(grid), window_mean(target)
    covariance = window_mean(grid * target) - mean_source * mean_target
    variance = window_mean(grid * grid) - mean_source * mean_source
    a = covariance / (variance.clamp(min=0) + EPS)
    b = mean_target - a * mean_source
    coefficients = torch.cat([window_mean(a), window_mean(b)], 1)
    fine = functional.interpolate(coefficients, scan.shape[2:], mode="trilinear", align_corners=False)
    return torch.where(scan > 0, (fine[:, :1] * scan + fine[:, 1:]).clamp(0, 1), torch.zeros_like(scan))


def native_output(
    network: Any,
    grid: F32,
    device: str,
    candidates: list[OpenCandidate],
    repeat: int,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Medians in ms of scan in, harmonized scan out, transfers counted, and how far both are apart.

    network : in torch, on the CPU.  grid : (D, H, W), prepared.  candidates : opened engines; each of hz's is
    followed by the filter on the CPU, as in hz-run.
    """
    import torch

    recipe = recipe or Recipe()
    volume, prepared = scan_of(grid, recipe)
    moved = network.to(device)

    def in_torch() -> F32:
        scan = torch.from_numpy(np.ascontiguousarray(volume.data))[None, None].to(device)
        with torch.inference_mode():
            found = on_device(moved, torch.from_numpy(grid)[None, None].to(device), scan)
        answer: F32 = found[0, 0].cpu().numpy()
        return answer

    ours = [c for c in candidates if not c.name.startswith("torch")]
    try:
        ways: dict[str, Callable[[], F32]] = {"torch, all on the device": in_torch}
        for candidate in ours:
            ways[f"{candidate.name}, filter on the CPU"] = lambda c=candidate: native_harmonized(
                volume, prepared, np.clip(c.answer(grid[None, None])[0, 0], 0, 1)
            )
        times = {name: _median_ms(way, repeat) for name, way in ways.items()}
        with torch.inference_mode():
            target = (
                moved(torch.from_numpy(grid)[None, None].to(device)).float().clamp(0, 1)[0, 0].cpu().numpy()
            )
        apart = np.abs(in_torch() - native_harmonized(volume, prepared, target))
    finally:
        network.to("cpu")
    return {
        "shape": list(MILLIMETRE),
        "median_ms": times,
        "device_against_cpu": {"mean": float(apart.mean()), "max": float(apart.max())},
    }


def _median_ms(way: Callable[[], F32], repeat: int) -> float:
    way()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        way()
        taken.append(1000 * (time.perf_counter() - start))
    return round(median(taken), 2)
