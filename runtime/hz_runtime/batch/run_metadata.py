"""The object of run.json: how a run was done, how long it took, and what became of every scan."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.stages import Stages
from hz_runtime.bundle import age_calibration
from hz_runtime.model_space.outliers import outlier_metadata
from hz_runtime.results.run_report import count
from hz_runtime.results.scan_result import STAGES, ScanResult
from hz_runtime.results.versions import hz_version, versions

_HIDDEN = ("ages", "limits", "preparation", "audit")  # of the options: people, and paths
_KEYS = {"cuda_graphs": "graphs"}  # options whose key is another than their name


def run_metadata(
    stages: Stages,
    options: RunOptions,
    scans: Sequence[ScanResult],
    *,
    sites: Sequence[Mapping[str, str]],
    started: datetime,
    seconds: float,
    interrupted: bool,
    backend: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """What run.json holds.

    sites : of each of `scans`, {"site": name} or nothing.  seconds : wall time of the whole run.
    backend : what ran the harmonizer, and how it was found.  chosen : what the run made of options that
    leave it the choice; they stand in the place of these.
    """
    return {
        "schema": "1.0",
        "hz_version": hz_version(),
        "versions": versions(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "interrupted": interrupted,
        "bundle": {"name": stages.bundle.name, "id": stages.bundle.id},
        "backend": dict(backend),
        "options": {**options_metadata(options), **chosen},
        **age_metadata(stages),
        **diagnosis_metadata(stages),
        "outlier_score": outlier_metadata(stages.reference),
        "timings": timings(scans, seconds),
        "counts": count(scans),
        "scans": [{**scan.to_dict(), **site} for scan, site in zip(scans, sites, strict=True)],
    }


def options_metadata(options: RunOptions) -> dict[str, Any]:
    """Options as run.json shows them: no ages, no paths, and of `build` whether engines may be built."""
    shown = {
        _KEYS.get(option.name, option.name): getattr(options, option.name)
        for option in fields(options)
        if option.name not in _HIDDEN
    }
    prepare = options.preparation.shown() if options.preparation else None
    return {**shown, "build": options.build is not None, "prepare": prepare}


def age_metadata(stages: Stages) -> dict[str, Any]:
    """What run.json says about an age network: which age is shown, and its interval; nothing without one."""
    if stages.predictor is None:
        return {}
    bundle = stages.bundle
    age_range = bundle.cohort.get("age_range")
    age = age_calibration.age_metadata(bundle.age_interval, bundle.age_bias, age_range)
    own = {} if bundle.age_distribution is None else {"own_spread": str(bundle.age_distribution)}
    return {"age": {**age, **own}}


def diagnosis_metadata(stages: Stages) -> dict[str, Any]:
    """What run.json says about a diagnosis network: whose probability it gives; nothing without one."""
    if stages.diagnosis is None:
        return {}
    negative, positive = stages.diagnosis.labels
    return {"diagnosis": {"negative": negative, "positive": positive}}


def timings(scans: Sequence[ScanResult], wall: float) -> dict[str, Any]:
    """Seconds by stage: total over scans, and the median scan's.  wall : of the whole run."""
    stages = {}
    for stage in STAGES:
        values = [s.seconds[stage] for s in scans if stage in s.seconds]
        if values:
            stages[stage] = {
                "total_s": round(sum(values), 4),
                "median_s": round(statistics.median(values), 4),
            }
    return {"wall_s": round(wall, 3), "stages": stages}
