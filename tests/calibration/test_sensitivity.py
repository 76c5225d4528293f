"""The greedy choice of nodes, on made-up errors with a known best answer, and the yardstick's units."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="calibration needs onnx")
pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.deviation import Budget, Deviation, DeviationMeasure, most
from hz_calibration.sensitivity import alone, raise_until
from hz_runtime.errors import UsageError
from small_networks import age, grids, harmonizer, weight, with_weight

NODES = ("a", "b", "c", "d")
COST = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.0}


def reduce(nodes: Collection[str]) -> Any:
    return frozenset(nodes)


def added(nodes: Any) -> Deviation:
    return Deviation(sum(COST[n] for n in nodes), None)


def entangled(nodes: Any) -> Deviation:
    """a and c cancel each other: alone each looks bad, and raising one of them makes it worse."""
    total = 0.6 if {"a", "c"} & nodes else 0.0
    total = 0.1 if {"a", "c"} <= nodes else total
    return Deviation(total + (0.4 if "b" in nodes else 0.0), None)


def test_the_worst_are_raised_first_and_no_more_than_needed() -> None:
    single = alone(NODES, reduce, added)
    raised, left = raise_until(NODES, single, reduce, added, Budget(0.15))
    assert [r.node for r in raised] == ["b", "c"]
    assert [(r.before.intensity, r.after.intensity) for r in raised] == [
        (pytest.approx(0.9), pytest.approx(0.4)),
        (pytest.approx(0.4), pytest.approx(0.1)),
    ]
    assert left.intensity == pytest.approx(0.1)


def test_the_whole_network_decides_not_the_single_nodes() -> None:
    single = alone(NODES, reduce, entangled)
    assert single["a"].intensity > single["b"].intensity
    raised, left = raise_until(NODES, single, reduce, entangled, Budget(0.2))
    assert [r.node for r in raised] == ["b"]
    assert left.intensity == pytest.approx(0.1)


def test_within_the_budget_nothing_is_raised() -> None:
    raised, left = raise_until(NODES, alone(NODES, reduce, added), reduce, added, Budget(1.0))
    assert raised == () and left.intensity == pytest.approx(0.9)


def test_a_budget_of_nothing_raises_all_that_costs() -> None:
    raised, left = raise_until(NODES, alone(NODES, reduce, added), reduce, added, Budget(0.0))
    assert {r.node for r in raised} == {"a", "b", "c"}
    assert left.intensity == 0


def test_the_budget_is_the_worse_of_its_two_units() -> None:
    budget = Budget(0.01, 0.5)
    assert budget.used(Deviation(0.005, 1.0)) == 2.0
    assert budget.used(Deviation(0.02, 0.1)) == 2.0
    assert budget.used(Deviation(np.inf, None)) == np.inf
    with pytest.raises(UsageError, match="limits nothing"):
        Budget(years=0.5).used(Deviation(0.01, None))


def test_a_harmonizer_is_measured_in_intensity_inside_the_brain() -> None:
    model = harmonizer()
    volumes = grids(2)
    measure = DeviationMeasure(model, volumes)
    shifted = with_weight(model, "last.bias", weight(model, "last.bias") + 0.01)
    assert 0.05 < measure.expected[measure.brain].mean() < 0.95  # the clip does not hide the shift
    assert measure(shifted).intensity == pytest.approx(0.01, rel=0.05)
    assert measure(shifted).years is None
    assert measure(model) == Deviation(0.0, None)
    means = [answer[volume > 0.02].mean() for answer, volume in zip(measure.expected, volumes, strict=True)]
    assert measure.budget.intensity == pytest.approx(0.015 * min(means), rel=1e-5)


def test_an_age_network_is_measured_in_years() -> None:
    model = age()
    measure = DeviationMeasure(model, grids(2))
    older = with_weight(model, "mean", np.array([42.5]))
    assert measure(older).years == pytest.approx(2.5, abs=1e-4)
    assert measure(older).intensity is None
    assert measure.budget == Budget(None, 0.4)


def test_a_harmonizer_with_an_age_network_behind_it_is_measured_in_both() -> None:
    model = harmonizer()
    measure = DeviationMeasure(model, grids(2), age=age())
    changed = with_weight(model, "last.bias", weight(model, "last.bias") + 0.05)
    found = measure(changed)
    assert found.intensity and found.years
    assert measure.budget.years == 0.4


def test_what_is_not_finite_is_infinitely_far() -> None:
    model = harmonizer()
    broken = with_weight(model, "block.weight", weight(model, "block.weight") * np.inf)
    assert DeviationMeasure(model, grids(1))(broken) == Deviation(np.inf, None)


def test_most_scans_keep_to_it() -> None:
    assert most(np.arange(1, 101)) == 95
    assert most([1.0, -4.0, 2.0]) == 4


def test_the_worst_of_a_few_scans_counts_and_not_their_mean() -> None:
    """One scan is moved by 0.05, two are not: a mean over the scans would say 0.017."""
    measure = DeviationMeasure(harmonizer(), grids(3))
    moved = measure.expected.copy()
    moved[1] += 0.05
    assert measure.deviation(moved).intensity == pytest.approx(0.05, rel=1e-4)
