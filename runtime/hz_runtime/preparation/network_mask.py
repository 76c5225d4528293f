"""Which voxels are brain, by a bundle's two networks: one finds the brain, the other outlines it.

deepbet's method (Fisch et al. 2024), step by step as its own package has it: the head on a coarse grid ->
the brain's box and a margin -> that box on a fine grid -> probability of brain -> its largest part, without
holes. Weights are not part of hz: `hz-export brain-mask` converts them from the package that ships them.

Voxels are picked by nearest neighbour and the scan's spacing is not looked at, because the networks were
trained so. One head at a time is in the networks: at 256^3 onnxruntime takes 640 MB for it, given back
after every head.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hz_runtime.backends.registry import open_backend
from hz_runtime.bundle.manifest import ModelEntry
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import BundleError, NoBrain, UsageError
from hz_runtime.io.user_folders import user_folder
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.morphology import filled, largest

if TYPE_CHECKING:
    from hz_runtime.bundle.trust import Trust

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

ROLE = "brain-mask"
METHOD = "deepbet"  # in the provenance of a network that was trained on what this module feeds it
COMMAND = "hz-export brain-mask"
QUANTILES = 0.005, 0.995  # of the coarse grid: what becomes 0 and 1
MEAN, DEVIATION = 0.449, 0.226  # that the networks' input has
MARGIN = 0.1  # of the box's size, on every side
LEAST_SHADOW = 0.02  # share of a plane that must be brain for the box to hold it
PROBABLE = 0.5
# Elsewhere the sums of an instance norm over 128^3 voxels come out otherwise: OpenVINO strays by 0.28 in
# probability at the brain's edge, Dice 0.9999.
ENGINE = "onnxruntime"


@dataclass(frozen=True, eq=False)
class MaskNetwork:
    """Finds the brain of a whole head; safe from several threads, which take turns.

    name : of the bundle.  sha256 : of its two networks, what a result depends on.
    finder, outliner : ONNX bytes.  grids : their (D, H, W).  threads : CPU threads of a run.
    """

    name: str
    sha256: tuple[str, str]
    finder: bytes
    outliner: bytes
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    threads: int = 1
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, volume: Volume) -> Mask:
        """The brain, (I, J, K) bool in the order of `volume.data`; raises as `mask`."""
        return self.mask(volume.data)

    def mask(self, data: F32) -> Mask:
        """The brain of a whole head, axes in RAS order: (I, J, K) float32 -> (I, J, K) bool.

        Raises NoBrain where there is none in it, BackendError where onnxruntime does not run the networks.
        """
        coarse, fine = self.grids
        small = nearest(data, coarse)
        low, high = (float(q) for q in np.quantile(small, QUANTILES))
        if not high > low:
            raise NoBrain("this scan is constant, so that no brain is in it.", "Look at the scan.")
        with self._turn:
            found = largest(self._run(self.finder, normalised(small, low, high)) > PROBABLE)
            box = box_around(found, data.shape)
            outline = self._run(self.outliner, normalised(nearest(data[box], fine), low, high))
        inside = largest(nearest(outline, data[box].shape) > PROBABLE)
        if not inside.any():
            raise _no_brain()
        mask = np.zeros(data.shape, np.bool_, order="F")
        mask[box] = filled(inside)
        return mask

    def _run(self, model: bytes, grid: F32) -> F32:
        """Probability of brain on the grid; the network is opened for it and closed again."""
        backend = open_backend(ENGINE, model, device="cpu", threads=self.threads, where=self.name)
        try:
            (answer,) = backend.run(grid[None, None]).values()
            probability: F32 = answer[0, 0]
            return probability
        finally:
            backend.close()


def mask_network(bundle: Bundle, threads: int = 1) -> MaskNetwork | None:
    """The mask network of a verified bundle; None where it has none.

    Raises BundleError where its brain-mask models are no pair that this module knows how to feed.
    """
    entries = sorted((e for e in bundle.models if e.role == ROLE), key=_size)
    if not entries:
        return None
    methods = {entry.provenance.get("method") for entry in entries}
    if len(entries) != 2 or methods != {METHOD}:
        raise BundleError(
            f"{bundle.path.name}: its {len(entries)} {ROLE} models are not {METHOD}'s two.",
            f"Convert them again:  {COMMAND}",
        )
    finder, outliner = entries
    return MaskNetwork(
        bundle.path.name,
        (finder.sha256, outliner.sha256),
        bundle.read(finder),
        bundle.read(outliner),
        (_grid(finder), _grid(outliner)),
        threads,
    )


def find_mask_network(
    named: Path | None = None,
    bundle: Bundle | None = None,
    threads: int = 1,
    *,
    needed: bool = False,
    trust: Trust | None = None,
) -> MaskNetwork | None:
    """The network of the bundle `named`, else of the bundle in use, else of the one in `default_place`.

    needed : raise UsageError, which names the command that makes one, where there is none; else the answer
        is None, also where onnxruntime is not installed.
    trust : keys that a bundle's signature is held to; `bundle` has been opened already.
    Raises UsageError where `named` has none, BundleError where a bundle is damaged or refused.
    """
    if named is not None:
        if network := mask_network(load_bundle(named, trust), threads):
            return network
        raise UsageError(f"{named.name} has no {ROLE} model.", f"Make a bundle that has:  {COMMAND}")
    if not needed and find_spec(ENGINE) is None:
        return None
    place = default_place()
    own = load_bundle(place, trust) if place is not None and place.is_dir() else None
    for candidate in (bundle, own):
        if candidate is not None and (network := mask_network(candidate, threads)):
            return network
    if needed:
        raise UsageError(
            "no brain-mask network is here: hz ships none, and converts deepbet's.", f"Run once:  {COMMAND}"
        )
    return None


def default_place() -> Path | None:
    """Where its command writes: $HZ_BRAIN_MASK, else hz/brain-mask.hz in the user's data folder.

    None for a user who has none.
    """
    if given := os.environ.get("HZ_BRAIN_MASK"):
        return Path(given)
    data = user_folder("XDG_DATA_HOME", ".local", "share")
    return data and data / "hz" / "brain-mask.hz"


def nearest(data: F32, shape: Sequence[int]) -> F32:
    """(I, J, K) resized to `shape` by the voxel under each new voxel's centre; torch's "nearest-exact"."""
    picks = []
    for size, wanted in zip(data.shape, shape, strict=True):
        at = (np.arange(wanted) + 0.5) * np.float32(size / wanted)  # torch's scale is a float32
        picks.append(np.minimum(np.floor(at.astype(np.float32)).astype(np.intp), size - 1))
    return data[np.ix_(*picks)]


def box_around(found: Mask, shape: tuple[int, ...]) -> Box:
    """The box of a brain found on a coarse grid, with its margin, in voxels of the scan's `shape`.

    Raises NoBrain where too little was found.
    """
    parts = []
    for axis, size in enumerate(shape):
        others = tuple(k for k in range(3) if k != axis)
        planes = np.flatnonzero(found.mean(axis=others) > LEAST_SHADOW)
        if not planes.size:
            raise _no_brain()
        low, high = int(planes[0]), int(planes[-1]) + 1
        scale = size / found.shape[axis]
        centre = round((low + high) / 2 * scale)
        extent = round((high - low) * scale * (1 + 2 * MARGIN))
        parts.append(slice(max(0, int(centre - extent / 2)), min(size, int(centre + extent / 2))))
    return parts[0], parts[1], parts[2]


def normalised(grid: F32, low: float, high: float) -> F32:
    out = np.clip((grid - np.float32(low)) / np.float32(high - low), 0, 1)
    mean, deviation = out.mean(dtype=np.float64), out.std(dtype=np.float64, ddof=1)
    if not deviation > 0:
        raise _no_brain()
    out -= np.float32(mean)
    out *= np.float32(DEVIATION / deviation)
    out += np.float32(MEAN)
    return np.ascontiguousarray(out, np.float32)


def _grid(entry: ModelEntry) -> tuple[int, ...]:
    return tuple(n for n in entry.inputs[0].shape[2:] if isinstance(n, int))


def _size(entry: ModelEntry) -> int:
    return int(np.prod(_grid(entry)))


def _no_brain() -> NoBrain:
    return NoBrain(
        "the brain-mask network finds no brain in this scan.", "Look at the scan: is a head in it?"
    )
