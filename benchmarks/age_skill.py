"""What an age network can do beyond simpler ones, on the held-out people of its own cross-validation.

    python benchmarks/age_skill.py AGE.json COHORT/participants.tsv --site SITE [--harmonizer CHECKPOINT]

AGE.json: of the checkpoint, with the held-out predictions and the folds they come from, of which those of
SITE's people count, who were scanned once each. In the same folds two ridge regressions of that site answer,
each with the penalty of least leave-one-out error: on the voxels of the network's grid (harmonized where the
network's were), and, where the cohort has label maps, on the volumes of their regions. Prints JSON: errors
with 95 % bootstrap intervals over people, differences from the network paired by person, and mean errors by
third of age, raw and after the age-bias correction by a line that leaves the person out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="JSON of an age checkpoint")
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--site", required=True)
    parser.add_argument("--harmonizer", type=Path, help="checkpoint that the scans passed through")
    given = parser.parse_args()

    from hz_runtime.model_space.recipe import Recipe
    from hz_train.cohort import Cohort, pseudonym, read_participants
    from hz_train.datasets import load
    from hz_train.fit import Run, Schedule
    from hz_train.harmonizers import harmonized

    meta = json.loads(given.checkpoint.read_text())
    kept, recipe = meta["held_out_predictions"], Recipe.from_dict(meta["recipe"])
    scans = {pseudonym(s.subject): s for s in read_participants(given.cohort).at([given.site]).scans}
    rows = [k for k, name in enumerate(kept["subjects"]) if name in scans]
    people = [kept["subjects"][k] for k in rows]
    cohort = Cohort(tuple(scans[name] for name in people))
    ages, raw = np.array(kept["age"])[rows], np.array(kept["raw"])[rows]
    inputs = load(cohort, recipe)
    grids = inputs.grids
    if given.harmonizer:
        # What is said on the way is not part of the JSON.
        with Run.start(Schedule(), "auto") as run, contextlib.redirect_stdout(sys.stderr):
            grids = harmonized(grids, given.harmonizer, recipe, run)
    answers = {"network": raw}
    folds = [np.isin(people, fold["subjects"]) for fold in kept["folds"]]
    answers["ridge on voxels"] = on_voxels(grids, ages, people, folds)
    if all(scan.labels for scan in cohort.scans):
        answers["ridge on volumes of regions"] = on_volumes(cohort, ages, folds)
    print(
        json.dumps(
            {
                "scores": scored(ages, answers, people),
                "thirds": thirds(ages, raw, people, age_bias(kept)),
                "split": meta["split"],
                "n": len(ages),
                "machine": describe_machine(),
            },
            indent=2,
        )
    )


def on_voxels(grids: F32, ages: F64, people: list[str], folds: list[NDArray[np.bool_]]) -> F64:
    """(n,) years; grids : (n, D, H, W)."""
    from hz_train.age_ensemble import dual_ridge

    features = grids.reshape(len(grids), -1)
    found = np.full(len(ages), np.nan)
    for held in folds:
        mean = features[~held].mean(axis=0)
        those = [name for name, out in zip(people, held, strict=True) if not out]
        weights, _ = dual_ridge(features[~held] - mean, ages[~held], those)
        found[held] = ages[~held].mean() + (features[held] - mean).astype(np.float64) @ weights
    return found


def on_volumes(cohort: Any, ages: F64, folds: list[NDArray[np.bool_]]) -> F64:
    """(n,) years, from the volumes of all regions that the label maps name, mm3."""
    from hz_runtime.io.volume import read_volume
    from hz_train.studies.predictors import ridge

    maps = [read_volume(scan.labels) for scan in cohort.scans]
    counts = [np.bincount(np.rint(m.data).astype(np.int64).ravel()) for m in maps]
    table = np.zeros((len(counts), max(c.size for c in counts)))
    for row, count, labels in zip(table, counts, maps, strict=True):
        row[: count.size] = count * abs(np.linalg.det(labels.affine[:3, :3]))
    table = table[:, 1:]  # no background
    found = np.full(len(ages), np.nan)
    for held in folds:
        found[held] = ridge(table[~held], ages[~held])(table[held].astype(np.float32))
    return found


def scored(ages: F64, answers: dict[str, F64], people: list[str]) -> dict[str, Any]:
    """Mean absolute error, correlation and what the network's error is less, by answer."""
    from hz_train.scores import by_subject, correlation, mean

    def stated(estimate: Any) -> dict[str, Any]:
        return {"value": estimate[0], "ci95": estimate[1]}

    errors = {name: by_subject(np.abs(said - ages), people) for name, said in answers.items()}
    return {
        name: {
            "mae_years": stated(mean(errors[name])),
            "r": stated(correlation(said, ages, people)),
            **(
                {"more_than_network_years": stated(mean(error - errors["network"]))}
                if name != "network"
                else {}
            ),
        }
        for (name, said), error in zip(answers.items(), errors.values(), strict=True)
    }


def age_bias(kept: dict[str, Any]) -> Any:
    """By pseudonym: the correction by everybody else, of all sites."""
    from hz_calibration.age_bias import fit_age_bias

    ages, raw, people = (np.array(kept[key]) for key in ("age", "raw", "subjects"))
    return {
        name: fit_age_bias(ages[people != name], raw[people != name], "", subjects=people[people != name])
        for name in set(kept["subjects"])
    }


def thirds(ages: F64, raw: F64, people: list[str], bias: Any) -> list[dict[str, Any]]:
    """Mean error, answer minus age, in each third of age."""
    corrected = np.array([bias[who].corrected(one) for who, one in zip(people, raw, strict=True)])
    rows = []
    for part in np.array_split(np.argsort(ages, kind="stable"), 3):
        rows.append(
            {
                "ages": [float(ages[part].min()), float(ages[part].max())],
                "n": len(part),
                "mean_error_raw": float((raw - ages)[part].mean()),
                "mean_error_corrected": float((corrected - ages)[part].mean()),
                "mae_raw": float(np.abs(raw - ages)[part].mean()),
                "mae_corrected": float(np.abs(corrected - ages)[part].mean()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
