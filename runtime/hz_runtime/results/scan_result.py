"""What became of one scan: an object of run.json.

Nothing here holds an absolute path or the name of a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hz_runtime.results.prediction import Prediction

Status = Literal["ok", "flagged", "failed", "skipped"]
STAGES = ("read", "prepare", "infer", "write")
STEPS = ("prepare.mask", "prepare.registration", "prepare.n4", "prepare.resampling")
NOT_REACHED = "not reached: the run was interrupted; the same command goes on from here"
DONE_BEFORE = "done before: same scan, bundle and options"


@dataclass(frozen=True)
class ScanResult:
    """What became of one scan: an object of run.json["scans"].

    input : its label, relative.  name : what its output names start with.
    status : ok; flagged (done, but look at `flags`); failed (see `reason`); skipped (an earlier run had
        done it and `outputs` are in place, or the run was interrupted before it and there are none).
    recorded : for a scan that an earlier run did, the status it got then; else empty.
    outputs, figure : names relative to the output folder.
    prediction : what the networks said; its fields stand in the object beside the others.
    age : known age in years, where one was given.
    seconds : wall time by stage (read, prepare, infer, write), and by step of a raw head's preparation, as
        "prepare.registration".
    gates : verdicts of the gates of a raw head's preparation (`preparation.gates.Verdict.to_dict`).
    quality : measures of its image quality (`image_quality.Quality.to_dict`), also of a scan that
        failed later; empty where none was reached.
    """

    input: str
    name: str
    status: Status
    reason: str = ""
    outputs: tuple[str, ...] = ()
    figure: str | None = None
    prediction: Prediction = Prediction()
    age: float | None = None
    flags: tuple[str, ...] = ()
    sha256: str | None = None
    recorded: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()
    quality: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        predicted = self.prediction.to_dict()
        ages = {key: predicted.pop(key) for key in ("age_raw", "age_corrected", "age_interval")}
        if predicted["age_spread"] is None:  # of most networks
            del predicted["age_spread"]
        return {
            "input": self.input,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "outputs": list(self.outputs),
            "figure": self.figure,
            **ages,
            "age": self.age,
            "brain_pad": self.prediction.brain_pad(self.age),
            **predicted,
            "flags": list(self.flags),
            "recorded": self.recorded,
            "sha256": self.sha256,
            "seconds": {key: round(self.seconds[key], 4) for key in STAGES + STEPS if key in self.seconds},
            "gates": [dict(gate) for gate in self.gates],
            "quality": [dict(measure) for measure in self.quality],
        }

    @classmethod
    def from_dict(cls, scan: Mapping[str, Any]) -> ScanResult:
        """What `to_dict` gave; keys that are none of its own do not matter.

        Raises TypeError or ValueError where it cannot be one.
        """
        own = {one.name for one in fields(cls)} - {"prediction"}
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in scan.items() if key in own
        }
        return cls(**values, prediction=Prediction.from_dict(scan))
