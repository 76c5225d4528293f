"""What a result of hz-run says about itself, in the terms of DICOM: origin, predicted age, gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_runtime.dicom.derived import Origin
from hz_runtime.dicom.structured_report import PredictedAge
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shown
from hz_runtime.io.volume import stem
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.prediction import Pair
from hz_runtime.results.record import read_record


@dataclass(frozen=True)
class Result:
    """A harmonized volume's record.

    age : None where no network predicted one.  gates : verdicts of its preparation, empty of a brain.
    intensities : of the source, that became 0 and 1, or None.
    ages : youngest and oldest of the age network's training, years, by run.json; None where it is not there.
    quality : measures of the scan's image quality.
    """

    origin: Origin
    age: PredictedAge | None
    gates: tuple[Mapping[str, Any], ...] = ()
    intensities: Pair | None = None
    ages: Pair | None = None
    quality: tuple[Mapping[str, Any], ...] = ()


def read_result(volume: Path, sidecar: Path | None = None) -> Result:
    """The record of a harmonized volume, from the JSON beside it or from `sidecar`, and its run's run.json.

    A volume without a sidecar of hz-run is refused: a derived image must say what made it. Raises UsageError.
    """
    path = sidecar or volume.with_name(stem(volume) + ".json")
    record = read_record(path)
    if record is None:
        raise UsageError(
            f"{shown(path)}: not a record that hz-run wrote for this volume.",
            "Keep the .json beside the volume, or name it:  --result FILE.json",
        )
    content = _content(path)
    made = _made_by(content)
    bundle, engine = (part if isinstance(part := made.get(key), dict) else {} for key in ("Bundle", "Engine"))
    origin = Origin(
        str(made.get("Version", "unknown")),
        str(bundle.get("Name", "")),
        str(bundle.get("Id", "")),
        flags=record.flags,
        options=record.fingerprint,
    )
    run = RunOutputs.of(_content(path.with_name("run.json")))
    age = None
    if record.prediction.age_raw is not None:
        words = (engine.get(k) for k in ("Name", "Provider", "Precision"))
        named = " ".join(str(word) for word in words if word)
        age = PredictedAge(record.prediction, record.age_interval_coverage, named)
    low_high = _pair(content.get("SourceIntensityRange"))
    return Result(origin, age, record.gates, low_high, run.ages, record.quality)


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _made_by(content: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        made = content["GeneratedBy"][0]
    except (LookupError, TypeError):
        return {}
    return made if isinstance(made, dict) else {}


def _pair(value: Any) -> Pair | None:
    try:
        low, high = value
        return float(low), float(high)
    except (TypeError, ValueError):
        return None
