"""What became of one scan: an object of run.json.

Nothing here holds an absolute path or the name of a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    age_raw, age_corrected : predicted years; None without an age network or without correction.
    age_interval : lower and upper limit around the age shown (the corrected one where there is one), years;
        None where the bundle holds no interval.
    age : known age in years, where one was given.
    diagnosis_probability : of the bundle's positive label, 0 to 1; None without a diagnosis network.
    seconds : wall time by stage (read, prepare, infer, write), and by step of a raw head's preparation, as
        "prepare.registration".
    gates : verdicts of the gates of a raw head's preparation (`preparation.gates.Verdict.to_dict`).
    """

    input: str
    name: str
    status: Status
    reason: str = ""
    outputs: tuple[str, ...] = ()
    figure: str | None = None
    age_raw: float | None = None
    age_corrected: float | None = None
    age: float | None = None
    flags: tuple[str, ...] = ()
    sha256: str | None = None
    recorded: str = ""
    diagnosis_probability: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()
    age_interval: tuple[float, float] | None = None

    @property
    def brain_pad(self) -> float | None:
        """Predicted minus known age, years (the corrected prediction where there is one)."""
        predicted = self.age_raw if self.age_corrected is None else self.age_corrected
        return None if predicted is None or self.age is None else predicted - self.age

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "input": self.input,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "outputs": list(self.outputs),
            "figure": self.figure,
            "age_raw": self.age_raw,
            "age_corrected": self.age_corrected,
            "age_interval": None if self.age_interval is None else list(self.age_interval),
            "age": self.age,
            "brain_pad": self.brain_pad,
            "diagnosis_probability": self.diagnosis_probability,
            "flags": list(self.flags),
            "recorded": self.recorded,
            "sha256": self.sha256,
            "seconds": {key: round(self.seconds[key], 4) for key in STAGES + STEPS if key in self.seconds},
            "gates": [dict(gate) for gate in self.gates],
        }
