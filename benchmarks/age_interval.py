"""What the prediction interval of an age network really covers.

    python benchmarks/age_interval.py simulated COHORT/participants.tsv --site SITE
    python benchmarks/age_interval.py real AGE.json COHORT/participants.tsv [--bundle NAME.hz]

simulated: trains a small age network on some subjects of one site, with the cross-validation that the
interval is made of, exports it, and counts how many of the other subjects of this site and of other sites
lie in the interval that the bundle gives them.
real: splits the held-out predictions of a checkpoint (its JSON) into halves many times, calibrates on one
half and counts in the other; then the scans of the cohort's other sites, which the age network never saw, as
they are and harmonized by the bundle, in the interval that the bundle gives them.
Prints JSON. Every coverage has its 95 % binomial interval (Wilson 1927) over subjects.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine

F64 = NDArray[np.float64]
DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    of = kinds.add_parser("simulated")
    of.add_argument("cohort", type=Path)
    of.add_argument("--site", required=True)
    of.add_argument("--subjects", type=int, default=200, help="to train and to calibrate on")
    of.add_argument("--grid", type=int, default=32)
    of.add_argument("--width", type=int, default=16)
    of.add_argument("--epochs", type=int, default=16)
    of.add_argument("--folds", type=int, default=4, help="0: hold out half of the subjects once")
    of.add_argument("--seed", type=int, default=1)
    of = kinds.add_parser("real")
    of.add_argument("checkpoint", type=Path, help="JSON of an age checkpoint")
    of.add_argument("cohort", type=Path)
    of.add_argument("--bundle", type=Path, help="[default: the reference bundle]")
    given = parser.parse_args()
    result = simulated(given) if given.kind == "simulated" else real(given)
    print(json.dumps({"kind": given.kind, **result, "machine": describe_machine()}, indent=2))


def simulated(given: argparse.Namespace) -> dict[str, Any]:
    from hz_export.assemble import export_bundle
    from hz_export.export_options import ExportOptions
    from hz_runtime.backends.fallback import choose
    from hz_runtime.inference.predictors import AgePredictor
    from hz_runtime.model_space.recipe import Recipe
    from hz_train.age_task import AgeSettings
    from hz_train.age_training import AgePreset, train_age
    from hz_train.cohort import read_participants
    from hz_train.fit import Schedule

    cohort = read_participants(given.cohort).with_age()
    own = cohort.at([given.site])
    order = np.random.default_rng(given.seed).permutation(own.subjects)
    training = own.of(order[: given.subjects])
    unseen = cohort.of(set(cohort.subjects) - set(training.subjects))
    milestones = (max(1, round(0.75 * given.epochs)),)
    schedule = Schedule(
        given.epochs, 4, 3e-4, milestones, betas=(0.9, 0.999), weight_decay=1e-4,
        seed=given.seed, picture_every=0,
    )  # fmt: skip
    settings = AgeSettings(width=given.width)
    preset = AgePreset(schedule, settings, held_out=0.5, folds=given.folds, controls_only=False)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        recipe = Recipe(grid_shape=(given.grid,) * 3)
        checkpoint = train_age(training, [], Path(folder) / "age", preset, recipe=recipe)
        bundle = export_bundle(
            [checkpoint], Path(folder) / "age.hz", ExportOptions(check_parity=False), said.append
        )
        backend, _ = choose(bundle, "age", "onnxruntime-cpu")
        predictor = AgePredictor(backend, bundle.age_bias, recipe, bundle.age_interval)
        sites = {
            site: covered(bundle, unseen.at([site]), predictor)
            for site in sorted(unseen.sites, key=lambda name: name != given.site)
        }
    assert bundle.age_interval is not None, said
    return {
        "trained_and_calibrated_on": {"site": given.site, "subjects": len(training.subjects)},
        "network": {"grid": given.grid, "width": given.width, "epochs": given.epochs, "seed": given.seed},
        "interval": asdict(bundle.age_interval),
        "mae_years": bundle.metrics["age"]["mae_years"],
        "age_bias": None if bundle.age_bias is None else asdict(bundle.age_bias),
        "unseen_subjects_by_site": sites,
    }


def covered(bundle: Any, cohort: Any, predictor: Any) -> dict[str, Any]:
    """Coverage of raw and corrected ages of the cohort's scans, one a subject, by the bundle's interval."""
    from hz_runtime.model_space.recipe import Recipe
    from hz_train.datasets import load

    first = type(cohort)(tuple({scan.subject: scan for scan in reversed(cohort.scans)}.values()))
    prepared = load(first, Recipe.from_dict(dict(bundle.recipe)))
    ages = np.array([scan.age for scan in prepared.scans], np.float64)
    found = predictor(prepared.grids)
    rows = {"raw": inside(ages, bundle.age_interval.raw.limits(found.raw))}
    if bundle.age_bias is not None and found.interval is not None:
        rows["corrected"] = inside(ages, found.interval)
    errors = {"mae_raw": float(np.abs(found.raw - ages).mean())}
    return {**errors, **{name: counted(row, ages) for name, row in rows.items()}}


def inside(ages: F64, limits: F64) -> NDArray[np.bool_]:
    """ages (N,), limits (N, 2)."""
    return (limits[:, 0] <= ages) & (ages <= limits[:, 1])


def counted(row: NDArray[np.bool_], ages: F64) -> dict[str, Any]:
    """Coverage overall and by thirds of age. row : (subjects,)."""
    from hz_calibration.age_interval import wilson

    if not len(row):
        return {"n": 0}
    share = float(row.mean())
    thirds = np.array_split(np.argsort(ages, kind="stable"), 3)
    by_age = [
        {"ages": [float(ages[t].min()), float(ages[t].max())], "n": len(t), "coverage": float(row[t].mean())}
        for t in thirds
        if len(t)
    ]
    return {"coverage": share, "ci95": wilson(share, len(row)), "n": len(row), "by_age": by_age}


def real(given: argparse.Namespace) -> dict[str, Any]:
    from hz_calibration.age_interval import from_held_out

    meta = json.loads(given.checkpoint.read_text())
    kept = meta["held_out_predictions"]
    interval = from_held_out(kept, meta["metrics"]["mae_years"]["n"], correct=False)
    assert not isinstance(interval, str), interval
    return {
        "interval": asdict(interval),
        "repeated_halves": halves(np.array(kept["age"]), np.array(kept["raw"])),
        "other_sites": other_sites(given, meta),
    }


def halves(ages: F64, raw: F64) -> dict[str, Any]:
    """Calibrated on a random half of the subjects, counted in the other half; one prediction a subject."""
    from hz_calibration.age_interval import LEVEL, conformal_quantile

    errors, shares, widths = np.abs(ages - raw), [], []
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(errors))
        used, left = np.array_split(order, 2)
        widths.append(conformal_quantile(errors[used], used, LEVEL))
        shares.append(float((errors[left] <= widths[-1]).mean()))
    return {
        "draws": DRAWS,
        "coverage_mean": float(np.mean(shares)),
        "coverage_5_to_95_percent": np.percentile(shares, [5, 95]).tolist(),
        "half_width_5_to_95_percent": np.percentile(widths, [5, 95]).tolist(),
        "n": [len(errors) - len(errors) // 2, len(errors) // 2],
    }


def other_sites(given: argparse.Namespace, meta: dict[str, Any]) -> dict[str, Any]:
    """Coverage at sites that the age network was not trained on, within the ages that it was trained on."""
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.inference.open import open_networks
    from hz_runtime.model_space.recipe import Recipe
    from hz_train.cohort import Cohort, read_participants
    from hz_train.datasets import load

    bundle = load_bundle(given.bundle)
    youngest, oldest = meta["cohort"]["training"]["age_range"]
    networks = open_networks(bundle)
    harmonizer, predictor = networks.harmonizer, networks.age_predictor
    cohort = read_participants(given.cohort).with_age()
    result = {}
    for site in sorted(set(cohort.sites) - set(meta["sources"])):
        first = {scan.subject: scan for scan in reversed(cohort.at([site]).scans)}.values()
        fitting = Cohort(tuple(scan for scan in first if youngest <= scan.age <= oldest))  # type: ignore[operator]
        if not fitting.scans:
            continue
        prepared = load(fitting, Recipe.from_dict(dict(bundle.recipe)))
        ages = np.array([scan.age for scan in prepared.scans], np.float64)
        said: dict[str, Any] = {
            "trained_the_harmonizer": site in bundle.entry(harmonizer.backend.sha256).sources
        }
        for name, grids in (
            ("as_they_are", prepared.grids),
            ("harmonized", np.stack([harmonizer(g) for g in prepared.grids])),
        ):
            found = [predictor(grid) for grid in grids]
            off = np.concatenate([one.corrected for one in found]) - ages
            row = inside(ages, np.concatenate([one.interval for one in found]))
            errors = {"mae": float(np.abs(off).mean()), "mean_error": float(off.mean())}
            said[name] = {**errors, **counted(row, ages)}
        result[site] = said
    return result


if __name__ == "__main__":
    main()
