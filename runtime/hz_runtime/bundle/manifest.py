"""What a bundle says about itself: frozen dataclasses, and bundle.json to and from them.

Nothing here touches a file. `parse` takes the bytes of bundle.json and refuses, with a BundleError that
names the key, whatever it cannot vouch for; keys it does not know are kept in `Manifest.raw` and otherwise
ignored, so that a newer minor schema still loads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hz_runtime.bundle.age_calibration import AgeBias, AgeInterval, parse_age_bias, parse_age_interval
from hz_runtime.bundle.age_distribution import AgeDistribution, parse_age_distribution
from hz_runtime.bundle.age_features import AgeFeatures, parse_age_features
from hz_runtime.bundle.engine_cache import FLAVOURS, RECORD, EngineRecord
from hz_runtime.bundle.fields import REMEDY, get, json_object, number, sha256, texts
from hz_runtime.errors import BackendError, BundleError
from hz_runtime.model_space.feature_distance import FEATURES

SCHEMA = "1.0"
RUN_ROLES = ("harmonizer", "age", "diagnosis")
ROLES = (*RUN_ROLES, "brain-mask")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MAX_MANIFEST_BYTES = 4 << 20
OLDEST = 200.0  # years

RESERVED = ("bundle.json", "model.sig")  # the manifest and its signature list the others
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,199}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network. A string in `shape` is a free axis, e.g. ("N", 1, 160, 192, 160)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class ModelEntry:
    """One ONNX file and what is known about it.

    role : one of ROLES; a role that this hz does not know (a newer minor schema) is never picked.
    precision : what the graph really computes in, read back after export; never what was asked for.
    parity : how far this very file (parity["sha256"]) strays from the network it was exported from.
    labels : of a diagnosis: (negative, positive), whose probability it gives; else empty.
    """

    role: str
    file: str
    sha256: str
    bytes: int
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sources: tuple[str, ...]
    target: str | None
    parameters: int
    parity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineEntry:
    """One built TensorRT engine of the bundle.

    record : what it was built from; `record.model_sha256` is one of the bundle's models.
    parity : how far this very engine strays from the network; empty where it was never run.
    """

    file: str
    record: EngineRecord
    parity: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return self.record.sha256

    @property
    def bytes(self) -> int:
        return self.record.bytes


@dataclass(frozen=True)
class Manifest:
    """bundle.json, checked.

    statistics, statistics_n4 : features of the training scans, of stripped scans as they are and after N4.
    anatomy : what `model_space.anatomy` measures of the age network's training people.
    age_features : the network's own features of them; None in bundles that do not know.
    age_distribution : of an age network that answers with one; None of others.
    """

    id: str
    schema: str
    name: str
    created: str
    models: tuple[ModelEntry, ...]
    recipe: Mapping[str, Any]
    cohort: Mapping[str, Any]
    statistics: Mapping[str, Mapping[str, float]]
    age_bias: AgeBias | None
    metrics: Mapping[str, Any]
    licence: str
    intended_use: str
    files: Mapping[str, str]
    raw: Mapping[str, Any]
    engines: tuple[EngineEntry, ...]
    age_interval: AgeInterval | None
    statistics_n4: Mapping[str, Mapping[str, float]]
    anatomy: Mapping[str, Mapping[str, float]]
    age_features: AgeFeatures | None
    age_distribution: AgeDistribution | None


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """The bytes that the bundle id is the hash of: sorted keys, no blanks, without "id" and "created"."""
    kept = {key: value for key, value in manifest.items() if key not in ("id", "created")}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def bundle_id(manifest: Mapping[str, Any]) -> str:
    """ "sha256:" + hex: equal for bundles that do the same, whenever they were made."""
    return "sha256:" + hashlib.sha256(canonical(manifest)).hexdigest()


def check_name(name: str, where: str) -> str:
    """A file name that can only mean a file inside the bundle: one component, no tricks."""
    if not _NAME.fullmatch(name) or name.endswith(".") or name.casefold() in RESERVED:
        raise BundleError(f"{where}: {name[:80]!r} is not the name of a file inside the bundle.", REMEDY)
    return name


def parse(data: bytes, where: str) -> Manifest:
    """Check the bytes of bundle.json. `where` starts every message, e.g. "reference.hz"."""
    raw = json_object(data, where)
    _check_schema(raw, where)
    files = {
        check_name(name, where): sha256(value, f"{where}: files[{name!r}]")
        for name, value in get(raw, "files", dict, where).items()
    }
    declared = get(raw, "id", str, where)
    if declared != bundle_id(raw):
        raise BundleError(
            f"{where}: bundle.json does not match its own id ({declared[:19]}..., "
            f"computed {bundle_id(raw)[:19]}...).",
            REMEDY,
        )
    entries = get(raw, "models", list, where)
    if not entries:
        raise BundleError(f"{where}: bundle.json lists no models.", REMEDY)
    models = tuple(_model(e, files, f"{where}: models[{i}]") for i, e in enumerate(entries))
    _refuse_twins(models, where)
    age_features = parse_age_features(raw.get("age_features"), f"{where}: age_features")
    age_distribution = parse_age_distribution(raw.get("age_distribution"), f"{where}: age_distribution")
    _check_features(len(age_features.mean) if age_features else None, models, where)
    _check_features(len(age_distribution.centres) if age_distribution else None, models, where)
    return Manifest(
        id=declared,
        schema=raw["schema"],
        name=get(raw, "name", str, where),
        created=get(raw, "created", str, where, ""),
        models=models,
        recipe=get(raw, "recipe", dict, where),
        cohort=_cohort(get(raw, "cohort", dict, where, {}), f"{where}: cohort"),
        statistics=_statistics(raw, "statistics", where),
        age_bias=parse_age_bias(raw.get("age_bias"), f"{where}: age_bias"),
        metrics=get(raw, "metrics", dict, where, {}),
        licence=get(raw, "licence", str, where, ""),
        intended_use=get(raw, "intended_use", str, where, ""),
        files=files,
        raw=raw,
        engines=_engines(get(raw, "engines", list, where, []), files, models, where),
        age_interval=parse_age_interval(raw.get("age_interval"), f"{where}: age_interval"),
        statistics_n4=_statistics(raw, "statistics_n4", where),
        anatomy=_statistics(raw, "anatomy", where),
        age_features=age_features,
        age_distribution=age_distribution,
    )


def _check_schema(raw: Mapping[str, Any], where: str) -> None:
    schema = get(raw, "schema", str, where)
    found = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", schema)
    if not found:
        raise BundleError(f"{where}: bundle schema {schema[:40]!r} is not a version.", REMEDY)
    ours = int(SCHEMA.split(".")[0])
    if int(found[1]) > ours:
        raise BundleError(
            f"{where}: bundle schema {schema} is newer than this hz reads ({ours}.x).",
            "Upgrade hz:  pip install --upgrade hz-mri",
        )
    if int(found[1]) < ours:
        raise BundleError(
            f"{where}: bundle schema {schema} is older than this hz reads ({ours}.x).",
            "Re-export the bundle from its checkpoints:  hz-export --help",
        )


def _model(raw: object, files: Mapping[str, str], where: str) -> ModelEntry:
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is not an object.", REMEDY)
    file = check_name(get(raw, "file", str, where), where)
    sha = sha256(raw.get("sha256"), f"{where}: sha256")
    if files.get(file) != sha:
        raise BundleError(f"{where}: {file} is not among the bundle's files under that sha256.", REMEDY)
    parity: dict[str, Any] = get(raw, "parity", dict, where, {})
    if parity.get("sha256", sha) != sha:
        raise BundleError(f"{where}: the parity evidence for {file} was measured on another file.", REMEDY)
    target = raw.get("target")
    if target is not None and not isinstance(target, str):
        raise BundleError(f"{where}: 'target' should be a JSON string or null.", REMEDY)
    return ModelEntry(
        role=get(raw, "role", str, where),
        file=file,
        sha256=sha,
        bytes=get(raw, "bytes", int, where),
        precision=get(raw, "precision", str, where),
        inputs=_specs(get(raw, "inputs", list, where), f"{where}: inputs"),
        outputs=_specs(get(raw, "outputs", list, where), f"{where}: outputs"),
        sources=texts(get(raw, "sources", list, where, []), f"{where}: sources"),
        target=target,
        parameters=get(raw, "parameters", int, where, 0),
        parity=parity,
        provenance=get(raw, "provenance", dict, where, {}),
        labels=texts(get(raw, "labels", list, where, []), f"{where}: labels"),
    )


def _refuse_twins(models: tuple[ModelEntry, ...], where: str) -> None:
    """Runs ask for a role, a precision and a site: two such files, and the order of a list would choose."""
    seen: dict[tuple[str, str, str | None], str] = {}
    for entry in models:
        asked = (entry.role, entry.precision, entry.target)
        if entry.role in RUN_ROLES and asked in seen:
            raise BundleError(
                f"{where}: {seen[asked]} and {entry.file} are both the {entry.precision} {entry.role}.",
                REMEDY,
            )
        seen[asked] = entry.file


def _check_features(count: int | None, models: tuple[ModelEntry, ...], where: str) -> None:
    """Every file of an age network must give as many features as the bundle reads of it; None: of any."""
    if count is None:
        return
    for entry in models:
        given = {spec.name: spec.shape[1:] for spec in entry.outputs}
        if entry.role == "age" and given.get(FEATURES) != (count,):
            raise BundleError(
                f"{where}: {entry.file} does not give the {count} features that the bundle reads.", REMEDY
            )


def _engines(
    raw: list[Any], files: Mapping[str, str], models: tuple[ModelEntry, ...], where: str
) -> tuple[EngineEntry, ...]:
    """The engines that this hz knows how to read; a newer layout or another TensorRT is left out."""
    found = []
    known = {entry.sha256: entry for entry in models}
    for index, item in enumerate(raw):
        at = f"{where}: engines[{index}]"
        if not isinstance(item, dict):
            raise BundleError(f"{at} is not an object.", REMEDY)
        if item.get("record") != RECORD or item.get("flavour") not in FLAVOURS:
            continue
        file = check_name(get(item, "file", str, at), at)
        try:
            record = EngineRecord.from_dict(item)
        except BackendError:
            raise BundleError(f"{at}: the record of {file} is not readable.", REMEDY) from None
        if files.get(file) != sha256(record.sha256, f"{at}: sha256"):
            raise BundleError(f"{at}: {file} is not among the bundle's files under that sha256.", REMEDY)
        model = known.get(record.model_sha256)
        if model is None or model.role != record.role:
            raise BundleError(f"{at}: {file} was built from no {record.role} model of this bundle.", REMEDY)
        parity: dict[str, Any] = get(item, "parity", dict, at, {})
        if parity.get("sha256", record.sha256) != record.sha256:
            raise BundleError(f"{at}: the parity evidence for {file} was measured on another file.", REMEDY)
        found.append(EngineEntry(file, record, parity))
    return tuple(found)


def _specs(raw: list[Any], where: str) -> tuple[TensorSpec, ...]:
    specs = []
    for item in raw:
        if not isinstance(item, dict):
            raise BundleError(f"{where} should hold objects with name, shape and dtype.", REMEDY)
        shape = get(item, "shape", list, where)
        if not all(isinstance(n, str) or (type(n) is int and n > 0) for n in shape):
            raise BundleError(f"{where}: shape {str(shape)[:80]} is not one of a tensor.", REMEDY)
        specs.append(TensorSpec(get(item, "name", str, where), tuple(shape), get(item, "dtype", str, where)))
    if not specs:
        raise BundleError(f"{where} is empty.", REMEDY)
    return tuple(specs)


def _cohort(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """As it is; of what it says, runs compute with the age range."""
    span = raw.get("age_range")
    if span is None:
        return raw
    if not (isinstance(span, list) and len(span) == 2):
        raise BundleError(f"{where}: age_range should hold two numbers.", REMEDY)
    youngest, oldest = (number(end, f"{where}: age_range") for end in span)
    if not 0 <= youngest <= oldest <= OLDEST:
        raise BundleError(f"{where}: age_range {youngest:g} to {oldest:g} is not one of people.", REMEDY)
    return raw


def _statistics(raw: Mapping[str, Any], key: str, where: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for feature, row in get(raw, key, dict, where, {}).items():
        at = f"{where}: {key}[{feature[:60]!r}]"
        if not isinstance(row, dict) or not {"min", "max", "mean", "sd"} <= row.keys():
            raise BundleError(f"{at} should hold min, max, mean and sd.", REMEDY)
        found[feature] = {key: number(row[key], f"{at}[{key!r}]") for key in ("min", "max", "mean", "sd")}
    return found
