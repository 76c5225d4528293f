"""Checkpoints in, a verified bundle out: graphs, engines, precision read back, parity, card, manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hz_calibration.plan import PrecisionPlan
from hz_export import parity
from hz_export.age_calibration import calibrated
from hz_export.anatomy_reference import anatomy_of
from hz_export.engine_target import find_builder
from hz_export.engines import engines_of
from hz_export.export_options import ExportOptions
from hz_export.model_card import intended_use, model_card
from hz_export.onnx_files import onnx_files
from hz_export.plans import read_plans
from hz_export.self_test import self_test_files
from hz_export.to_onnx import OUTPUTS, Checkpoint, read_checkpoint
from hz_export.unfit_networks import unfit
from hz_runtime.bundle.manifest import SCHEMA
from hz_runtime.bundle.store import Bundle, write_bundle
from hz_runtime.errors import UsageError
from hz_runtime.model_space.recipe import Recipe

CARD = "MODEL_CARD.md"


def export_bundle(
    paths: Sequence[Path], out: Path, options: ExportOptions, say: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Publish checkpoints as the bundle `out`, complete or not at all.

    paths : checkpoints (.safetensors), at most one of each role.  say : told one line a step.
    Raises UsageError where checkpoints do not belong together, HzError where a graph or its parity is not
    what was asked for, or a network is unfit (`unfit_networks`); EnginesMissing, after the bundle was
    published, where TensorRT builds no engine of a graph for a GPU.
    """
    refuse_target(out, options)
    return publish([read_checkpoint(path) for path in paths], out, options, say)


def refuse_target(out: Path, options: ExportOptions) -> None:
    """Raise UsageError for a bundle that could not be written: said before minutes of work."""
    if out.suffix != ".hz":
        raise UsageError(f"{out.name}: a bundle's name ends in .hz.", f"Use {out.name or 'NAME'}.hz.")
    if out.exists() and not options.overwrite:
        raise UsageError(f"{out.name} exists.", "Use another name, or overwrite it on purpose (--overwrite).")


