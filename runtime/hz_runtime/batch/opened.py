"""A bundle opened for a run: its networks, and what prepares raw heads. It knows of no folder and no scan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.base import describe, notes, on_gpu
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.stages import Stages
from hz_runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from hz_runtime.backends.fallback import Attempt
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.inference.open import Networks
    from hz_runtime.preparation.preparer import Preparer

GPU_BATCH = 4


@dataclass(frozen=True, eq=False)
class Opened:
    """Opened networks, for any number of folders that scans go to with the same options.

    preparer : of raw heads; None for brains.  batch : scans a network call.  threads : CPU threads.
    """

    bundle: Bundle
    options: RunOptions
    networks: Networks
    preparer: Preparer | None
    batch: int
    threads: int

    def stages(self, out: Path) -> Stages:
        """The steps of a scan whose results go to the folder `out`."""
        options, harmonizer = self.options, self.networks.harmonizer
        return Stages(
            bundle=self.bundle,
            recipe=harmonizer.recipe,
            harmonizer=harmonizer,
            predictor=self.networks.age_predictor,
            out=out,
            space=options.space if harmonizer.harmonizes else "none",
            dtype=options.dtype,
            figures=options.report and harmonizer.harmonizes,  # there would be nothing to compare
            overwrite=options.overwrite,
            options={
                "space": options.space if harmonizer.harmonizes else "none",
                "dtype": options.dtype,
                "to": harmonizer.entry.target,
                # An earlier run's results are taken over only where they were asked for in this precision.
                **({"precision": options.precision} if options.precision else {}),
                **({"prepare": dict(self.preparer.identity)} if self.preparer else {}),
            },
            batch=self.batch,
            limits=options.limits,
            diagnosis=self.networks.diagnosis_predictor,
            preparer=self.preparer,
        )

    def attempts(self) -> list[tuple[str, Attempt]]:
        """Every engine tried, and its line in log and run.json; with its role if there are several."""
        several = len(self.networks.attempts) > 1
        return [
            (f"{role}: {attempt}" if several else str(attempt), attempt)
            for role, attempts in self.networks.attempts.items()
            for attempt in attempts
        ]

    def notes(self) -> list[str]:
        """What the engines had to do to get through the run."""
        return [
            f"{role}: {note}" for role, backend in self.networks.backends.items() for note in notes(backend)
        ]

    def backend(self) -> dict[str, Any]:
        """What run.json says of what runs the harmonizer (or the first network), and how it was found."""
        return {
            **describe(self.networks.harmonizer.backend),
            "ladder": [line for line, _ in self.attempts()],
            "notes": self.notes(),
        }

    def close(self) -> None:
        """Give the engines' memory back; twice is fine."""
        self.networks.close()


def open_bundle(bundle: Bundle, options: RunOptions) -> Opened:
    """Open a bundle as these options want it. Raises BundleError, UsageError and BackendError."""
    from hz_runtime.inference.open import NetworkOptions, open_networks

    options = _with_dof(options, bundle)
    preparer = _preparer(options, bundle)
    networks = open_networks(
        bundle,
        NetworkOptions(
            to=options.to,
            backend=options.backend,
            require=options.require,
            precision=options.precision,
            threads=options.threads,
            build=options.build,
            cuda_graphs=options.cuda_graphs,
        ),
    )
    harmonizer = networks.harmonizer
    # The slices of one scan fill batches of their own: waiting for other scans would gain nothing.
    batch = options.batch or (GPU_BATCH if on_gpu(harmonizer.backend) and not harmonizer.slice_wise else 1)
    return Opened(bundle, options, networks, preparer, batch, options.threads or usable_cpus())


def _with_dof(options: RunOptions, bundle: Bundle) -> RunOptions:
    """With the degrees of freedom that the bundle's networks expect, where they do not leave that open."""
    dof = bundle.recipe.get("dof")
    if options.preparation is None or dof not in (6, 12):
        return options
    return replace(options, preparation=replace(options.preparation, dof=dof))


def _preparer(options: RunOptions, bundle: Bundle) -> Preparer | None:
    if options.preparation is None:
        return None
    from hz_runtime.preparation.preparer import Preparer

    return Preparer.opened(options.preparation, bundle)
