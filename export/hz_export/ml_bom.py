"""The bill of materials of a bundle: CycloneDX 1.6, a model card for every network, from the manifest alone.

Hashes are those of bundle.json, scores and their intervals those of the model card, which come from the same
place. It is JSON by itself and takes no package; the tests hold it to CycloneDX's own strict schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hz_export.model_card import NOT_FOR
from hz_runtime.io.atomic import sha256_file
from hz_runtime.results.versions import hz_version

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle, ModelEntry

SPEC = "1.6"
TASKS = {
    "harmonizer": "image-to-image translation",
    "age": "regression",
    "diagnosis": "classification",
    "brain-mask": "image segmentation",
}


def ml_bom(bundle: Bundle) -> dict[str, Any]:
    """The CycloneDX object of a verified bundle, JSON types; a function of the bundle and of hz's version."""
    networks = {entry.file: entry for entry in bundle.models}
    hashes = {**bundle.files, "bundle.json": sha256_file(bundle.path / "bundle.json")}
    whole = {
        "type": "machine-learning-model",
        "bom-ref": bundle.id,
        "name": bundle.name,
        "version": bundle.id,
        "description": bundle.intended_use,
        "hashes": [_sha256(bundle.id.removeprefix("sha256:"))],
        **_licences(bundle),
    }
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, bundle.id)}",
        "version": 1,
        "metadata": {
            **({"timestamp": bundle.created} if bundle.created else {}),
            "tools": {"components": [{"type": "application", "name": "hz", "version": hz_version()}]},
            "component": whole,
        },
        "components": [
            _network(bundle, networks[name]) if name in networks else _file(name, sha)
            for name, sha in sorted(hashes.items())
        ],
        "dependencies": [{"ref": bundle.id, "dependsOn": sorted(f"file:{name}" for name in hashes)}],
    }


def _file(name: str, sha: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_sha256(sha)]}


def _network(bundle: Bundle, entry: ModelEntry) -> dict[str, Any]:
    return {
        **_file(entry.file, entry.sha256),
        "type": "machine-learning-model",
        "description": f"{entry.role}, computes in {entry.precision}",
        **_licences(bundle),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised" if entry.role != "harmonizer" else "unsupervised"},
                "task": TASKS.get(entry.role, entry.role),
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": str(entry.provenance.get("kind") or entry.role),
                "datasets": _data_sets(bundle, entry.role),
                "inputs": [{"format": str(spec)} for spec in entry.inputs],
                "outputs": [{"format": str(spec)} for spec in entry.outputs],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(bundle.metrics.get(entry.role) or {})},
            "considerations": {
                "users": ["researchers"],
                "useCases": [bundle.intended_use] if bundle.intended_use else [],
                "technicalLimitations": [f"Must not be used for: {line}" for line in NOT_FOR],
            },
        },
    }


def _metrics(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores with their 95 % intervals, every digit of the manifest."""
    found = []
    for name, score in sorted(scores.items()):
        if not isinstance(score, dict) or "value" not in score:
            continue
        limits = score.get("ci95")
        interval = {}
        if isinstance(limits, list) and len(limits) == 2:
            interval = {"confidenceInterval": {"lowerBound": repr(limits[0]), "upperBound": repr(limits[1])}}
        how = f"{score.get('how') or 'how is not known'}; n = {score.get('n', 'unknown')}"
        found.append({"type": name, "value": repr(score["value"]), "slice": how, **interval})
    return found


def _data_sets(bundle: Bundle, role: str) -> list[dict[str, Any]]:
    """The sites that a network learned from: how many people, of which ages."""
    part = bundle.cohort.get(role)
    training = part.get("training") if isinstance(part, dict) else None
    sites = training.get("sites") if isinstance(training, dict) else None
    if not isinstance(sites, dict):
        return [{"type": "dataset", "name": str(site)} for site in bundle.cohort.get("sites") or ()]
    found = []
    for name, site in sorted(sites.items()):
        span = site.get("age_range") or []
        ages = f", {span[0]:g} to {span[1]:g} years" if len(span) == 2 else ""
        words = f"{site.get('scans')} scans of {site.get('subjects')} people{ages}"
        found.append({"type": "dataset", "name": name, "description": words})
    return found


def _licences(bundle: Bundle) -> dict[str, Any]:
    """What the bundle says of its licence: words, and no SPDX expression."""
    return {"licenses": [{"license": {"name": bundle.licence}}]} if bundle.licence else {}


def _sha256(content: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": content}
