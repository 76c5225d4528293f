"""Precision plans at export: one for a network that gets an int8 file, and what the manifest says of them.

A plan is fitted to the scans that it was made on: its ranges are theirs, and nodes were raised until the
error on them was small enough. What an int8 file costs shows on other scans only (`parity.scan_volumes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hz_calibration.plan import PrecisionPlan, read_plan
from hz_runtime.errors import UsageError


def read_plans(paths: Sequence[Path], roles: Iterable[str]) -> dict[str, PrecisionPlan]:
    """The plans by role; a network may have none. Raises UsageError where there is no plan at all, two for
    one role, or one for a network that is not exported."""
    plans: dict[str, PrecisionPlan] = {}
    for path in paths:
        plan = read_plan(path)
        if plan.role in plans:
            raise UsageError(f"{path.name} is a second plan for {plan.role}.", "Give one for each network.")
        plans[plan.role] = plan
    if not plans:
        raise UsageError(
            "--int8 follows a precision plan, and there is none.",
            "Make one:  hz-calibrate CHECKPOINT SCANS...   then give it:  --plan PLAN.json",
        )
    other = sorted(set(plans) - set(roles))
    if other:
        raise UsageError(
            f"a plan for {', '.join(other)} is given, and no such network.",
            "Export that checkpoint too, or leave its --plan out.",
        )
    return plans


def plan_entry(plan: PrecisionPlan) -> dict[str, Any]:
    """What the manifest says of the plan that a file follows, plain JSON types."""
    return {
        "method": plan.method,
        "weight_bits": plan.weight_bits,
        "budget": {"intensity": plan.budget.intensity, "years": plan.budget.years},
        "int8": list(plan.int8),
        "kept": [{"node": k.node, "operation": k.operation, "why": k.why} for k in plan.kept],
        "error": {word: deviation.to_dict() for word, deviation in plan.whole.items()},
        "calibration": {
            "n": len(plan.scans),
            "sites": dict(sorted(Counter(scan.site for scan in plan.scans).items())),
            "sha256": sorted(scan.sha256 for scan in plan.scans),
        },
        "engine": plan.engine,
    }
