"""What hz knows of a network that others published: whose it is, where its file is kept, how it is fed.

It holds no weights and reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from hz_export.imported.weight_file import WeightFile
from hz_runtime.model_space.recipe import Recipe

# The field of FSL's MNI152 template at 1 mm, of which all these networks read a window.
FSL_FIELD = Recipe(
    template_shape=(182, 218, 182), template_origin_mm=(-91.0, -126.0, -72.0), template_spacing_mm=1.0
)


@dataclass(frozen=True, eq=False)
class Published:
    """One network that can be imported.

    name : on the command line.  title : in words, on the model card.  role : "harmonizer" or "age".
    licence : SPDX identifier, NOASSERTION where none is stated; non_commercial where it forbids use for
        profit, or says nothing.
    source : where the authors keep their files.  files : their names there, several of an ensemble.
    sha256 : of each as the authors publish it; empty where they do not.  form : how the files are stored.
    unused : names of tensors that a file may hold and that have no part in an answer.
    build : one file's network, every other tensor of it in it; raises UsageError naming what does not fit.
    combine : of those networks the one of the bundle: (N, 1, D, H, W) float32 in [0, 1], or slices, to the
        same or to ages (N, 1). Whatever units the authors' network wants is arithmetic in here.
    recipe : how scans are prepared.  age_range : of the training people, years, as published.
    target : the site that a harmonizer maps to.  slice_wise : whether the network reads slices.
    preparation : the authors' own steps, one line each, with where they are written.
    remarks : what a user has to know besides, for the model card.
    centres : of an age network whose last layer reads probabilities of ages: these ages, years.
    plain : of the built networks the one of the bundle as its authors run it, whole volumes at a time, where
        `combine` computes the same in another order; what is timed beside it.
    """

    name: str
    title: str
    role: Literal["harmonizer", "age"]
    authors: str
    paper: str
    licence: str
    non_commercial: bool
    source: str
    files: tuple[str, ...]
    form: Literal["keras", "torch"]
    build: Callable[[WeightFile], nn.Module]
    combine: Callable[[Sequence[nn.Module]], nn.Module]
    recipe: Recipe
    preparation: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    age_range: tuple[float, float] | None = None
    target: str | None = None
    slice_wise: bool = False
    centres: tuple[float, ...] = ()
    plain: Callable[[Sequence[nn.Module]], nn.Module] | None = None
