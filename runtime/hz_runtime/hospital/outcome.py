"""What became of a study: result.json, and one line for people.

It holds no identity, no path and no time; the files that it gives the hashes of have theirs, unless
$SOURCE_DATE_EPOCH fixes it. Keys that begin with two underscores are mercure's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hz_runtime.dicom.export import Exported
from hz_runtime.dicom.result import Result
from hz_runtime.errors import HzError, ScanError, UsageError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_file
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.results.versions import hz_version

RESULT_NAME = "result.json"
Status = Literal["done", "flagged", "discarded", "failed", "interrupted"]
SCHEMA = "1.0"


@dataclass(frozen=True)
class Outcome:
    """What became of one study.

    status : done; flagged (done, but look at `reasons`); discarded (no T1-weighted head, or none that the
        gates let pass); failed (see `reasons`); interrupted before it was reached.
    reasons : why it is not simply done, one line each.  notes : what else is to be known of its input.
    name : of the series that was taken, "sub-" and its digits; "" where none was.  taken : what the rules say
        of that series.
    """

    status: Status
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    taken: str = ""
    exit_code: int = 0
    result: Result | None = None
    exported: Exported | None = None

    @classmethod
    def failed(cls, error: HzError, notes: tuple[str, ...] = (), name: str = "") -> Outcome:
        """Of an error; what is neither usage, bundle nor engine is this study's, as a full disk is."""
        code = error.exit_code
        if code != UsageError.exit_code:
            code = max(code, ScanError.exit_code)
        return cls("failed", (error.one_line,), notes, name, exit_code=code)

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.name or 'study'}: {self.status}{self._what()}{self._why()}"

    def _what(self) -> str:
        if self.result is None or self.exported is None:
            return ""
        shown = self.result.age.prediction if self.result.age else None
        age = "no predicted age"
        if shown is not None and shown.age is not None:
            limits = (
                f" ({shown.age_interval[0]:.1f} to {shown.age_interval[1]:.1f})" if shown.age_interval else ""
            )
            age = f"predicted age {shown.age:.1f}{limits}"
        made = [f"{len(self.exported.images)} images"]
        made += ["report"] if self.exported.report else []
        made += ["page"] if self.exported.page else []
        return f", {age}, {', '.join(made)}"

    def _why(self) -> str:
        return f"; {'; '.join(self.reasons)}" if self.reasons else ""

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain JSON types.  folder : where the exported files are."""
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "hz_version": hz_version(),
            "status": self.status,
            "exit_code": self.exit_code,
            "text": self.text,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "series": {"name": self.name, "taken": self.taken} if self.name else None,
            **self._found(),
            "files": self._files(folder),
            "__mercure_notification": {"text": self.text, "requested": self.status != "done"},
        }
        if self.status == "discarded":
            found["__mercure_routing"] = {"discard": True}
        return found

    def _found(self) -> dict[str, Any]:
        if self.result is None:
            return {"bundle": None, "predictions": None, "flags": [], "gates": []}
        result, origin = self.result, self.result.origin
        predictions: dict[str, Any] | None = None
        if result.age is not None:
            predictions = {
                **result.age.prediction.to_dict(),
                "age_interval_coverage": result.age.coverage,
                "training_range": list(result.ages) if result.ages else None,
            }
        return {
            "bundle": {"name": origin.bundle, "id": origin.bundle_id},
            "predictions": predictions,
            "flags": list(origin.flags),
            "gates": [dict(gate) for gate in result.gates],
        }

    def _files(self, folder: Path) -> list[dict[str, str]]:
        if self.exported is None:
            return []
        kinds = {**dict.fromkeys(self.exported.images, "series"), **dict.fromkeys(self.exported.page, "page")}
        return [
            {"name": name, "kind": kinds.get(name, "report"), "sha256": sha256_file(folder / name)}
            for name in self.exported.files
        ]

    def write(self, folder: Path) -> None:
        """Write result.json, last of all files. Raises HzError (disk)."""
        text = json.dumps(self.to_dict(folder), indent=2, allow_nan=False) + "\n"
        atomic_write_bytes(folder / RESULT_NAME, text.encode())


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The object of the result.json in `folder`, whose files are there and whole; else None."""
    try:
        found = json.loads((folder / RESULT_NAME).read_text("utf-8"))
        whole = all(sha256_file(folder / Path(f["name"]).name) == f["sha256"] for f in found["files"])
    except (OSError, *OTHER_FORM):
        return None
    return dict(found) if whole else None
