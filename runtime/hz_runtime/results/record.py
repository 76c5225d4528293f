"""The commit record of a scan, which lets a killed run go on.

A scan is done when its record is there and true. The record is the JSON sidecar of its first output; it
is written last, atomically, and holds the sha256 of the input, the bundle's id, a fingerprint of the
options that shape the result, and the size and sha256 of every output. It holds no time, no path and no
machine, so that a repeated run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hz_runtime.errors import HzError
from hz_runtime.io.annex import fetch_folder_command, unfetched
from hz_runtime.io.atomic import sha256_file
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.results.prediction import Prediction

RECORD_VERSION = 7  # raised when the same scan, bundle and options would give other bytes
_MAX_RECORD_BYTES = 1 << 20
# Left out where they are None. All other predictions must stand in a record, so that a result of before
# there was one of them is made again.
_LEFT_OUT = ("age_interval", "age_spread", "diagnosis_probability")


@dataclass(frozen=True)
class Record:
    """The part of a sidecar that hz reads back, stored under its key "hz".

    outputs : name relative to the output folder -> {"bytes": int, "sha256": hex}.
    age_interval_coverage : nominal coverage of the prediction's interval, None where it has none.
    quality : measures of the scan's image quality (`image_quality.Quality.to_dict`). A result of before there
        were any is made again.
    gates, engine : what the gates of preparation found, and what ran the network (`sidecar.engine_metadata`).
        They stand in the sidecar outside of this part, and are only read back with it.
    """

    input_sha256: str
    bundle: str
    fingerprint: str
    status: str
    flags: tuple[str, ...]
    prediction: Prediction
    outputs: Mapping[str, Mapping[str, Any]]
    figure: str | None = None
    age_interval_coverage: float | None = None
    quality: tuple[Mapping[str, Any], ...] = ()
    gates: tuple[Mapping[str, Any], ...] = ()
    engine: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        predictions: dict[str, Any] = {}
        for name, value in self.prediction.to_dict().items():
            if value is None and name in _LEFT_OUT:
                continue
            predictions[name] = value
            if name == "age_interval":
                predictions["age_interval_coverage"] = self.age_interval_coverage
        return {
            "record": RECORD_VERSION,
            "input_sha256": self.input_sha256,
            "bundle": self.bundle,
            "options_fingerprint": self.fingerprint,
            "status": self.status,
            "flags": list(self.flags),
            "predictions": predictions,
            "quality": [dict(measure) for measure in self.quality],
            "outputs": {name: dict(self.outputs[name]) for name in sorted(self.outputs)},
            "figure": self.figure,
        }


def fingerprint(options: Mapping[str, Any]) -> str:
    """sha256 hex of the options that shape a result.

    Not of those that only move its rounding: backend, batch, and OpenVINO's threads. Else a run that goes on
    on another machine would do everything again.
    """
    text = json.dumps({"record": RECORD_VERSION, **options}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(path: Path) -> Record | None:
    """The record in the sidecar `path`, or None when there is none that this version wrote."""
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        content = json.loads(path.read_bytes())
        stored, around = content["hz"], content.get("Preparation", content)
        if stored["record"] != RECORD_VERSION:
            return None
        predictions = stored["predictions"]
        if not {one.name for one in fields(Prediction)} <= {*predictions, *_LEFT_OUT}:
            return None
        coverage = predictions.get("age_interval_coverage")
        return Record(
            str(stored["input_sha256"]),
            str(stored["bundle"]),
            str(stored["options_fingerprint"]),
            str(stored["status"]),
            tuple(str(f) for f in stored["flags"]),
            Prediction.from_dict(predictions),
            {
                str(k): {"bytes": int(v["bytes"]), "sha256": str(v["sha256"])}
                for k, v in stored["outputs"].items()
            },
            None if stored["figure"] is None else str(stored["figure"]),
            None if coverage is None else float(coverage),
            quality=tuple(dict(measure) for measure in stored["quality"]),
            gates=tuple(dict(gate) for gate in around.get("gates", ())),
            engine=_engine(content),
        )
    except (OSError, *OTHER_FORM):
        return None


def _engine(content: Mapping[str, Any]) -> dict[str, str] | None:
    """None in the records of hz-prepare, which runs no network on a grid."""
    made = content.get("GeneratedBy")
    return {str(k): str(v) for k, v in made[0]["Engine"].items()} if made else None


def require_results_fetched(out: Path, names: Iterable[str]) -> None:
    """Raise HzError where a file of an earlier result in the folder `out` is a link or a pointer to content
    that git-annex has not fetched: whether it is done cannot be told, and it is not to be made again unasked.
    """
    for name in names:
        if unfetched(out / name):
            raise HzError(
                f"an earlier result is not here, only links or pointers to it ({name}).",
                f"Fetch it first, in its data set:  {fetch_folder_command(out / name)}  "
                "(--overwrite makes it again)",
            )


def intact(out: Path, record: Record) -> bool:
    """Whether every output of the record is in `out` with the recorded size and sha256."""
    for name, expected in record.outputs.items():
        path = out / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            return False
        try:
            if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                return False
        except OSError:
            return False
    return True
