"""Parity of a finished bundle on this machine: every file, on every engine here, against one reference.

The reference is the checkpoint's network in PyTorch where it is given; else the bundle's own float32 file on
a CPU engine, which can show that engines agree, but not that the export was right: the result says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hz_export.bench import F32, words
from hz_export.candidates import entries
from hz_export.differences import TOLERANCES, Tolerance, checks
from hz_export.engine import builder
from hz_export.fast_evidence import tolerance_kind
from hz_export.machine import describe_machine
from hz_export.parity import (
    MOST_VOLUMES,
    Network,
    ParityCheck,
    Volumes,
    brains,
    calibrated_on,
    scan_volumes,
    takes_hints,
    template_volumes,
)
from hz_runtime.backends.base import Backend
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.file_choice import FileChoice
from hz_runtime.backends.registry import ENGINES
from hz_runtime.errors import BackendError, UsageError
from hz_runtime.inference.slice_wise import of_volumes

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle, ModelEntry

ROLES = ("harmonizer", "age", "diagnosis")  # in the order in which volumes pass through them
REFERENCE_ENGINES = ("onnxruntime-cpu", "openvino")
Say = Callable[[str], None]


@dataclass(frozen=True)
class ParityOptions:
    """What to measure.

    checkpoints : .safetensors files that the bundle was exported from, any of them.  scans : files and
    folders; none for the MNI152 brain that ships with hz.  engines : names of those to measure, none
    for all.  tolerance : fields of Tolerance to replace, for all files.  threads : of the CPU, None for all.
    count : of the scans, at most, spread evenly.
    """

    checkpoints: tuple[Path, ...] = ()
    scans: tuple[Path, ...] = ()
    engines: tuple[str, ...] = ()
    to: str | None = None
    tolerance: Mapping[str, float] | None = None
    threads: int | None = None
    count: int = MOST_VOLUMES


def measure_bundle(bundle: Bundle, options: ParityOptions, say: Say = lambda _: None) -> dict[str, Any]:
    """Evidence about every harmonizer and age file of a bundle; plain JSON types.

    Each of "models" holds "file", "sha256" and "parity" as a manifest does, so that the same code reads
    both, and "not_run": the engines that are not here or that failed, in their own words. "failed" of those
    is True where the engine is here and answered with an error or with values that are not finite.
    Raises UsageError for a checkpoint that is not the bundle's, or where no volumes are to be had.
    """
    from hz_runtime.model_space.recipe import Recipe

    machine = describe_machine()
    recipe = Recipe.from_dict(dict(bundle.recipe))
    fitted = calibrated_on(bundle.raw["models"])
    volumes = (
        scan_volumes(options.scans, recipe, options.count, without=fitted)
        if options.scans
        else template_volumes(recipe)
    )
    say(f"parity on {len(volumes.grids)} volumes: {volumes.source}")
    networks = _networks(bundle, options)
    models = []
    try:
        for role, parity_check in _parity_checks(networks, volumes, recipe.middle_slices).items():
            for entry in entries(bundle, role, _to(role, options)):
                models.append(_file(bundle, entry, parity_check, options, say))
    finally:
        for network in networks.values():
            network.close()
    return {
        "benchmark": "hz-bench parity",
        "bundle": {"name": bundle.name, "id": bundle.id},
        "models": models,
        "machine": machine,
    }


def kind_of(bundle: Bundle, entry: ModelEntry) -> str:
    """The key of TOLERANCES for a file: as its export said, else by what it computes and stores."""
    recorded = entry.parity.get("kind")
    if recorded in TOLERANCES:
        return str(recorded)
    raw = next(model for model in bundle.raw["models"] if model["file"] == entry.file)
    halved = raw.get("achieved", {}).get("stored_bytes", {}).get("fp16", 0)
    if entry.precision == "fp32" and halved:
        return "fp32, half weights"
    return entry.precision if entry.precision in TOLERANCES else "fp32"


@dataclass(frozen=True)
class Reference:
    """The network that answers are compared with.  name : in words, for the evidence; "" for torch."""

    network: Network
    name: str = ""
    backend: Backend | None = None

    def close(self) -> None:
        if self.backend is not None:
            self.backend.close()


def _to(role: str, options: ParityOptions) -> str | None:
    return options.to if role == "harmonizer" else None


def _networks(bundle: Bundle, options: ParityOptions) -> dict[str, Reference]:
    """The reference of every role that the bundle holds."""
    found = {role: Reference(network) for role, network in _from_checkpoints(bundle, options).items()}
    held = {entry.role for entry in bundle.models}
    for role in ROLES:
        if role in held and role not in found:
            found[role] = _from_bundle(bundle, role, options)
    return {role: found[role] for role in ROLES if role in found}


def _from_checkpoints(bundle: Bundle, options: ParityOptions) -> dict[str, Network]:
    if not options.checkpoints:
        return {}
    from hz_export.to_onnx import read_checkpoint

    found: dict[str, Network] = {}
    for path in options.checkpoints:
        checkpoint = read_checkpoint(path)
        made = {e.provenance.get("checkpoint_sha256") for e in bundle.models if e.role == checkpoint.role}
        if checkpoint.sha256 not in made:
            raise UsageError(
                f"{bundle.path.name} was not exported from {path.name}.",
                "Give the checkpoint that the bundle's manifest names, or export it again.",
            )
        found[checkpoint.role] = checkpoint.of_volumes
    return found


def _from_bundle(bundle: Bundle, role: str, options: ParityOptions) -> Reference:
    """The bundle's own float32 file on the first CPU engine that is here; no CPU engine has to be built."""
    said = []
    for engine in REFERENCE_ENGINES:
        try:
            backend, _ = choose(
                bundle, role, require=engine, to=_to(role, options), precision="fp32", threads=options.threads
            )
        except BackendError as error:
            said.append(error.message)
            continue
        entry = bundle.entry(backend.sha256)
        answers = _answers(backend, int(bundle.recipe.get("middle_slices", 0)))
        return Reference(answers, f"the bundle's own {entry.file} on {engine}", backend)
    raise BackendError(
        f"No engine to take {role} answers from: {'; '.join(said)}.", "pip install 'hz-mri[cpu]'"
    )


