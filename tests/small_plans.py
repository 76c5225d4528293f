"""Precision plans without calibration: all convolutions but the first and the last, and one range for all."""

from __future__ import annotations

from onnx import ModelProto

from hz_calibration.deviation import Budget
from hz_calibration.graph import convolutions, fingerprint, folded
from hz_calibration.plan import PrecisionPlan
from hz_calibration.ranges import Range


def plan_of(model: ModelProto, role: str) -> PrecisionPlan:
    """A plan for this float32 graph; its numbers are made up, so that it serves types and not parity."""
    nodes = convolutions(folded(model))
    return PrecisionPlan(
        role=role,
        network=fingerprint(model),
        method="minmax",
        weight_bits=8,
        budget=Budget(),
        ranges={node.input[0]: Range(amax=4.0, low=0.0, high=4.0) for node in nodes},
        int8=tuple(node.name for node in nodes[1:-1]),
        kept=(),
        half_kept=(),
        nodes=(),
        whole={},
        scans=(),
        engine="none",
    )
