"""What a bundle says about itself: frozen dataclasses, and bundle.json to and from them.

Nothing here touches a file. `parse` takes the bytes of bundle.json and refuses, with a BundleError that
names the key, whatever it cannot vouch for; keys it does not know are kept in `Manifest.raw` and otherwise
ignored, so that a newer minor schema still loads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hz_runtime.bundle.age_calibration import AgeBias, AgeInterval, IntervalWidth
from hz_runtime.bundle.engine_cache import FLAVOURS, RECORD, EngineRecord
from hz_runtime.errors import BackendError, BundleError

SCHEMA = "1.0"
RUN_ROLES = ("harmonizer", "age", "diagnosis")
ROLES = (*RUN_ROLES, "brain-mask")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MAX_MANIFEST_BYTES = 4 << 20
OLDEST = 200.0  # years
MIN_AGE_SLOPE = 0.05  # a flatter fit says that the predictor does not see age; dividing by it invents ages

REMEDY = "The bundle is damaged or was changed after export; copy it again or re-export it:  hz-export --help"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,199}")
T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network. A string in `shape` is a free axis, e.g. ("N", 1, 64, 64, 64)."""

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
    """bundle.json, checked."""

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


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """The bytes that the bundle id is the hash of: sorted keys, no blanks, without "id" and "created"."""
    kept = {key: value for key, value in manifest.items() if key not in ("id", "created")}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def bundle_id(manifest: Mapping[str, Any]) -> str:
    """ "sha256:" + hex: equal for bundles that do the same, whenever they were made."""
    return "sha256:" + hashlib.sha256(canonical(manifest)).hexdigest()


def check_name(name: str, where: str) -> str:
    """A file name that can only mean a file inside the bundle: one component, no tricks."""
    if not _NAME.fullmatch(name) or name.endswith(".") or name.casefold() == "bundle.json":
        raise BundleError(f"{where}: {name[:80]!r} is not the name of a file inside the bundle.", REMEDY)
    return name


def parse(data: bytes, where: str) -> Manifest:
    """Check the bytes of bundle.json. `where` starts every message, e.g. "reference.hz"."""
    raw = _json_object(data, where)
    _check_schema(raw, where)
    files = {
        check_name(name, where): _sha(value, f"{where}: files[{name!r}]")
        for name, value in _get(raw, "files", dict, where).items()
    }
    declared = _get(raw, "id", str, where)
    if declared != bundle_id(raw):
        raise BundleError(
            f"{where}: bundle.json does not match its own id ({declared[:19]}..., "
            f"computed {bundle_id(raw)[:19]}...).",
            REMEDY,
        )
    entries = _get(raw, "models", list, where)
    if not entries:
        raise BundleError(f"{where}: bundle.json lists no models.", REMEDY)
    models = tuple(_model(e, files, f"{where}: models[{i}]") for i, e in enumerate(entries))
    _refuse_twins(models, where)
    return Manifest(
        id=declared,
        schema=raw["schema"],
        name=_get(raw, "name", str, where),
        created=_get(raw, "created", str, where, ""),
        models=models,
        recipe=_get(raw, "recipe", dict, where),
        cohort=_cohort(_get(raw, "cohort", dict, where, {}), f"{where}: cohort"),
        statistics=_statistics(_get(raw, "statistics", dict, where, {}), where),
        age_bias=_age_bias(raw.get("age_bias"), f"{where}: age_bias"),
        metrics=_get(raw, "metrics", dict, where, {}),
        licence=_get(raw, "licence", str, where, ""),
        intended_use=_get(raw, "intended_use", str, where, ""),
        files=files,
        raw=raw,
        engines=_engines(_get(raw, "engines", list, where, []), files, models, where),
        age_interval=_age_interval(raw.get("age_interval"), f"{where}: age_interval"),
    )


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # two readers could each believe another one of them
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleError(f"{where}: bundle.json has the key {twice[:80]!r} twice.", REMEDY)
        return found

    def refuse(constant: str) -> float:
        raise BundleError(f"{where}: bundle.json holds {constant}, which is not JSON.", REMEDY)

    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        canonical(raw if isinstance(raw, dict) else {})
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise BundleError(f"{where}: bundle.json is not readable JSON ({kind}).", REMEDY) from None
    if not isinstance(raw, dict):
        raise BundleError(f"{where}: bundle.json holds a {type(raw).__name__}, not an object.", REMEDY)
    return raw


def _check_schema(raw: Mapping[str, Any], where: str) -> None:
    schema = _get(raw, "schema", str, where)
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


_MISSING: Any = object()


def _get(raw: Mapping[str, Any], key: str, kind: type[T], where: str, default: T = _MISSING) -> T:
    value = raw.get(key, default)
    if value is _MISSING:
        raise BundleError(f"{where}: bundle.json has no {key!r}.", REMEDY)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(
            f"{where}: {key!r} should be a JSON {_json_name(kind)}, found {_json_name(type(value))}.", REMEDY
        )
    return value


def _json_name(kind: type) -> str:
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(kind, "null")