def _answers(backend: Backend, middle_slices: int) -> Callable[[F32], F32]:
    """A backend as a function from (n, D, H, W) to (n, D, H, W) or (n,), one volume at a time."""
    answer = of_volumes(backend, middle_slices)

    def network(volumes: F32) -> F32:
        joined: F32 = np.concatenate([answer(volume[None]) for volume in volumes])
        return joined

    return network


def _parity_checks(
    networks: Mapping[str, Reference], volumes: Volumes, middle_slices: int
) -> dict[str, ParityCheck]:
    """One check a role; predictors see volumes that went through the reference harmonizer."""
    parity_checks: dict[str, ParityCheck] = {}
    inputs, brain = volumes.grids, brains(volumes.grids)
    for role, one in networks.items():
        behind = networks.get("age") if role == "harmonizer" else None
        parity_checks[role] = ParityCheck(
            one.network,
            inputs,
            brain,
            volumes,
            behind.network if behind else None,
            name=one.name,
            role=role,
            middle_slices=middle_slices,
        )
        if role == "harmonizer":
            inputs = parity_checks[role].expected
    return parity_checks


def _file(
    bundle: Bundle, entry: ModelEntry, parity_check: ParityCheck, options: ParityOptions, say: Say
) -> dict[str, Any]:
    """One file on every engine, in every type that the engine can be asked to compute its float32 in."""
    kind = kind_of(bundle, entry)
    tolerance = replace(TOLERANCES[kind], **(options.tolerance or {}))
    rows, not_run = [], []
    for engine in ENGINES:
        if options.engines and engine.name not in options.engines:
            continue
        for hint in engine.hints if takes_hints(kind) else engine.hints[:1]:
            asked = FileChoice(entry, hint)
            shown = engine.name if hint == "fp32" else f"{engine.name} in {hint}"
            try:
                backend, _ = choose(
                    bundle,
                    entry.role,
                    require=engine.name,
                    to=entry.target,
                    precision=asked,
                    threads=options.threads,
                    build=builder(say),
                )
            except BackendError as error:
                not_run.append({"backend": shown, "failed": False, "why": error.message})
                continue
            row = _row(parity_check, backend, kind, engine.name, shown, not_run)
            if row is not None:
                rows.append(row)
                held = replace(TOLERANCES[tolerance_kind(row, kind)], **(options.tolerance or {}))
                say(f"{entry.file} on {shown}: {parity_line(row, held)}")
    evidence = parity_check.evidence(entry.sha256, kind, tolerance, rows)
    return {
        "role": entry.role,
        "file": entry.file,
        "sha256": entry.sha256,
        "precision": entry.precision,
        "parity": evidence,
        "not_run": not_run,
    }


def _row(
    parity_check: ParityCheck,
    backend: Backend,
    kind: str,
    engine: str,
    shown: str,
    not_run: list[dict[str, Any]],
) -> dict[str, Any] | None:
    try:
        row = parity_check.row(backend, kind)
        # What ran may be an engine built from the file; it then has a sha256 of its own.
        row["backend"] = {**row["backend"], "rung": engine, "sha256": ran_sha256(backend)}
        return row
    except BackendError as error:
        not_run.append({"backend": shown, "failed": True, "why": words(error)})
        return None
    finally:
        backend.close()


def ran_sha256(backend: Any) -> str:
    """Of the bytes that really ran: a built engine's where there is one, else the ONNX file's."""
    return str(getattr(backend, "engine_sha256", "") or backend.sha256)


def parity_line(row: Mapping[str, Any], tolerance: Tolerance) -> str:
    """A row in one line: the numbers, and whether they are within `tolerance`."""
    held = checks(row, tolerance)
    past = [str(check) for check in held if check.past]
    if past:
        return f"past its tolerance: {'; '.join(past)}"
    return ", ".join(f"{check.key} {check.value:.2g}" for check in held if check.key != "nonfinite")


def verdict(result: Mapping[str, Any], changes: Mapping[str, float] | None = None) -> Sequence[str]:
    """What is wrong, one line each, of a result of `measure_bundle`; empty where all of it agrees."""
    from hz_export.parity import ran, rejudge

    wrong = [
        f"{model['file']} on {item['backend']}: {item['why']}"
        for model in result["models"]
        for item in model.get("not_run", [])
        if item["failed"]
    ]
    measured = any(model["parity"]["measured"] for model in result["models"])
    if measured:
        for file, row, _, past in rejudge(result, changes):
            wrong += [f"{file} on {ran(row)}: {what}" for what in past]
    elif not wrong:
        wrong.append("no engine that was asked for is here")
    return wrong
