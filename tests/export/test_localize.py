"""Localisation: planted faults are named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.graph import folded, in_half
from hz_calibration.yardstick import BRAIN_ABOVE
from hz_export.localize import LocalizedNodes, brain_difference, by_half, largest_difference, localize
from hz_runtime.errors import HzError
from small_networks import grids, harmonizer, weight, with_half_weights, with_weight

VOLUMES = grids(1)
ALL = ("stem", "down", "block", "up", "join", "last")


def look(model: ModelProto, reduced_by: Callable[[set[str]], ModelProto], tolerance: float) -> LocalizedNodes:
    return localize(model, reduced_by, VOLUMES, tolerance, brain_difference(VOLUMES, BRAIN_ABOVE))


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


def test_a_sound_network_has_no_culprits() -> None:
    found = look(harmonizer(), by_half(harmonizer()), 1e-2)
    assert found.culprits == () and found.complete
    assert found.runs == 1
    assert found.lines() == (f"parity holds: error {found.everything:.3g}, at most 0.01.",)


def test_an_error_that_is_everywhere_is_said_to_be() -> None:
    model = harmonizer()
    measure = brain_difference(VOLUMES, BRAIN_ABOVE)
    found = localize(model, by_half(model), VOLUMES, 1e-9, measure, most=2)
    assert len(found.culprits) == 2 and not found.complete
    assert "spread over more nodes" in found.lines()[0]


def test_the_reference_may_store_its_weights_in_half() -> None:
    stored = with_half_weights(harmonizer())
    found = look(folded(stored), by_half(stored), 1e-2)
    assert found.culprits == ()


def test_unknown_nodes_are_refused() -> None:
    with pytest.raises(HzError, match="no node 'x'"):
        localize(harmonizer(), faulty(), VOLUMES, 1e-3, largest_difference, nodes=["x"])