def _sha(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BundleError(f"{where} is not a sha256 in lower-case hex.", REMEDY)
    return value


def _number(value: object, where: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if not good or not math.isfinite(value):  # type: ignore[arg-type]
        raise BundleError(f"{where} is not a finite number.", REMEDY)
    return float(value)  # type: ignore[arg-type]


def _texts(value: list[Any], where: str) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in value):
        raise BundleError(f"{where} should hold strings only.", REMEDY)
    return tuple(value)


def _model(raw: object, files: Mapping[str, str], where: str) -> ModelEntry:
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is not an object.", REMEDY)
    file = check_name(_get(raw, "file", str, where), where)
    sha = _sha(raw.get("sha256"), f"{where}: sha256")
    if files.get(file) != sha:
        raise BundleError(f"{where}: {file} is not among the bundle's files under that sha256.", REMEDY)
    parity: dict[str, Any] = _get(raw, "parity", dict, where, {})
    if parity.get("sha256", sha) != sha:
        raise BundleError(f"{where}: the parity evidence for {file} was measured on another file.", REMEDY)
    target = raw.get("target")
    if target is not None and not isinstance(target, str):
        raise BundleError(f"{where}: 'target' should be a JSON string or null.", REMEDY)
    return ModelEntry(
        role=_get(raw, "role", str, where),
        file=file,
        sha256=sha,
        bytes=_get(raw, "bytes", int, where),
        precision=_get(raw, "precision", str, where),
        inputs=_specs(_get(raw, "inputs", list, where), f"{where}: inputs"),
        outputs=_specs(_get(raw, "outputs", list, where), f"{where}: outputs"),
        sources=_texts(_get(raw, "sources", list, where, []), f"{where}: sources"),
        target=target,
        parameters=_get(raw, "parameters", int, where, 0),
        parity=parity,
        provenance=_get(raw, "provenance", dict, where, {}),
        labels=_texts(_get(raw, "labels", list, where, []), f"{where}: labels"),
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
        file = check_name(_get(item, "file", str, at), at)
        try:
            record = EngineRecord.from_dict(item)
        except BackendError:
            raise BundleError(f"{at}: the record of {file} is not readable.", REMEDY) from None
        if files.get(file) != _sha(record.sha256, f"{at}: sha256"):
            raise BundleError(f"{at}: {file} is not among the bundle's files under that sha256.", REMEDY)
        model = known.get(record.model_sha256)
        if model is None or model.role != record.role:
            raise BundleError(f"{at}: {file} was built from no {record.role} model of this bundle.", REMEDY)
        parity: dict[str, Any] = _get(item, "parity", dict, at, {})
        if parity.get("sha256", record.sha256) != record.sha256:
            raise BundleError(f"{at}: the parity evidence for {file} was measured on another file.", REMEDY)
        found.append(EngineEntry(file, record, parity))
    return tuple(found)


def _specs(raw: list[Any], where: str) -> tuple[TensorSpec, ...]:
    specs = []
    for item in raw:
        if not isinstance(item, dict):
            raise BundleError(f"{where} should hold objects with name, shape and dtype.", REMEDY)
        shape = _get(item, "shape", list, where)
        if not all(isinstance(n, str) or (type(n) is int and n > 0) for n in shape):
            raise BundleError(f"{where}: shape {str(shape)[:80]} is not one of a tensor.", REMEDY)
        specs.append(
            TensorSpec(_get(item, "name", str, where), tuple(shape), _get(item, "dtype", str, where))
        )
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
    youngest, oldest = (_number(end, f"{where}: age_range") for end in span)
    if not 0 <= youngest <= oldest <= OLDEST:
        raise BundleError(f"{where}: age_range {youngest:g} to {oldest:g} is not one of people.", REMEDY)
    return raw


def _statistics(raw: Mapping[str, Any], where: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for feature, row in raw.items():
        at = f"{where}: statistics[{feature[:60]!r}]"
        if not isinstance(row, dict) or not {"min", "max", "mean", "sd"} <= row.keys():
            raise BundleError(f"{at} should hold min, max, mean and sd.", REMEDY)
        found[feature] = {key: _number(row[key], f"{at}[{key!r}]") for key in ("min", "max", "mean", "sd")}
    return found


def _age_bias(raw: object, where: str) -> AgeBias | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    slope = _number(raw.get("slope"), f"{where}: slope")
    if slope <= MIN_AGE_SLOPE:
        raise BundleError(
            f"{where}: slope {slope:g} is too flat to correct with (must exceed {MIN_AGE_SLOPE}).", REMEDY
        )
    return AgeBias(
        slope=slope,
        intercept=_number(raw.get("intercept"), f"{where}: intercept"),
        n=_get(raw, "n", int, where),
        how=_get(raw, "how", str, where, ""),
    )


def _age_interval(raw: object, where: str) -> AgeInterval | None:
    """None in bundles of before intervals, and in those that say why they have none ("none")."""
    if raw is None or (isinstance(raw, dict) and "none" in raw):
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    level = _number(raw.get("level"), f"{where}: level")
    if not 0 < level < 1:
        raise BundleError(f"{where}: level {level:g} is not a coverage between 0 and 1.", REMEDY)
    corrected = raw.get("corrected")
    return AgeInterval(
        level=level,
        n=_get(raw, "n", int, where),
        method=_get(raw, "method", str, where),
        how=_get(raw, "how", str, where, ""),
        raw=_width(raw.get("raw"), f"{where}: raw"),
        corrected=None if corrected is None else _width(corrected, f"{where}: corrected"),
    )


def _width(raw: object, where: str) -> IntervalWidth:
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is not an object.", REMEDY)
    half_width = _number(raw.get("half_width"), f"{where}: half_width")
    if half_width < 0:
        raise BundleError(f"{where}: half_width {half_width:g} is negative.", REMEDY)
    at = f"{where}: coverage"
    coverage: dict[str, Any] = _get(raw, "coverage", dict, where)
    ends = [_number(end, f"{at}: ci95") for end in _get(coverage, "ci95", list, at)]
    if len(ends) != 2:
        raise BundleError(f"{at}: ci95 should hold two numbers.", REMEDY)
    return IntervalWidth(half_width, _number(coverage.get("value"), f"{at}: value"), (ends[0], ends[1]))
