"""The float32 graph of one network, and what stands before and behind it, from a checkpoint or a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from hz_calibration.graph import read_graph
from hz_runtime.errors import UsageError
from hz_runtime.inference.slice_wise import SLICE_RANK
from hz_runtime.model_space.recipe import Recipe

ROLES = ("harmonizer", "age")


@dataclass(frozen=True)
class Network:
    """What calibration works on.

    role : "harmonizer" or "age".  graph : float32.  statistics : of the training cohort's features.
    before : for an age network, the harmonizer that its scans pass through first.
    behind : for a harmonizer, the age network that reads its result.
    """

    role: str
    graph: ModelProto
    recipe: Recipe
    statistics: Mapping[str, Mapping[str, float]]
    before: ModelProto | None = None
    behind: ModelProto | None = None


def read_network(path: Path, role: str | None = None, harmonizer: Path | None = None) -> Network:
    """The network of `role` in a bundle (none: its harmonizer if it has one), or the one in a checkpoint.

    harmonizer : checkpoint or bundle whose harmonizer stands before an age checkpoint.
    Raises UsageError where there is no such network, or an age checkpoint was trained behind a harmonizer
    and another one, or none, is given; BundleError for a bundle that is not sound.
    """
    if path.is_dir():
        if harmonizer is not None:
            raise UsageError("a bundle brings its own harmonizer.", "Leave --harmonizer out.")
        return _from_bundle(path, role)
    return _from_checkpoint(path, role, harmonizer)


def _from_bundle(path: Path, role: str | None) -> Network:
    from hz_runtime.bundle.store import load_bundle

    bundle = load_bundle(path)
    roles = [name for name in ROLES if any(entry.role == name for entry in bundle.models)]
    chosen = role or (roles[0] if roles else "")
    if chosen not in roles:
        held = ", ".join(roles) or "no network to calibrate"
        raise UsageError(f"{path.name} holds no {chosen} network.", f"It holds: {held}.")
    if any(len(entry.inputs[0].shape) == SLICE_RANK for entry in bundle.models if entry.role in roles):
        raise _of_slices(path.name)
    graphs = {
        name: read_graph(bundle.read(bundle.model(name, precision="fp32")), f"{path.name}: {name}")
        for name in roles
    }
    recipe = Recipe.from_dict(dict(bundle.recipe))
    return Network(chosen, graphs[chosen], recipe, bundle.statistics, **_neighbours(chosen, graphs))


def _neighbours(role: str, graphs: Mapping[str, ModelProto]) -> dict[str, Any]:
    if role == "age":
        return {"before": graphs.get("harmonizer")}
    return {"behind": graphs.get("age")}


def _from_checkpoint(path: Path, role: str | None, harmonizer: Path | None) -> Network:
    from hz_export.to_onnx import OUTPUTS, read_checkpoint, to_onnx, with_features

    checkpoint = read_checkpoint(path)
    if checkpoint.slice_wise or checkpoint.role not in ROLES:
        raise _of_slices(path.name)
    if role not in (None, checkpoint.role):
        raise UsageError(f"{path.name} holds a network for {checkpoint.role}, not for {role}.")
    before = None
    if checkpoint.role == "age":
        _check_before(path.name, checkpoint.meta.get("harmonizer"), harmonizer)
        before = read_network(harmonizer, "harmonizer").graph if harmonizer is not None else None
    elif harmonizer is not None:
        raise UsageError(f"{path.name} is a harmonizer itself.", "Leave --harmonizer out.")
    graph = to_onnx(checkpoint.network, OUTPUTS[checkpoint.role], checkpoint.recipe.grid_shape)
    return Network(
        checkpoint.role,
        with_features(graph) if checkpoint.gives_features else graph,
        checkpoint.recipe,
        checkpoint.meta.get("statistics") or {},
        before=before,
    )


def _of_slices(name: str) -> UsageError:
    return UsageError(
        f"{name} holds networks of slices; calibration works on networks of whole volumes.",
        "Export them in another precision:  hz-export --fp16 CHECKPOINT...",
    )


def _check_before(name: str, trained_behind: str | None, harmonizer: Path | None) -> None:
    """An age network must see what it was trained on."""
    if trained_behind is None:
        return
    if harmonizer is None:
        raise UsageError(
            f"{name} was trained behind harmonizer {trained_behind[:12]}..., and none is given.",
            "Give it:  --harmonizer HARMONIZER.safetensors",
        )
    given = _checkpoint_of(harmonizer)
    if given not in (None, trained_behind):
        raise UsageError(
            f"{name} was trained behind harmonizer {trained_behind[:12]}..., not {given[:12]}...",
            "Give that one.",
        )


def _checkpoint_of(harmonizer: Path) -> str | None:
    """sha256 of a harmonizer's checkpoint; None for a bundle that does not say."""
    from hz_export.to_onnx import read_checkpoint
    from hz_runtime.bundle.store import load_bundle

    if harmonizer.is_file():
        return read_checkpoint(harmonizer).sha256
    entries = [entry for entry in load_bundle(harmonizer).models if entry.role == "harmonizer"]
    recorded = {entry.provenance.get("checkpoint_sha256") for entry in entries}
    return str(recorded.pop()) if len(recorded) == 1 and None not in recorded else None
