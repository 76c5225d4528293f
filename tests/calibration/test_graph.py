"""Graphs for calibration: folding, names by content, float16 node by node."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="calibration needs onnx")
pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.deviation import DeviationMeasure, answers
from hz_calibration.graph import convolutions, fingerprint, folded, in_half, read_graph, with_outputs
from hz_runtime.backends.registry import open_backend
from hz_runtime.errors import HzError, UsageError
from small_networks import grids, harmonizer, weight, with_half_weights, with_weight


def test_folding_gives_the_same_answers_without_casts() -> None:
    stored = with_half_weights(harmonizer())
    plain = folded(stored)
    assert {n.op_type for n in stored.graph.node} - {n.op_type for n in plain.graph.node} == {"Cast"}
    np.testing.assert_array_equal(answers(plain, grids(1)), answers(stored, grids(1)))


def test_a_network_is_named_by_content_whichever_way_its_weights_are_stored() -> None:
    model = harmonizer()
    assert fingerprint(model) == fingerprint(with_half_weights(model)) == fingerprint(harmonizer())
    assert fingerprint(model) != fingerprint(harmonizer(seed=9))
    changed = weight(model, "block.weight") * 1.01
    assert fingerprint(model) != fingerprint(with_weight(model, "block.weight", changed))


def test_attributes_and_joints_are_part_of_the_name() -> None:
    model = harmonizer()
    model.graph.node[0].attribute[0].ints[0] = 0
    assert fingerprint(model) != fingerprint(harmonizer())


def test_quantized_and_mixed_graphs_are_refused() -> None:
    half = in_half(harmonizer(), ["block"])
    with pytest.raises(UsageError, match="plain float32 graph"):
        folded(half)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"x\.onnx is not a sound ONNX model"):
        read_graph(harmonizer().SerializeToString()[:300], "x.onnx")


def test_convolutions_come_in_order() -> None:
    assert [n.name for n in convolutions(harmonizer())] == ["stem", "down", "block", "up", "join", "last"]


def test_more_outputs_are_given_once() -> None:
    model = with_outputs(harmonizer(), ["sum_out", "sum_out", "volume", "harmonized"])
    assert [o.name for o in model.graph.output] == ["harmonized", "sum_out"]


def test_float16_of_one_convolution_is_its_rounding() -> None:
    """Against arithmetic in numpy: input and weights rounded, the result rounded."""
    model = harmonizer()
    reads = with_outputs(in_half(model, ["stem"]), ["stem_out"])
    volume = grids(1)
    backend = open_backend("onnxruntime", reads.SerializeToString(), device="cpu")
    found = backend.run(volume[:, None])["stem_out"][0]
    backend.close()
    w, b = (weight(model, f"stem.{k}").astype(np.float16).astype(np.float64) for k in ("weight", "bias"))
    x = np.pad(volume[0].astype(np.float16).astype(np.float64), 1)
    at = (3, 8, 9, 7)
    exact = (x[8:11, 9:12, 7:10] * w[3, 0]).sum() + b[3]
    assert found[at] == np.float16(found[at])  # what comes out is a float16 number
    assert found[at] == pytest.approx(exact, rel=2**-10, abs=1e-3)


@pytest.mark.parametrize("factor", [2e5, 1e7], ids=["results overflow", "weights overflow"])
def test_float16_overflows_as_on_a_gpu(factor: float) -> None:
    """The norm behind `block` undoes the factor, so that the float32 network does not notice it."""
    model = harmonizer()
    loud = with_weight(model, "block.weight", weight(model, "block.weight") * factor)
    assert (np.abs(weight(loud, "block.weight")).max() > 65504) == (factor > 1e6)
    measure = DeviationMeasure(loud, grids(1))
    assert np.isinf(measure(in_half(loud, ["block"])).intensity)
    assert measure(in_half(loud, ["down"])).intensity < 0.01


def test_an_unknown_node_is_refused() -> None:
    with pytest.raises(HzError, match="no node 'blok'"):
        in_half(harmonizer(), ["blok"])
