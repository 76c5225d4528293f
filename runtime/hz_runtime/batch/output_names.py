"""How a scan's files are named in the output folder. Nothing is read or written here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hz_runtime.batch.inputs import InputScan
from hz_runtime.model_space.recipe import Recipe

Grid = Literal["native", "model"]
Space = Literal["native", "model", "both", "none"]


@dataclass(frozen=True)
class OutputNames:
    """Names of what a run writes of a scan, relative to the output folder.

    space : the scan's own grid, the network's, or both; none where nothing is harmonized.
    """

    recipe: Recipe
    space: Space

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that a volume is written on, the one with the commit record first."""
        if self.space == "none":
            return ()
        return ("native", "model") if self.space == "both" else (self.space,)

    def volume(self, scan: InputScan, grid: Grid) -> str:
        return scan.name + suffix(grid, self.recipe)

    def sidecar(self, scan: InputScan, grid: Grid) -> str:
        return self.volume(scan, grid).removesuffix(".nii.gz") + ".json"

    def record(self, scan: InputScan) -> str:
        """The sidecar that holds the commit record; without volumes, a file of its own."""
        return self.sidecar(scan, self.grids[0]) if self.grids else f"{scan.name}_desc-predicted_T1w.json"

    def figure(self, scan: InputScan) -> str:
        return f"figures/{scan.name}.json"

    def volumes(self, scan: InputScan) -> tuple[str, ...]:
        return tuple(self.volume(scan, grid) for grid in self.grids)

    def listed(self, scan: InputScan) -> tuple[str, ...]:
        """Every volume with its sidecar, as results list them."""
        if not self.grids:
            return (self.record(scan),)
        return tuple(
            name for grid in self.grids for name in (self.volume(scan, grid), self.sidecar(scan, grid))
        )


def suffix(grid: Grid, recipe: Recipe) -> str:
    """What follows a scan's name in a volume's, e.g. "_space-MNI152_res-64_desc-harmonized_T1w.nii.gz".

    The resolution is the grid's: 64 for 64 x 64 x 64, 160x192x160 where the axes differ.
    """
    if grid == "native":
        return "_desc-harmonized_T1w.nii.gz"
    sizes = list(map(str, recipe.grid_shape))
    res = sizes[0] if len(set(sizes)) == 1 else "x".join(sizes)
    return f"_space-{recipe.template}_res-{res}_desc-harmonized_T1w.nii.gz"
