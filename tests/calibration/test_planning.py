"""Plans made of a network and scans: what is measured, what is kept, and that the budget holds."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.deviation import Budget, DeviationMeasure
from hz_calibration.graph import fingerprint
from hz_calibration.plan import PrecisionPlan
from hz_calibration.planning import PlanOptions, make_plan, steps
from hz_calibration.ranges import METHODS
from hz_calibration.samples import Sample, Samples
from hz_export.quantize import to_int8
from hz_runtime.errors import UsageError
from small_networks import INNER, age, grids, harmonizer

SAMPLES = Samples(grids(2), (Sample("a" * 64, "x"), Sample("b" * 64, "y")))


def plan_of(
    model: ModelProto, options: PlanOptions, role: str = "harmonizer"
) -> tuple[PrecisionPlan, list[str]]:
    done: list[str] = []
    made = make_plan(role, DeviationMeasure(model, SAMPLES.grids), SAMPLES, to_int8, options, done.append)
    return made, done


def test_a_generous_budget_quantizes_all_but_the_ends() -> None:
    model = harmonizer()
    options = PlanOptions(budget=Budget(1.0))
    plan, done = plan_of(model, options)
    assert plan.int8 == INNER
    assert [(k.node, k.before) for k in plan.kept] == [("stem", None), ("last", None)]
    assert plan.network == fingerprint(model)
    assert plan.scans == SAMPLES.scans
    assert plan.method in METHODS
    assert set(plan.ranges) == {"stem_relu_out", "down_relu_out", "cat_out", "cat2_out"}
    assert len(done) == steps(model, 2, options)
    errors = {node.node: node for node in plan.nodes}
    assert set(errors) == {"stem", "down", "block", "sum", "up", "join", "last"}
    assert errors["stem"].int8 is None and errors["sum"].int8 is None
    assert all(0 < errors[n].fp16.intensity < errors[n].int8.intensity for n in INNER)
    assert plan.whole["fp16"].intensity < plan.whole["int8"].intensity == plan.whole["int8_all"].intensity


def test_the_best_method_is_the_one_with_the_least_error() -> None:
    model = harmonizer()
    measure = DeviationMeasure(model, SAMPLES.grids)
    found = {
        method: plan_of(model, PlanOptions(method, Budget(1.0), half=False))[0].whole["int8"].intensity
        for method in METHODS
    }
    best = plan_of(model, PlanOptions(budget=Budget(1.0), half=False))[0]
    assert best.whole["int8"].intensity == min(found.values()) == found[best.method]
    assert measure(to_int8(model, best)) == best.whole["int8"]


def test_a_tight_budget_keeps_nodes_and_says_what_each_choice_removed() -> None:
    model = harmonizer()
    loose = plan_of(model, PlanOptions("minmax", Budget(1.0), half=False))[0].whole["int8"].intensity
    plan, _ = plan_of(model, PlanOptions("minmax", Budget(0.6 * loose), half=False))
    chosen = [k for k in plan.kept if k.before is not None]
    assert chosen and set(plan.int8) == set(INNER) - {k.node for k in chosen}
    assert plan.whole["int8"].intensity <= 0.6 * loose < plan.whole["int8_all"].intensity == loose
    assert all(k.after.intensity < k.before.intensity for k in chosen)
    assert DeviationMeasure(model, SAMPLES.grids)(to_int8(model, plan)) == plan.whole["int8"]


def test_a_budget_of_zero_leaves_float32() -> None:
    model = harmonizer()
    plan, _ = plan_of(model, PlanOptions("minmax", Budget(0.0), half=False))
    assert plan.int8 == ()
    assert to_int8(model, plan).graph.node == model.graph.node


def test_an_age_network_is_planned_in_years() -> None:
    plan, _ = plan_of(age(), PlanOptions("minmax", half=False), "age")
    assert plan.budget == Budget(None, 0.4)
    assert [k.node for k in plan.kept[:2]] == ["a", "c"]
    assert plan.whole["int8"].years <= 0.4


def test_a_budget_in_the_wrong_unit_is_refused_before_the_work() -> None:
    done: list[str] = []
    with pytest.raises(UsageError, match="limits nothing"):
        make_plan(
            "age",
            DeviationMeasure(age(), grids(1)),
            SAMPLES,
            to_int8,
            PlanOptions(budget=Budget(0.01)),
            done.append,
        )
    assert done == []


def test_ranges_come_from_the_scans() -> None:
    model = harmonizer()
    plan, _ = plan_of(model, PlanOptions("minmax", Budget(1.0), half=False))
    dim = Samples(SAMPLES.grids * np.float32(0.5), SAMPLES.scans)
    other = make_plan(
        "harmonizer",
        DeviationMeasure(model, dim.grids),
        dim,
        to_int8,
        PlanOptions("minmax", Budget(1.0), half=False),
    )
    assert other.ranges["stem_relu_out"] != plan.ranges["stem_relu_out"]