def publish(
    given: Sequence[Checkpoint],
    out: Path,
    options: ExportOptions,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """`export_bundle` of checkpoints that are read already."""
    if options.build is not None:
        find_builder(options.build)
    checkpoints = belong_together(given)
    remarks = unfit(checkpoints, options, say)
    if "int8" in options.precisions:
        _refuse_slices(checkpoints)
    plans = read_plans(options.plans, checkpoints) if "int8" in options.precisions else {}
    parity_checks = _parity_checks(checkpoints, options, plans, say) if options.check_parity else {}
    models: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for role, checkpoint in checkpoints.items():
        for entry, data in onnx_files(checkpoint, options, plans.get(role), parity_checks.get(role), say):
            models.append(entry)
            files[entry["file"]] = data
    if options.localize:
        say("localize: nothing to explain: every file keeps to its tolerance")
    engines = engines_of(models, files, options, say)
    files |= {entry["file"]: data for entry, data in engines.built}
    name = options.name or out.stem
    manifest = _manifest(name, checkpoints, models)
    if engines.built:
        manifest["engines"] = [entry for entry, _ in engines.built]
    metas = {role: checkpoint.meta for role, checkpoint in checkpoints.items()}
    manifest |= calibrated(metas.get("age", {}), say)
    note = " ".join(filter(None, (options.note, *remarks, engines.remark)))
    files[CARD] = model_card(name, manifest, metas, note).encode()
    manifest["self_test"], added = self_test_files(manifest["recipe"], models, files)
    bundle = write_bundle(out, manifest, files | added, overwrite=options.overwrite, key=options.key)
    say(
        f"{out.name}: {len(models)} models, {len(engines.built)} engines, "
        f"{sum(map(len, files.values())) / 1e6:.1f} MB, {bundle.id[:19]}..."
    )
    engines.require_all(out.name)
    return bundle


def belong_together(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """By role, harmonizer first. Raises UsageError for two of one role, different recipes, or a predictor
    that was trained behind another harmonizer."""
    by_role: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        other = by_role.setdefault(checkpoint.role, checkpoint)
        if other is not checkpoint:
            raise UsageError(
                f"{other.file} and {checkpoint.file} are both {checkpoint.role} checkpoints.",
                "A bundle holds one of each; export two bundles.",
            )
    if not by_role:
        raise UsageError("no checkpoint was given.", "hz-export --fp16 CHECKPOINT... --out NAME.hz")
    first, *others = checkpoints
    for other in others:
        if not first.recipe.prepares_as(other.recipe):
            ours, theirs = asdict(first.recipe), asdict(other.recipe)
            differing = sorted(key for key in ours if ours[key] != theirs[key] and key != "middle_slices")
            raise UsageError(
                f"{first.file} and {other.file} prepare scans differently ({', '.join(differing)}).",
                "Train them with one recipe, or export two bundles.",
            )
    common_recipe(by_role)
    for role, checkpoint in by_role.items():
        if role != "harmonizer" and "harmonizer" in by_role:
            _check_behind(by_role["harmonizer"], checkpoint)
    return {role: by_role[role] for role in OUTPUTS if role in by_role}


def common_recipe(checkpoints: Mapping[str, Checkpoint]) -> Recipe:
    """The recipe of a bundle: the checkpoints' own, with the slices that its slice-wise predictors read.

    checkpoints : by role. Raises UsageError where two predictors read different slices.
    """
    readers = [c for role, c in checkpoints.items() if c.slice_wise and role != "harmonizer"]
    counts = {reader.recipe.middle_slices for reader in readers}
    if len(counts) > 1:
        said = " and ".join(f"{reader.file} {reader.recipe.middle_slices}" for reader in readers)
        raise UsageError(
            f"the predictors read different numbers of middle slices ({said}).",
            "Train them with one --slices, or export two bundles.",
        )
    return replace(next(iter(checkpoints.values())).recipe, middle_slices=max(counts, default=0))


def _refuse_slices(checkpoints: Mapping[str, Checkpoint]) -> None:
    for checkpoint in checkpoints.values():
        if checkpoint.slice_wise:
            raise UsageError(
                f"{checkpoint.file} holds a network of slices; --int8 works on networks of whole volumes.",
                "Export it in another precision:  hz-export --fp16 CHECKPOINT...",
            )


def _check_behind(harmonizer: Checkpoint, predictor: Checkpoint) -> None:
    """A predictor fits scans that came through this harmonizer, and the target site's own scans."""
    trained_behind = predictor.meta.get("harmonizer")
    on_target = trained_behind is None and list(predictor.meta.get("sources") or []) == [
        harmonizer.meta.get("target")
    ]
    if trained_behind != harmonizer.sha256 and not on_target:
        behind = f"behind harmonizer {trained_behind[:12]}..." if trained_behind else "on scans as they are"
        raise UsageError(
            f"{predictor.file} was trained {behind}; {harmonizer.file} is {harmonizer.sha256[:12]}...",
            "Train it behind this one (--harmonizer) or on the target site alone (--sites), "
            "or export two bundles.",
        )


def _parity_checks(
    checkpoints: Mapping[str, Checkpoint],
    options: ExportOptions,
    plans: Mapping[str, PrecisionPlan],
    say: Callable[[str], None],
) -> dict[str, parity.ParityCheck]:
    """The reference answers, computed once and used for every file of a role."""
    recipe = common_recipe(checkpoints)
    fitted = {scan.sha256 for plan in plans.values() for scan in plan.scans}
    volumes = (
        parity.scan_volumes(options.scans, recipe, without=fitted)
        if options.scans
        else parity.template_volumes(recipe)
    )
    say(f"parity on {len(volumes.grids)} volumes: {volumes.source}")
    brain = parity.brains(volumes.grids)
    inputs = volumes.grids
    parity_checks = {}
    for role, checkpoint in checkpoints.items():
        behind = checkpoints.get("age") if role == "harmonizer" else None
        parity_checks[role] = parity.ParityCheck(
            checkpoint.of_volumes,
            inputs,
            brain,
            volumes,
            behind.of_volumes if behind else None,
            options.engines,
            role=role,
            middle_slices=recipe.middle_slices,
        )
        if role == "harmonizer":
            inputs = parity_checks[role].expected  # the predictors, next, see harmonized volumes
    return parity_checks


def _manifest(
    name: str, checkpoints: Mapping[str, Checkpoint], models: list[dict[str, Any]]
) -> dict[str, Any]:
    metas = {role: checkpoint.meta for role, checkpoint in checkpoints.items()}
    first = next(iter(metas.values()))
    features = checkpoints["age"].age_features if "age" in checkpoints else {}
    distribution = checkpoints["age"].age_distribution if "age" in checkpoints else {}
    published = {role: meta["published"] for role, meta in metas.items() if "published" in meta}
    licences = list(dict.fromkeys(str(meta["licence"]) for meta in metas.values() if meta.get("licence")))
    return {
        "schema": SCHEMA,
        "name": name,
        "models": models,
        "recipe": common_recipe(checkpoints).to_dict(),
        # Features are of scans as they come in, so the first network's cohort sets what is usual.
        "statistics": first.get("statistics") or {},
        "statistics_n4": first.get("statistics_n4") or {},
        "anatomy": anatomy_of(metas.get("age", {}).get("statistics") or {}),
        **({"age_features": features} if features else {}),
        **({"age_distribution": distribution} if distribution else {}),
        "cohort": _cohort(metas),
        "metrics": {role: meta["metrics"] for role, meta in metas.items() if meta.get("metrics")},
        "licence": "; ".join(licences),
        "intended_use": intended_use(checkpoints),
        **({"published": published} if published else {}),
    }


def _cohort(metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Who the networks were trained on; the age range is the age network's where there is one."""
    parts = {role: meta.get("cohort") or {} for role, meta in metas.items()}
    last = parts.get("age", list(parts.values())[-1]).get("training") or {}
    summary = {
        "n": last.get("n_subjects"),
        "sites": sorted(last.get("sites", {})),
        "age_range": last.get("age_range"),
        # As with the statistics: scans are compared as they come in, so with the first network's.
        "reference": next(iter(metas.values())).get("reference"),
        "reference_n4": next(iter(metas.values())).get("reference_n4"),
    }
    return {**{key: value for key, value in summary.items() if value}, **parts}
