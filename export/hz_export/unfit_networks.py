"""Networks that are not published unless somebody asks for it: they do the opposite of what they are for.

An age network that answers nearly the same for everybody, and a harmonizer that moves the scans of its own
target site. Both are judged by what their training kept of held-out people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hz_export.export_options import ExportOptions
from hz_export.to_onnx import Checkpoint
from hz_runtime.errors import HzError
from hz_train.cyclegan_training import IDENTITY

LEAST_SPREAD = 0.1  # of the ages' own; an answer that follows age with a correlation of 0.1 varies so little
FEWEST = 8  # held-out scans; how far the answers to fewer vary says little
MOST_CHANGE = 1.0  # percent of the target scans' grey to white ratio, in the mean: what a reader cannot see


def unfit(
    checkpoints: Mapping[str, Checkpoint], options: ExportOptions, say: Callable[[str], None]
) -> tuple[str, ...]:
    """What is to be said of unfit networks that are published on purpose, a sentence each.

    checkpoints : by role.  say : told each of them. Raises HzError for one that nobody asked for.
    """
    age, harmonizer = checkpoints.get("age"), checkpoints.get("harmonizer")
    faults = (
        (
            constant_age(age.file, age.meta) if age else "",
            options.allow_constant_age,
            "Train it longer, or on more people of more ages",
            "--allow-constant-age",
        ),
        (
            moved_target(harmonizer.file, harmonizer.meta) if harmonizer else "",
            options.allow_moved_target,
            "Train it longer, or with more scans that meet no simulated scanner (hz-train --unchanged)",
            "--allow-moved-target",
        ),
    )
    said = []
    for found, allowed, what_to_do, option in faults:
        if not found:
            continue
        if not allowed:
            raise HzError(
                f"{found}.",
                f"Not published. {what_to_do}; to publish it as it is, on purpose:  hz-export {option}",
            )
        say(found)
        said.append(f"{found}.")
    return tuple(said)


def constant_age(file: str, meta: Mapping[str, Any]) -> str:
    """That an age network answers nearly the same for everybody, in words; "" where it does not, or where the
    checkpoint keeps too few held-out predictions to say, or those of people of one single age.

    file : the checkpoint's name.  meta : its JSON.
    Answers and ages are compared within each fold: networks of several folds that all answer the mean age of
    their own training people differ from each other.
    """
    held_out = meta.get("held_out_predictions") or {"age": [], "raw": []}
    years = np.array([held_out["raw"], held_out["age"]], np.float64)  # (2, n)
    if years.shape[1] < FEWEST or not np.isfinite(years).all():
        return ""
    fold_of = {who: k for k, fold in enumerate(held_out.get("folds", [])) for who in fold["subjects"]}
    folds = np.array([fold_of.get(who, -1) for who in held_out.get("subjects", [])] or [-1] * years.shape[1])
    for k in np.unique(folds):
        years[:, folds == k] -= years[:, folds == k].mean(axis=1, keepdims=True)
    answers, ages = np.sqrt(np.square(years).mean(axis=1))
    if answers >= LEAST_SPREAD * ages:
        return ""
    return (
        f"{file} answers nearly the same age for everybody: over {years.shape[1]} held-out scans its answers "
        f"vary by {answers:.2f} years (one SD), the people's ages by {ages:.2f}"
    )


def moved_target(file: str, meta: Mapping[str, Any]) -> str:
    """That a harmonizer changes the scans of its own target site, in words; "" where it does not, or where
    the checkpoint does not say it of enough held-out scans.

    file : the checkpoint's name.  meta : its JSON.
    """
    change = (meta.get("metrics") or {}).get(IDENTITY) or {}
    if change.get("n", 0) < FEWEST or abs(change["value"]) <= MOST_CHANGE:
        return ""
    return (
        f"{file} changes the ratio of grey to white matter of its own target site, {meta.get('target')}, by "
        f"{change['value']:.1f} % in the mean of {change['n']} held-out scans"
    )
