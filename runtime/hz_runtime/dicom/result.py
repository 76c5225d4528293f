"""What a result of hz-run says about itself, in the terms of DICOM: its origin and its predicted age."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hz_runtime.dicom.derived import Origin
from hz_runtime.dicom.structured_report import PredictedAge
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shown
from hz_runtime.io.volume import stem
from hz_runtime.results.record import read_record


def read_result(volume: Path, sidecar: Path | None = None) -> tuple[Origin, PredictedAge | None]:
    """Origin and age of a harmonized volume, from the JSON beside it or from `sidecar`.

    The age is None where no network predicted one. A volume without a sidecar of hz-run is refused: a
    derived image must say what made it. Raises UsageError.
    """
    path = sidecar or volume.with_name(stem(volume) + ".json")
    record = read_record(path)
    if record is None:
        raise UsageError(
            f"{shown(path)}: not a record that hz-run wrote for this volume.",
            "Keep the .json beside the volume, or name it:  --result FILE.json",
        )
    made = _made_by(path)
    bundle, engine = made.get("Bundle") or {}, made.get("Engine") or {}
    origin = Origin(
        str(made.get("Version", "unknown")),
        str(bundle.get("Name", "")),
        str(bundle.get("Id", "")),
        flags=record.flags,
    )
    if record.prediction.age_raw is None:
        return origin, None
    words = (engine.get(k) for k in ("Name", "Provider", "Precision"))
    named = " ".join(str(word) for word in words if word)
    return origin, PredictedAge(record.prediction, record.age_interval_coverage, named)


def _made_by(path: Path) -> Mapping[str, Any]:
    try:
        made = json.loads(path.read_text("utf-8"))["GeneratedBy"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return made if isinstance(made, dict) else {}
