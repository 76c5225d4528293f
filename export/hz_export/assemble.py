"""Checkpoints in, a verified bundle out: graphs, engines, precision read back, parity, card, manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from hz_export import parity
from hz_export.engine import EngineOptions, build_engine
from hz_export.engine_target import find_builder
from hz_export.graph_precision import half_weights, require, to_reduced
from hz_export.model_card import INTENDED_USE, model_card
from hz_export.to_onnx import OUTPUTS, Checkpoint, read_checkpoint, specs, to_onnx
from hz_runtime.backends import installed, open_backend
from hz_runtime.bundle import Bundle, write_bundle
from hz_runtime.errors import BackendError, UsageError
from hz_runtime.files import sha256_bytes
from hz_runtime.manifest import SCHEMA

CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class ExportOptions:
    """How checkpoints become a bundle.

    note : a remark for the model card, such as what the scores were looked at for.
    precisions : also a graph of every network in each of these: "fp16", "bf16", "int8".
    plans : files of hz-calibrate, one a role, that int8 follows.
    build : also a TensorRT engine of each of those graphs, or of the float32 ones where there are none.
    progress : draw a bar while engines are built.
    half_weights : store the float32 graphs' weights as float16.
    check_parity : measure, and refuse past the tolerances.
    scans : files or folders to measure on; none for the MNI152 brain.
    tolerance : fields of `parity.Tolerance` to replace, for all files.
    engines : what to measure with; none for all installed.
    """

    name: str = ""
    note: str = ""
    precisions: tuple[str, ...] = ()
    plans: tuple[Path, ...] = ()
    build: EngineOptions | None = None
    progress: bool = False
    half_weights: bool = False
    check_parity: bool = True
    scans: tuple[Path, ...] = ()
    tolerance: Mapping[str, float] | None = None
    engines: tuple[str, ...] = ()
    overwrite: bool = False


def export_bundle(
    paths: Sequence[Path], out: Path, options: ExportOptions, say: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Publish checkpoints as the bundle `out`, complete or not at all.

    paths : checkpoints (.safetensors), at most one of each role.  say : told one line a step.
    Raises UsageError where checkpoints do not belong together, HzError where a graph or its parity is not
    what was asked for.
    """
    if out.suffix != ".hz":
        raise UsageError(f"{out.name}: a bundle's name ends in .hz.", f"Use {out.name or 'NAME'}.hz.")
    if out.exists() and not options.overwrite:  # said before minutes of work
        raise UsageError(f"{out.name} exists.", "Use another name, or overwrite it on purpose (--overwrite).")
    if options.build is not None:
        find_builder(options.build)
    checkpoints = belong_together([read_checkpoint(path) for path in paths])
    plans = _plans(options, checkpoints)
    judges = _judges(checkpoints, options, say) if options.check_parity else {}
    models: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for role, checkpoint in checkpoints.items():
        for entry, data in _graphs(checkpoint, options, plans.get(role), judges.get(role), say):
            models.append(entry)
            files[entry["file"]] = data
    engines = []
    for entry, data in _engines(models, files, options, say):
        engines.append(entry)
        files[entry["file"]] = data
    name = options.name or out.stem
    manifest = {**_manifest(name, checkpoints, models), **({"engines": engines} if engines else {})}
    metas = {role: checkpoint.meta for role, checkpoint in checkpoints.items()}
    files[CARD] = model_card(name, manifest, metas, options.note).encode()
    bundle = write_bundle(out, manifest, files, overwrite=options.overwrite)
    say(
        f"{out.name}: {len(models)} models, {len(engines)} engines, "
        f"{sum(map(len, files.values())) / 1e6:.1f} MB, {bundle.id[:19]}..."
    )
    return bundle


