"""Evidence that was measured on this machine, kept in a bundle that was exported on another.

No processor has every instruction set, so that evidence of int8 and bfloat16 is gathered one by one. Rows of
the same engine, hint and instructions take the place of older ones. Each says what it was held to and on
which scans where that is not what the file's own evidence says. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import SigningKey

_OF_THIS_RUN = ("rung", "sha256")  # what a row of `hz-bench parity` says of its backend beyond a manifest's


def add_evidence(path: Path, result: Mapping[str, Any], key: SigningKey | None = None) -> Bundle:
    """Put the rows of ONNX files on CPUs from a result of `measure_bundle` into the bundle; its id is another
    then.

    key : signs it; None leaves it unsigned, also where it was signed.
    Raises BundleError where the bundle is damaged, or not the one that was measured.
    """
    bundle = load_bundle(path)
    if result["bundle"]["id"] != bundle.id:
        raise BundleError(
            f"{path.name} is not the bundle that was measured.", f"Measure it:  hz-bench parity {path.name}"
        )
    found = {model["file"]: model["parity"] for model in result["models"]}
    models = [
        {**model, "parity": merged(model.get("parity", {}), found[model["file"]])}
        if model["file"] in found
        else model
        for model in bundle.raw["models"]
    ]
    files = {name: bundle.read_listed(name) for name in bundle.files}
    return write_bundle(path, {**bundle.raw, "models": models}, files, overwrite=True, key=key)


def merged(own: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A file's evidence with that of another machine.  own, new : "parity" of a manifest's model."""
    of_file = (row for row in new["measured"] if row["backend"].get("sha256") == new["sha256"])
    rows = [_kept(row) for row in of_file if "not_fast" in row]  # a GPU's rows have no verdict
    before: Sequence[Mapping[str, Any]] = own.get("measured") or ()
    if not before:
        return {**new, "measured": rows}
    apart = {key: new[key] for key in ("reference", "volumes") if new[key] != own.get(key)}
    replaced = {_measured_by(row) for row in rows}
    kept = [row for row in before if _measured_by(row) not in replaced]
    return {**own, "measured": [*kept, *({**row, **apart} for row in rows)]}


def _measured_by(row: Mapping[str, Any]) -> tuple[str, ...]:
    backend = row["backend"]
    return tuple(str(backend.get(key, "")) for key in ("name", "provider", "hint", "instructions"))


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    backend = {key: value for key, value in row["backend"].items() if key not in _OF_THIS_RUN}
    return {**row, "backend": backend}
