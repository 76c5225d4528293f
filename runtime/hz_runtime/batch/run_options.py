"""How a run is to be done: the choices of hz-run, checked. What they lead to is in `run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.output_names import Space
from hz_runtime.errors import UsageError
from hz_runtime.io.volume import ReadLimits

if TYPE_CHECKING:
    from hz_runtime.backends.built_engines import Build
    from hz_runtime.preparation.preparer import Preparation


@dataclass(frozen=True)
class RunOptions:
    """How to run; None means: choose well here.

    space : "native" (default; the scan's own grid), "model" (the network's), or "both".
    to : site to harmonize to.  backend, require, build, cuda_graphs : as `NetworkOptions` takes them.
    precision : of the files to run, where the bundle holds such a file; else the fastest on the engine.
    dtype : of the written volumes; int16 keeps 1/32767 of the range.
    threads : CPU threads of the network (None: all); also scales the other stages.
    batch : scans a network call; None: 1 on a CPU, 4 on a GPU.
    max_voxels : bound on voxels in flight; None: that of four 256^3 scans, more with many threads.
    ages : known ages.  report : draw figures and write report.html, and group.html where scans compare.
    preparation : how raw heads become brains (extra `prep`); None: scans are skull-stripped already. With it
    DICOM is taken, too (extra `dicom`).
    audit : file that the run is accounted for in (`audit`); None for none.
    """

    space: Space = "native"
    to: str | None = None
    backend: str = "auto"
    require: str | None = None
    dtype: Literal["int16", "float32"] = "int16"
    threads: int | None = None
    batch: int | None = None
    overwrite: bool = False
    report: bool = True
    ages: KnownAges = field(default_factory=KnownAges)
    max_voxels: int | None = None
    limits: ReadLimits | None = None
    build: Build | None = None
    cuda_graphs: bool = False
    precision: str | None = None
    preparation: Preparation | None = None
    audit: Path | None = None

    def __post_init__(self) -> None:
        for name, values in {"space": ("native", "model", "both"), "dtype": ("int16", "float32")}.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} {getattr(self, name)!r} is not one of {', '.join(values)}.")
        for name in ("threads", "batch", "max_voxels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more.")