def belong_together(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """By role, harmonizer first. Raises UsageError for two of one role, different recipes, or an age network
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
        ours, theirs = first.recipe.to_dict(), other.recipe.to_dict()
        differing = sorted(key for key in ours if ours[key] != theirs[key])
        if differing:
            raise UsageError(
                f"{first.file} and {other.file} prepare scans differently ({', '.join(differing)}).",
                "Train them with one recipe, or export two bundles.",
            )
    if {"harmonizer", "age"} <= by_role.keys():
        _check_behind(by_role["harmonizer"], by_role["age"])
    return {role: by_role[role] for role in OUTPUTS if role in by_role}


def _check_behind(harmonizer: Checkpoint, age: Checkpoint) -> None:
    """An age network fits scans that came through this harmonizer, and the target site's own scans."""
    trained_behind = age.meta.get("harmonizer")
    on_target = trained_behind is None and list(age.meta.get("sources") or []) == [
        harmonizer.meta.get("target")
    ]
    if trained_behind != harmonizer.sha256 and not on_target:
        behind = f"behind harmonizer {trained_behind[:12]}..." if trained_behind else "on scans as they are"
        raise UsageError(
            f"{age.file} was trained {behind}; {harmonizer.file} is {harmonizer.sha256[:12]}...",
            "Train it behind this one (hz-train age --harmonizer), or export two bundles.",
        )


def _judges(
    checkpoints: Mapping[str, Checkpoint], options: ExportOptions, say: Callable[[str], None]
) -> dict[str, parity.Judge]:
    """The reference answers, computed once and used for every file of a role."""
    recipe = next(iter(checkpoints.values())).recipe
    volumes = parity.scan_volumes(options.scans, recipe) if options.scans else parity.template_volumes(recipe)
    say(f"parity on {len(volumes.grids)} volumes: {volumes.source}")
    brain = parity.brains(volumes.grids)
    inputs = volumes.grids
    judges = {}
    for role, checkpoint in checkpoints.items():
        behind = checkpoints.get("age") if role == "harmonizer" else None
        judges[role] = parity.Judge(
            checkpoint.network, inputs, brain, volumes, behind.network if behind else None, options.engines
        )
        inputs = judges[role].expected  # the age network, next, sees harmonized volumes
    return judges


def _graphs(
    checkpoint: Checkpoint,
    options: ExportOptions,
    plan: Any,
    judge: parity.Judge | None,
    say: Callable[[str], None],
) -> list[tuple[dict[str, Any], bytes]]:
    full = to_onnx(checkpoint.network, OUTPUTS[checkpoint.role], checkpoint.recipe.grid_shape)
    single = half_weights(full) if options.half_weights else full
    wanted = [
        (f"{checkpoint.role}.onnx", single, "fp32", "fp32, half weights" if options.half_weights else "fp32")
    ]
    for precision in options.precisions:
        model = _quantized(full, plan) if precision == "int8" else to_reduced(full, precision)
        wanted.append((f"{checkpoint.role}.{precision}.onnx", model, precision, precision))
    done = []
    for file, model, precision, kind in wanted:
        achieved = require(model, precision, file)
        data = model.SerializeToString(deterministic=True)
        evidence = parity.no_evidence()
        if judge is not None:
            tolerance = replace(parity.TOLERANCES[kind], **(options.tolerance or {}))
            evidence = _evidence(judge, data, kind, tolerance, file)
        say(f"{file}: {achieved.precision}, {len(data) / 1e6:.1f} MB; {_found(evidence)}")
        done.append((_entry(checkpoint, file, model, data, achieved.to_dict(), evidence), data))
    return done


def _evidence(
    judge: parity.Judge, data: bytes, kind: str, tolerance: parity.Tolerance, file: str
) -> dict[str, Any]:
    """Parity on every engine; for bfloat16 on those that run it, which onnxruntime on a CPU does not."""
    if kind == "bf16":
        able = tuple(name for name in judge.engines or [n for n, _ in installed()] if _opens(name, data))
        if not able:
            return parity.no_evidence() | {"note": "not measured: no engine here runs bfloat16 convolutions"}
        judge = replace(judge, engines=able)
    return judge.evidence(data, kind, tolerance, file)


def _opens(engine: str, data: bytes) -> bool:
    try:
        open_backend(engine, data).close()
    except BackendError:
        return False
    return True


def _plans(options: ExportOptions, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """The precision plan of every role, where int8 was asked for. Raises UsageError where one is missing."""
    if "int8" not in options.precisions:
        return {}
    from hz_calibration.plan import read_plan

    plans = {plan.role: plan for plan in map(read_plan, options.plans)}
    missing = [role for role in checkpoints if role not in plans]
    if missing:
        raise UsageError(
            f"--int8 follows a precision plan, and there is none for: {', '.join(missing)}.",
            "Make one:  hz-calibrate CHECKPOINT SCANS...   then give it:  --plan PLAN.json",
        )
    return plans


def _quantized(model: ModelProto, plan: Any) -> ModelProto:
    from hz_export.quantize import to_int8

    return to_int8(model, plan)


def _engines(
    models: list[dict[str, Any]],
    files: Mapping[str, bytes],
    options: ExportOptions,
    say: Callable[[str], None],
) -> list[tuple[dict[str, Any], bytes]]:
    """A TensorRT engine of every graph in a precision asked for, or of the float32 graphs."""
    if options.build is None:
        return []
    done = []
    for model in models:
        if model["precision"] not in (options.precisions or ("fp32",)):
            continue
        chosen = replace(options.build, name=model["file"])
        record, data = build_engine(
            files[model["file"]],
            model["role"],
            model["precision"],
            chosen,
            say=say,
            progress=options.progress,
        )
        file = f"{Path(model['file']).stem}.{record.flavour}.engine"
        evidence = {"measured": [], "note": "never run: parity of an engine is measured on its GPU"}
        done.append(({**record.to_dict(), "file": file, "parity": evidence}, data))
    return done


def _entry(
    checkpoint: Checkpoint, file: str, model: ModelProto, data: bytes, achieved: dict[str, Any], evidence: Any
) -> dict[str, Any]:
    meta = checkpoint.meta
    return {
        "role": checkpoint.role,
        "file": file,
        "sha256": sha256_bytes(data),
        "precision": achieved["precision"],
        "achieved": achieved,
        "inputs": specs(model.graph.input),
        "outputs": specs(model.graph.output),
        "sources": list(meta.get("sources") or []),
        "target": meta.get("target"),
        "parameters": checkpoint.parameters,
        "parity": evidence,
        "provenance": {
            "checkpoint": checkpoint.file,
            "checkpoint_sha256": checkpoint.sha256,
            "kind": meta["kind"],
            "network": meta["network"],
            "seed": meta.get("seed"),
            "exporter": f"torch {torch.__version__}",
        },
    }


def _manifest(
    name: str, checkpoints: Mapping[str, Checkpoint], models: list[dict[str, Any]]
) -> dict[str, Any]:
    metas = {role: checkpoint.meta for role, checkpoint in checkpoints.items()}
    first = next(iter(metas.values()))
    licences = list(dict.fromkeys(str(meta["licence"]) for meta in metas.values() if meta.get("licence")))
    return {
        "schema": SCHEMA,
        "name": name,
        "models": models,
        "recipe": next(iter(checkpoints.values())).recipe.to_dict(),
        # Features are of scans as they come in, so the first network's cohort sets what is usual.
        "statistics": first.get("statistics") or {},
        "cohort": _cohort(metas),
        "age_bias": _age_bias(metas.get("age", {})),
        "metrics": {role: meta["metrics"] for role, meta in metas.items() if meta.get("metrics")},
        "licence": "; ".join(licences),
        "intended_use": INTENDED_USE,
    }


def _cohort(metas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Who the networks were trained on; the age range is the age network's where there is one."""
    parts = {role: meta.get("cohort") or {} for role, meta in metas.items()}
    last = list(parts.values())[-1].get("training") or {}
    summary = {
        "n": last.get("n_subjects"),
        "sites": sorted(last.get("sites", {})),
        "age_range": last.get("age_range"),
    }
    return {**{key: value for key, value in summary.items() if value}, **parts}


def _age_bias(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The correction fitted on the checkpoint's held-out predictions; None where it would do harm."""
    held_out = meta.get("held_out_predictions")
    if not held_out:
        return None
    from hz_calibration.age_bias import fit_age_bias

    ages, raw = (np.asarray(held_out[key], np.float64) for key in ("age", "raw"))
    bias = fit_age_bias(ages, raw, f"least squares on held-out predictions, {held_out['how']}")
    return None if bias is None else asdict(bias)


def _found(evidence: Mapping[str, Any]) -> str:
    said = []
    for row in evidence["measured"]:
        parts = (
            [f"brain mean {row['brain']['mean']:.1e} p99.9 {row['brain']['p999']:.1e}"]
            if "brain" in row
            else []
        )
        parts += [f"{row['years']['max']:.3f} years"] if "years" in row else []
        said.append(f"{row['backend']['name']} {', '.join(parts)}")
    return "parity " + "; ".join(said) if said else "parity not measured"
