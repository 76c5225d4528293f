"""A scan on its way, one type for each stage that it has been through: read, prepared, inferred, drawn.

Each holds what the stages after it need, and no more: whoever takes a scan on to the next stage lets go of
the one that it came as, so that big arrays end with the last stage that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.batch.brain import Brain
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.output_names import Grid
from hz_runtime.io.volume import Geometry, Volume
from hz_runtime.model_space.image_quality import Quality
from hz_runtime.model_space.recipe import ModelInput
from hz_runtime.results.prediction import Prediction

F32 = NDArray[np.float32]


@dataclass(eq=False)
class Ticket:
    """What goes with a scan through all stages, and stays when it fails. Nothing large.

    index : its place in the run.  age : known age of its person, years, or None.
    voxels : what the memory bound counts it as while it is on its way.
    seconds : wall time by stage and step, as `ScanResult.seconds`.
    gates : verdicts of the gates that a raw head has passed.
    quality : of its brain, once that is there.
    """

    index: int
    scan: InputScan
    age: float | None = None
    voxels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()
    quality: tuple[Quality, ...] = ()


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan as its file holds it.  brain : the same and what is made of it, where that is done already."""

    ticket: Ticket
    volume: Volume
    brain: Brain | None = None


@dataclass(frozen=True, eq=False)
class OnGrid:
    """A scan on the network's grid, and how it came there.

    preparation : of a raw head, what its sidecar says about it; None for a brain.
    geometry : of a raw head, where the grid lies in the template's world; None for a brain, whose grid lies
        in its own.
    """

    model_input: ModelInput
    preparation: Mapping[str, Any] | None = None
    geometry: Geometry | None = None


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan that the networks can take.  volume : its brain, on its own grid."""

    ticket: Ticket
    volume: Volume
    on_grid: OnGrid


@dataclass(frozen=True, eq=False)
class InferredScan:
    """A scan that the networks have answered.

    harmonized : (D, H, W) float32 in [0, 1], on the network's grid.
    engine : what ran the network, as sidecars say it; a run may change engines on its way.
    no_age : why the scan gets no age; empty where it does.
    """

    prepared: PreparedScan
    harmonized: F32
    prediction: Prediction
    engine: Mapping[str, str]
    no_age: tuple[str, ...] = ()

    @property
    def ticket(self) -> Ticket:
        return self.prepared.ticket


@dataclass(frozen=True, eq=False)
class DrawnScan:
    """What there is to write of a scan; its own voxels are no longer here.

    volumes : by grid, float32 in [0, 1], and where its voxels lie.
    figure : gives the bytes of its file, or None; once.
    input_sha256 : of the scan's file.
    """

    ticket: Ticket
    on_grid: OnGrid
    prediction: Prediction
    engine: Mapping[str, str]
    volumes: Mapping[Grid, tuple[F32, Geometry]]
    figure: Callable[[], bytes | None]
    input_sha256: str
    no_age: tuple[str, ...] = ()
