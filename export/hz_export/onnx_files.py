"""The ONNX files of one network: its graph in every precision asked for, each with its parity and what the
manifest says of it. What a bundle holds beside them, and publishing it, is `assemble`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import ModelProto

from hz_calibration.plan import PrecisionPlan
from hz_export import parity
from hz_export.export_options import ExportOptions
from hz_export.graph_precision import half_weights, require, to_reduced
from hz_export.localize import culprit_lines, rounded_answers
from hz_export.plans import plan_entry
from hz_export.quantize import to_int8
from hz_export.to_onnx import OUTPUTS, Checkpoint, specs, to_onnx, with_features
from hz_runtime.backends.registry import installed, open_backend
from hz_runtime.errors import BackendError, HzError
from hz_runtime.io.atomic import sha256_bytes

Say = Callable[[str], None]


@dataclass(frozen=True)
class OnnxFile:
    """One graph of a network, before anybody has measured it.

    full : the float32 graph that `model` was made of.  precision : that it is to compute in.
    kind : how it computes and stores, a key of `parity.TOLERANCES`.  plan : that an int8 graph follows.
    """

    name: str
    full: ModelProto
    model: ModelProto
    precision: str
    kind: str
    plan: PrecisionPlan | None = None


def onnx_files(
    checkpoint: Checkpoint,
    options: ExportOptions,
    plan: PrecisionPlan | None,
    parity_check: parity.ParityCheck | None,
    say: Say,
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(manifest entry, bytes) of every ONNX file of a network, float32 first.

    plan : for int8; without one there is no int8 file.  parity_check : None where none is asked for.
    Raises HzError where a graph does not compute in the precision asked for, or strays past its tolerance.
    """
    for file in _graphs(checkpoint, options, plan, say):
        achieved = require(file.model, file.precision, file.name)
        data = file.model.SerializeToString(deterministic=True)
        evidence = parity.no_evidence()
        if parity_check is not None:
            evidence = _measure(file, data, options, parity_check, say)
        say(f"{file.name}: {achieved.precision}, {len(data) / 1e6:.1f} MB; {_parity_line(evidence)}")
        yield _entry(checkpoint, file, data, achieved.to_dict(), evidence), data


def _graphs(
    checkpoint: Checkpoint, options: ExportOptions, plan: PrecisionPlan | None, say: Say
) -> list[OnnxFile]:
    """The float32 graph, and one in each further precision."""
    role = checkpoint.role
    full = to_onnx(checkpoint.network, OUTPUTS[role], checkpoint.grid)
    if checkpoint.gives_features:
        full = with_features(full)
    if options.half_weights:
        files = [OnnxFile(f"{role}.onnx", full, half_weights(full), "fp32", "fp32, half weights")]
    else:
        files = [OnnxFile(f"{role}.onnx", full, full, "fp32", "fp32")]
    for precision in options.precisions:
        name = f"{role}.{precision}.onnx"
        if precision != "int8":
            files.append(OnnxFile(name, full, to_reduced(full, precision), precision, precision))
        elif plan is not None:
            files.append(OnnxFile(name, full, to_int8(full, plan), precision, precision, plan))
        else:
            say(f"{role}: no precision plan, so no int8 file")
    return files


def _measure(
    file: OnnxFile, data: bytes, options: ExportOptions, parity_check: parity.ParityCheck, say: Say
) -> dict[str, Any]:
    """Parity on every engine, for bfloat16 on those that run it, which onnxruntime on a CPU does not; and of
    files with 16 bits with every rounding that a GPU makes."""
    tolerance = replace(parity.TOLERANCES[file.kind], **(options.tolerance or {}))
    evidence: dict[str, Any] = parity.no_evidence()
    evidence["note"] = "not measured: no engine here runs bfloat16 convolutions"
    able: tuple[str, ...] = ()
    if file.kind == "bf16":
        asked = parity_check.engines or [name for name, _ in installed()]
        able = tuple(name for name in asked if _opens(name, data))
        parity_check = replace(parity_check, engines=able)
    try:
        if able or file.kind != "bf16":
            evidence = parity_check.measure(data, file.kind, tolerance, file.name)
        if file.kind in ("fp16", "bf16"):
            evidence["rounded"] = _rounded(file, parity_check, tolerance)
        return evidence
    except HzError:
        if options.localize:
            for line in _culprits(file, parity_check, tolerance):
                say(f"{file.name}: {line}")
        raise


def _rounded(file: OnnxFile, parity_check: parity.ParityCheck, tolerance: parity.Tolerance) -> dict[str, Any]:
    """The differences of `rounded_answers`. Raises HzError past the tolerance, or for an overflow."""
    where = f"{file.name}, rounded as on a GPU"
    try:
        row = parity_check.against(rounded_answers(file.full, file.model, parity_check))
    except HzError as error:
        raise HzError(
            f"parity of {where}: {error.message}", f"Not published. Export without --{file.precision}."
        ) from error
    parity.refuse_past(row, tolerance, where)
    return row


def _culprits(
    file: OnnxFile, parity_check: parity.ParityCheck, tolerance: parity.Tolerance
) -> tuple[str, ...]:
    """Which nodes break a file's parity; never an error of its own, which would hide that one."""
    try:
        return culprit_lines(file.full, file.model, parity_check, tolerance, file.plan)
    except HzError as error:
        return (f"its nodes cannot be searched: {error.one_line}",)


def _opens(engine: str, data: bytes) -> bool:
    try:
        open_backend(engine, data).close()
    except BackendError:
        return False
    return True


def _entry(
    checkpoint: Checkpoint, file: OnnxFile, data: bytes, achieved: dict[str, Any], evidence: Any
) -> dict[str, Any]:
    """What the manifest says of a file."""
    meta = checkpoint.meta
    return {
        "role": checkpoint.role,
        "file": file.name,
        "sha256": sha256_bytes(data),
        "precision": achieved["precision"],
        "achieved": achieved,
        "inputs": specs(file.model.graph.input),
        "outputs": specs(file.model.graph.output),
        "sources": list(meta.get("sources") or []),
        "target": meta.get("target"),
        "parameters": checkpoint.parameters,
        **({"labels": list(checkpoint.labels)} if checkpoint.labels else {}),
        "parity": evidence,
        "provenance": {
            "checkpoint": checkpoint.file,
            "checkpoint_sha256": checkpoint.sha256,
            "kind": meta["kind"],
            "network": meta["network"],
            "seed": meta.get("seed"),
            "exporter": f"torch {torch.__version__}",
        },
        **({"plan": plan_entry(file.plan)} if file.plan is not None else {}),
    }


def _parity_line(evidence: Mapping[str, Any]) -> str:
    """What was measured, in one line."""
    parts = [f"{row['backend']['name']} {', '.join(_numbers(row))}" for row in evidence["measured"]]
    return "parity " + "; ".join(parts) if parts else "parity not measured"


def _numbers(row: Mapping[str, Any]) -> Iterator[str]:
    if "brain" in row:
        yield f"brain mean {row['brain']['mean']:.1e} p99.9 {row['brain']['p999']:.1e}"
    if "years" in row:
        yield f"{row['years']['max']:.3f} years"
    if "probability" in row:
        yield f"probability {row['probability']['max']:.1e}"
    if "seams" in row:
        yield f"seams {row['seams']['overall']:.3f}"
