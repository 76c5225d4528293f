"""Preparation with its choices made: what hz-prepare and hz-run --prepare do to every scan of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume
from hz_runtime.model_space.recipe import ModelInput, Recipe, header_flags, to_model_space
from hz_runtime.preparation.given_mask import given_mask
from hz_runtime.preparation.n4 import niimath_program
from hz_runtime.preparation.registration import rotation_degrees, scales
from hz_runtime.preparation.steps import MaskChoice, PreparedHead, prepare_head
from hz_runtime.preparation.template import Template, mni152

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.preparation.network_mask import MaskNetwork

VERSION = 5  # raised when the same scan and choices would give another brain
CHOICES = ("auto", "none", "template", "network")
MNI_CODE = 4  # NIfTI xform code of MNI152 coordinates
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Preparation:
    """How the heads of a batch are prepared.

    dof : as for `steps.prepare_head`.
    brain_mask : so, too; or network, which is auto with a network that must be there; or the path of a bundle
    with such a network; or that of a mask on the grid of the batch's only scan.
    threads : of each scan's registration.  trust : keys that a mask network's bundle is held to.
    """

    dof: Literal[6, 12] = 6
    brain_mask: MaskChoice | Literal["network"] | Path = "auto"
    threads: int = 1
    trust: Trust | None = None

    @classmethod
    def asked(cls, dof: int | str, brain_mask: str, trust: Trust | None = None) -> Preparation:
        """From what a user wrote: 6 or 12; auto, none, template, network or a path. Raises UsageError."""
        if str(dof) not in ("6", "12"):
            raise UsageError(f"dof {dof} is neither 6 nor 12.", "6 keeps the brain's size, 12 does not.")
        mask: Any = brain_mask if brain_mask in CHOICES else Path(brain_mask)
        if isinstance(mask, Path) and not mask.exists():
            raise UsageError(
                f"--brain-mask {mask.name}: neither {', '.join(CHOICES)} nor a file.", "Check the name."
            )
        return cls(6 if str(dof) == "6" else 12, mask, trust=trust)

    @property
    def mask_file(self) -> Path | None:
        """The given mask."""
        return self.brain_mask if isinstance(self.brain_mask, Path) and self.brain_mask.is_file() else None

    def check(self, scans: int) -> None:
        """Raise UsageError where a mask of one scan meets several."""
        if self.mask_file is not None and scans != 1:
            raise UsageError(
                f"--brain-mask {self.mask_file.name} is the mask of one scan, and {scans} were given.",
                "Give the scans one by one, or skull-strip them first and pass  --brain-mask none",
            )

    def shown(self) -> dict[str, Any]:
        """For run.json: plain JSON types, no path."""
        return {
            "dof": self.dof,
            "brain_mask": self.brain_mask.name if isinstance(self.brain_mask, Path) else self.brain_mask,
        }


@dataclass(frozen=True, eq=False)
class Preparer:
    """Prepares one scan after another into the space of a template; safe from several threads.

    network : finds the brain where brain_mask leaves it open.
    Raises UsageError where niimath is not installed.
    """

    choices: Preparation
    template: Template = field(default_factory=mni152)
    network: MaskNetwork | None = None

    @classmethod
    def opened(cls, choices: Preparation, bundle: Bundle | None = None) -> Preparer:
        """With the brain-mask network that the choices ask for, or of `bundle` where they leave it open.

        Raises UsageError where one is asked for and not here, BundleError where a bundle is damaged.
        """
        asked, file = choices.brain_mask, choices.mask_file
        if file is not None or asked in ("none", "template"):
            return cls(choices)
        from hz_runtime.backends.registry import installed
        from hz_runtime.preparation.network_mask import find_mask_network

        if asked == "auto" and not installed():  # hz-prepare does without an engine
            return cls(choices)
        named = asked if isinstance(asked, Path) else None
        network = find_mask_network(
            named, bundle, choices.threads, needed=asked == "network", trust=choices.trust
        )
        return cls(choices, network=network)

    def __post_init__(self) -> None:
        niimath_program("Preparing heads")  # missing, it would fail every scan with the same line

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What shapes a result besides the scan, in plain JSON types: two that are equal give the same."""
        file = self.choices.mask_file
        return {
            "version": VERSION,
            "dof": self.choices.dof,
            "brain_mask": sha256_file(file) if file is not None else self._choice,
            "template": self.template.sha256,
            **({"network": list(self.network.sha256)} if self.network else {}),
        }

    @property
    def _choice(self) -> MaskChoice:
        """A network that was asked for is used as auto uses it: for what is not stripped yet."""
        asked = self.choices.brain_mask
        return "auto" if isinstance(asked, Path) or asked == "network" else asked

    def __call__(self, volume: Volume) -> PreparedHead:
        """Raises what `steps.prepare_head` and `given_mask` raise."""
        file = self.choices.mask_file
        return prepare_head(
            volume,
            self.template,
            dof=self.choices.dof,
            brain_mask=self._choice if file is None else given_mask(volume, file),
            threads=self.choices.threads,
            network=self.network,
        )

    @property
    def geometry(self) -> Geometry:
        """The template's grid."""
        return Geometry.from_affine(self.template.mask.shape, self.template.affine, code=MNI_CODE)

    def onto_grid(
        self, head: PreparedHead, recipe: Recipe, statistics: Mapping[str, Mapping[str, float]] | None
    ) -> ModelInput:
        """The brain on the network's grid, in the template's world.

        Where the registration put it is where it stays: the recipe moves only brains that nobody placed. A
        window of a finer template is filled from the scan's own voxels, not by way of the 2 mm of this one.
        Raises what `recipe.to_model_space` raises.
        """
        data, affine = head.template_brain, self.template.affine
        if recipe.crop_first:
            data, affine = head.brain, head.pose @ head.affine
        brain = Volume(data, affine, self.geometry, "", "float32")
        made = to_model_space(brain, replace(recipe, placement="none"), statistics)
        own = header_flags(brain)  # of the scan's voxels, which whoever read it flags
        return replace(made, flags=(*head.flags, *(flag for flag in made.flags if flag not in own)))

    def transform(self, head: PreparedHead) -> dict[str, Any]:
        """The pose and what it was found by, in plain JSON types."""
        return {
            "from": "T1w world coordinates, RAS mm",
            "to": f"{self.template.name} world coordinates, RAS mm",
            "matrix": [[float(f"{value:.9g}") for value in row] for row in head.pose],
            "dof": head.dof,
            "template": {"name": self.template.name, "sha256": self.template.sha256},
            "similarity": round(head.similarity, 4),
            "rotation_degrees": round(rotation_degrees(head.pose), 3),
            "scales": [round(scale, 4) for scale in scales(head.pose)],
            "engine": _engine(),
        }


def preparation_metadata(preparer: Preparer, head: PreparedHead) -> dict[str, Any]:
    """What a sidecar says about a scan's preparation, in plain JSON types."""
    return {
        "brain_mask": head.how,
        "dof": head.dof,
        "transform": preparer.transform(head),
        "gates": [verdict.to_dict() for verdict in head.verdicts],
    }


def step_seconds(head: PreparedHead) -> dict[str, float]:
    """Wall time by step, named as `results.STEPS`."""
    return {f"prepare.{step}": took for step, took in head.seconds.items()}


def _engine() -> str:
    try:
        return f"niimath {version('niimath')}"
    except PackageNotFoundError:  # put there by other means than an installer
        return "niimath"
