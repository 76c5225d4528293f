"""The precision plan: which nodes of one network stay in float32, why, and the ranges of the others.

`hz-calibrate` writes it, `hz-export --int8 --plan` follows it. It speaks of one network, by content: a plan
for other weights is refused rather than followed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hz_calibration.deviation import Budget, Deviation
from hz_calibration.ranges import METHODS, Range
from hz_calibration.samples import Sample
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import atomic_write_bytes

SCHEMA = 1
WEIGHT_BITS = (7, 8)
_REMEDY = "Make it again:  hz-calibrate CHECKPOINT SCANS... --out PLAN.json"


@dataclass(frozen=True)
class Kept:
    """A node that stays in float32.

    why : in words.  before, after : the network's deviation without and with this choice; None where the
    choice is a rule and was not measured.
    """

    node: str
    operation: str
    why: str
    before: Deviation | None = None
    after: Deviation | None = None


@dataclass(frozen=True)
class NodeError:
    """The deviation that one node brings when it alone is reduced; None: not reduced to that type."""

    node: str
    operation: str
    fp16: Deviation | None
    int8: Deviation | None


@dataclass(frozen=True)
class PrecisionPlan:
    """What `hz_export.quantize.to_int8` follows, and the evidence for it.

    role : "harmonizer" or "age".  network : fingerprint of the float32 graph (`graph.fingerprint`).
    method : of METHODS.  weight_bits : 8, or 7 for CPUs without VNNI (see `hz_export.quantize`).
    ranges : of the tensors that the int8 nodes read.  int8 : nodes that are quantized, in graph order.
    kept : convolutions that are not, with the reason.  half_kept : nodes that a float16 network would have
    to leave in float32 to keep the budget.
    nodes : every node's own deviation.  whole : deviation of the whole network, by "fp16" (all nodes),
    "int8_all" (before any node was raised) and "int8" (as planned).
    scans : what all of this was measured on.  engine : that ran it.
    """

    role: str
    network: str
    method: str
    weight_bits: int
    budget: Budget
    ranges: Mapping[str, Range]
    int8: tuple[str, ...]
    kept: tuple[Kept, ...]
    half_kept: tuple[Kept, ...]
    nodes: tuple[NodeError, ...]
    whole: Mapping[str, Deviation]
    scans: tuple[Sample, ...]
    engine: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {"plan": SCHEMA, **asdict(self)}
        return _finite(plain)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "plan") -> PrecisionPlan:
        """Raises UsageError where the plan is of a newer layout, or a field is missing or of another kind."""
        if not isinstance(raw, Mapping) or raw.get("plan") != SCHEMA:
            raise UsageError(f"{where} is no precision plan that this hz reads (layout {SCHEMA}).", _REMEDY)
        try:
            plan = cls(
                role=str(raw["role"]),
                network=str(raw["network"]),
                method=str(raw["method"]),
                weight_bits=int(raw["weight_bits"]),
                budget=Budget(**raw["budget"]),
                ranges={str(k): Range(**{n: float(v[n]) for n in _RANGE}) for k, v in raw["ranges"].items()},
                int8=tuple(map(str, raw["int8"])),
                kept=tuple(map(_kept, raw["kept"])),
                half_kept=tuple(map(_kept, raw["half_kept"])),
                nodes=tuple(map(_node, raw["nodes"])),
                whole={str(k): Deviation(**v) for k, v in raw["whole"].items()},
                scans=tuple(Sample(**scan) for scan in raw["scans"]),
                engine=str(raw["engine"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{where} lacks a field, or holds one of another kind.", _REMEDY) from None
        plan._check(where)
        return plan

    def _check(self, where: str) -> None:
        if self.method not in METHODS or self.weight_bits not in WEIGHT_BITS:
            raise UsageError(
                f"{where} asks for {self.method!r} and {self.weight_bits} bits.", "Install a newer hz."
            )
        bad = [name for name, r in self.ranges.items() if not (0 <= r.amax < math.inf)]
        if bad:
            raise UsageError(f"{where}: the range of {bad[0]} is not a magnitude.", _REMEDY)


_RANGE = ("amax", "low", "high")


def read_plan(path: Path) -> PrecisionPlan:
    """The plan in a file. Raises UsageError where it cannot be read."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name} cannot be read as JSON ({type(error).__name__}).", _REMEDY) from None
    return PrecisionPlan.from_dict(raw, path.name)


def write_plan(path: Path, plan: PrecisionPlan) -> None:
    """Write a plan, whole or not at all. Raises HzError where the folder cannot be written."""
    text = json.dumps(plan.to_dict(), indent=1, allow_nan=False)
    atomic_write_bytes(path, f"{text}\n".encode())


def _kept(raw: Mapping[str, Any]) -> Kept:
    return Kept(
        str(raw["node"]),
        str(raw["operation"]),
        str(raw["why"]),
        _deviation(raw["before"]),
        _deviation(raw["after"]),
    )


def _node(raw: Mapping[str, Any]) -> NodeError:
    return NodeError(
        str(raw["node"]), str(raw["operation"]), _deviation(raw["fp16"]), _deviation(raw["int8"])
    )


def _deviation(raw: Mapping[str, Any] | None) -> Deviation | None:
    return None if raw is None else Deviation(**raw)


def _finite(value: Any) -> Any:
    """Numbers that JSON has no word for (an overflow's infinite deviation) as 1e308."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return 1e308 if isinstance(value, float) and not math.isfinite(value) else value
