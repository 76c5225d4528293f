"""Localisation: planted faults are named, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.deviation import BRAIN_ABOVE, answers
from hz_calibration.graph import folded, in_half
from hz_calibration.ranges import Range, collect, ranges
from hz_export.differences import TOLERANCES, Tolerance
from hz_export.graph_precision import to_reduced
from hz_export.localize import LocalizedNodes, Measure, by_half, culprit_lines, localize
from hz_export.parity import ParityCheck, Volumes
from hz_export.quantize import to_int8
from hz_runtime.errors import HzError
from small_networks import grids, harmonizer, weight, with_half_weights, with_weight
from small_plans import plan_of

VOLUMES = grids(1)
ALL = ("stem", "down", "block", "up", "join", "last")


def brain_difference() -> Measure:
    """Mean absolute difference inside the brain, intensity units."""
    brain = VOLUMES > BRAIN_ABOVE
    return lambda found, expected: float(np.abs(found.astype(np.float64) - expected)[brain].mean())


def look(model: ModelProto, reduced_by: Callable[[set[str]], ModelProto], tolerance: float) -> LocalizedNodes:
    return localize(model, reduced_by, VOLUMES, tolerance, brain_difference())


def faulty(*names: str) -> Callable[[set[str]], ModelProto]:
    """A reduction that is float16, and wrong by a tenth of the weights in some nodes."""
    model = harmonizer()

    def reduced(nodes: set[str]) -> ModelProto:
        made = model
        for name in set(names) & nodes:
            kernel = weight(model, f"{name}.weight").copy()
            kernel[0] += 0.5 * np.abs(kernel).max()
            made = with_weight(made, f"{name}.weight", kernel)
        return in_half(made, nodes)

    return reduced


@pytest.mark.parametrize("name", ALL)
def test_one_faulty_node_is_named(name: str) -> None:
    found = look(harmonizer(), faulty(name), 1e-3)
    assert found.names == (name,)
    assert found.complete
    (culprit,) = found.culprits
    assert culprit.alone > 1e-3 > culprit.without
    assert found.rest == culprit.without
    assert found.everything > 1e-3
    assert found.runs <= 8  # bisection among six, not one by one and all pairs


def test_two_faulty_nodes_are_both_named() -> None:
    found = look(harmonizer(), faulty("down", "join"), 1e-3)
    assert found.names == ("down", "join")
    assert found.complete and found.rest < 1e-3
    assert all(culprit.without > 1e-3 for culprit in found.culprits)


@pytest.mark.parametrize("factor", [2e5, 1e7], ids=["results overflow", "weights overflow"])
def test_a_convolution_that_overflows_float16_is_named(factor: float) -> None:
    """Nobody sees it in float32: the norm behind it divides the factor out again."""
    model = harmonizer()
    loud = with_weight(model, "block.weight", weight(model, "block.weight") * factor)
    found = look(loud, by_half(loud), 1e-3)
    assert found.names == ("block",)
    assert found.everything == found.culprits[0].alone == float("inf")
    assert "Conv block: alone inf" in found.lines()[1]


def test_weights_that_vanish_in_float16_are_named() -> None:
    """Under 6e-8 float16 has nothing; a norm makes the signal large again in float32."""
    model = harmonizer()
    faint = with_weight(model, "block.weight", weight(model, "block.weight") * 1e-8)
    faint = with_weight(faint, "block.bias", weight(model, "block.bias") * 0)
    for node in faint.graph.node:
        if node.name == "block_norm":
            node.attribute[0].f = 1e-20
    assert look(faint, by_half(faint), 1e-3).names == ("block",)


def test_a_norm_that_is_forced_into_float16_is_named() -> None:
    """The policy keeps norms in float32. Where one is typed float16 and reads activations past 65504, from a
    convolution that is itself left in float32, it is the norm that is named."""
    model = harmonizer()
    loud = with_weight(model, "block.weight", weight(model, "block.weight") * 2e5)
    nodes = ("stem", "down", "block_norm", "up", "join", "last")
    measure = brain_difference()
    found = localize(loud, by_half(loud), VOLUMES, 1e-3, measure, nodes=nodes)
    assert [(c.node, c.operation) for c in found.culprits] == [("block_norm", "InstanceNormalization")]
    assert found.complete and found.culprits[0].alone == float("inf")


def test_a_sound_network_has_no_culprits() -> None:
    found = look(harmonizer(), by_half(harmonizer()), 1e-2)
    assert found.culprits == () and found.complete
    assert found.runs == 1
    assert found.lines() == (f"parity holds: error {found.everything:.3g}, at most 0.01.",)


def test_an_error_that_is_everywhere_is_said_to_be() -> None:
    model = harmonizer()
    measure = brain_difference()
    found = localize(model, by_half(model), VOLUMES, 1e-9, measure, most=2)
    assert len(found.culprits) == 2 and not found.complete
    assert "spread over more nodes" in found.lines()[0]


def test_the_reference_may_store_its_weights_in_half() -> None:
    stored = with_half_weights(harmonizer())
    found = look(folded(stored), by_half(stored), 1e-2)
    assert found.culprits == ()


def test_unknown_nodes_are_refused() -> None:
    with pytest.raises(HzError, match="no node 'x'"):
        localize(harmonizer(), faulty(), VOLUMES, 1e-3, brain_difference(), nodes=["x"])


# Of a file that strayed


def parity_check(model: ModelProto) -> ParityCheck:
    """A check whose reference is the float32 graph, on onnxruntime."""
    volumes = Volumes(VOLUMES, ("a" * 64,), "made for this test")
    return ParityCheck(lambda v: answers(model, v), VOLUMES, VOLUMES > BRAIN_ABOVE, volumes, name="the graph")


TOLERANCE = Tolerance(mean=1e-3, p999=1e-2, years=1.0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_file_is_explained_by_the_node_that_breaks_it(precision: str) -> None:
    """Results past 65504 overflow in float16. Bfloat16 has float32's range, but a signal on top of a bias of
    1000 drowns in it. The norm behind takes the factor, or the bias, out again."""
    model = harmonizer()
    if precision == "fp16":
        model = with_weight(model, "block.weight", weight(model, "block.weight") * 2e5)
    else:
        model = with_weight(model, "block.bias", weight(model, "block.bias") + 1000)
    lines = culprit_lines(model, to_reduced(model, precision), parity_check(model), TOLERANCES[precision])
    assert re.match(r"by (mean difference|99\.9th percentile) in the brain, \d nodes, \d+ runs:", lines[0])
    assert lines[2:] and lines[2].startswith("  Conv block: alone ")
    assert len(lines) == 3


def test_int8_is_explained_by_the_range_that_is_wrong() -> None:
    model = harmonizer()
    plan = plan_of(model, "harmonizer")
    seen = ranges(collect(model, list(plan.ranges), VOLUMES), "minmax")
    narrow = {**seen, "cat2_out": Range(amax=1e-3, low=0.0, high=4.0)}
    wrong = replace(plan, ranges=narrow)
    lines = culprit_lines(
        model, to_int8(model, wrong), parity_check(model), replace(TOLERANCE, mean=0.02, p999=1), wrong
    )
    assert len(lines) == 3 and lines[2].startswith("  Conv join: alone ")


def test_what_no_nodes_precision_explains_is_said() -> None:
    model = harmonizer()
    loose = Tolerance(mean=1, p999=1, years=1)
    (line,) = culprit_lines(model, to_reduced(model, "fp16"), parity_check(model), loose)
    assert line.startswith("rounding the same ") and "none of their precision" in line
    (line,) = culprit_lines(model, model, parity_check(model), TOLERANCE)
    assert line.startswith("no node of it computes in less than float32")
