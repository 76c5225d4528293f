"""The precision policy on small graphs whose right answer is written down here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hz_export.graph_precision import achieved, bfloat16_bytes, half_weights, require, to_half, to_reduced
from hz_runtime.errors import HzError

GRID = (8, 8, 8)
RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


def make(nodes: list, constants: dict, outputs: dict[str, list], ir: int = 10) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, *GRID])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=ir)
    onnx.checker.check_model(model, full_check=True)
    return model


def unet() -> ModelProto:
    """A generator in small: both norms share their scale, as torch writes norms without parameters."""
    node = helper.make_node
    nodes = [
        node("Conv", ["volume", "w1", "b1"], ["c1"], "conv1", pads=[1] * 6, strides=[2, 2, 2]),
        node("InstanceNormalization", ["c1", "one", "zero"], ["n1"], "norm1"),
        node("Relu", ["n1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 6),
        node("InstanceNormalization", ["c2", "one", "zero"], ["n2"], "norm2"),
        node("Add", ["n2", "r1"], ["a2"], "add"),
        node("Concat", ["a2", "r1"], ["j"], "join", axis=1),
        node(
            "ConvTranspose", ["j", "w3"], ["u"], "up", pads=[1] * 6, strides=[2, 2, 2], output_padding=[1] * 3
        ),
        node("Relu", ["u"], ["ru"], "relu2"),
        node("Concat", ["ru", "volume"], ["k"], "join2", axis=1),
        node("Conv", ["k", "w4", "b4"], ["last"], "conv3", pads=[1] * 6),
        node("Clip", ["last", "low", "high"], ["harmonized"], "clip"),
    ]
    constants = {
        "w1": weights(2, 1, 3, 3, 3), "b1": weights(2), "w2": weights(2, 2, 3, 3, 3),
        "w3": weights(4, 3, 3, 3, 3), "w4": weights(1, 4, 3, 3, 3), "b4": weights(1),
        "one": np.ones(2, np.float32),
        "zero": np.zeros(2, np.float32), "low": np.float32(-9), "high": np.float32(9),
    }  # fmt: skip
    return make(nodes, constants, {"harmonized": ["N", 1, *GRID]})


def run(model: ModelProto, volume: np.ndarray) -> np.ndarray:
    from hz_runtime.backends.registry import open_backend

    (found,) = (
        open_backend("onnxruntime", model.SerializeToString(), device="cpu", threads=1).run(volume).values()
    )
    return found


def volume(n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).random((n, 1, *GRID), dtype=np.float32)


def types(model: ModelProto) -> dict[str, int]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return {**found, **{t.name: t.data_type for t in model.graph.initializer}}


def test_golden_half_graph() -> None:
    half = to_half(unet())
    f16, f32 = TensorProto.FLOAT16, TensorProto.FLOAT
    kinds = types(half)
    found = [(n.op_type, [kinds[i] for i in n.input], kinds[n.output[0]]) for n in half.graph.node]
    assert found == [
        ("Cast", [f32], f16),
        ("Conv", [f16, f16, f16], f16),
        ("Cast", [f16], f32),
        ("InstanceNormalization", [f32, f32, f32], f32),
        ("Cast", [f32], f16),
        ("Relu", [f16], f16),
        ("Conv", [f16, f16], f16),
        ("Cast", [f16], f32),
        ("InstanceNormalization", [f32, f32, f32], f32),
        ("Cast", [f32], f16),
        ("Add", [f16, f16], f16),
        ("Concat", [f16, f16], f16),
        ("ConvTranspose", [f16, f16], f16),  # between the Concat and it: no Cast
        ("Relu", [f16], f16),
        ("Concat", [f16, f16], f16),  # reads the first Cast again: one a tensor, not one a reader
        ("Conv", [f16, f16, f16], f16),
        ("Cast", [f16], f32),
        ("Clip", [f32, f32, f32], f32),
    ]
    assert [(v.name, v.type.tensor_type.elem_type) for v in half.graph.output] == [("harmonized", f32)]


def test_no_cast_feeds_a_weight_and_shared_scales_are_stored_once() -> None:
    half = to_half(unet())
    stored = [tensor.name for tensor in half.graph.initializer]
    assert len(stored) == len(set(stored)) == 10
    made_by = {out: node.op_type for node in half.graph.node for out in node.output}
    for node in half.graph.node:
        assert all(
            name not in made_by for name in node.input[1:] if node.op_type in ("Conv", "ConvTranspose")
        )


def test_half_graph_answers_as_the_float32_one_does() -> None:
    single = run(unet(), volume())
    assert np.abs(run(to_half(unet()), volume()) - single).max() < 4e-3 * np.abs(single).max()


def test_the_model_given_is_left_alone() -> None:
    model = unet()
    before = model.SerializeToString(deterministic=True)
    to_half(model), half_weights(model), achieved(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_weight_used_in_both_types_is_stored_in_both() -> None:
    nodes = [
        helper.make_node("Conv", ["volume", "w", "b"], ["c"], "conv"),
        helper.make_node("Mul", ["c", "b"], ["y"], "scale"),
    ]
    half = to_half(make(nodes, {"w": weights(1, 1, 1, 1, 1), "b": weights(1)}, {"y": ["N", 1, *GRID]}))
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds == {"w_fp16": TensorProto.FLOAT16, "b_fp16": TensorProto.FLOAT16, "b": TensorProto.FLOAT}


def test_a_convolution_that_is_the_result_keeps_the_result_float32_and_its_name() -> None:
    nodes = [helper.make_node("Conv", ["volume", "w"], ["y"], "conv")]
    half = to_half(make(nodes, {"w": weights(1, 1, 1, 1, 1)}, {"y": ["N", 1, *GRID]}))
    assert [n.op_type for n in half.graph.node] == ["Cast", "Conv", "Cast"]
    assert half.graph.output[0].name == "y"
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_everything_after_the_last_convolution_stays_float32() -> None:
    nodes = [
        helper.make_node("Conv", ["volume", "w"], ["c"], "conv", strides=[4, 4, 4]),
        helper.make_node("LeakyRelu", ["c"], ["l"], "leaky1"),
        helper.make_node("Conv", ["l", "v"], ["d"], "conv2"),
        helper.make_node("LeakyRelu", ["d"], ["m"], "leaky2"),
        helper.make_node("Flatten", ["m"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g"], ["h"], "linear"),
        helper.make_node("Add", ["h", "mean"], ["age"], "years"),
    ]
    constants = {
        "w": weights(2, 1, 1, 1, 1), "v": weights(2, 2, 1, 1, 1), "g": weights(16, 1), "mean": weights(1)
    }  # fmt: skip
    found = achieved(to_half(make(nodes, constants, {"age": ["N", 1]})))
    assert found.operations == {
        "Add": {"fp32": 1},
        "Conv": {"fp16": 2},
        "Gemm": {"fp32": 1},
        "LeakyRelu": {"fp16": 1, "fp32": 1},
    }


def test_achieved_counts_what_is_computed_in_float16() -> None:
    single, half = achieved(unet()), achieved(to_half(unet()))
    # 2 x weights x positions: 54 x 4^3, 108 x 4^3, 324 x 4^3 (input positions of the transposed), 108 x 8^3
    assert single.conv_flops == half.conv_flops == 2 * ((54 + 108 + 324) * 64 + 108 * 512)
    assert (single.precision, single.conv_flops_fp16, single.conv_weights_fp16, single.casts) == (
        "fp32",
        0,
        0,
        0,
    )
    assert (half.precision, half.conv_flops_fp16, half.conv_weights_fp16, half.casts) == ("fp16", 1, 1, 6)
    assert half.operations["InstanceNormalization"] == {"fp32": 2}
    assert half.stored_bytes == {"fp16": 2 * (54 + 2 + 108 + 324 + 108 + 1), "fp32": 4 * 6}
    assert half.faults == ()


def test_a_norm_in_float16_is_reported_and_refused() -> None:
    half = to_half(unet())
    for node in half.graph.node:  # type norm1 by hand: no casts around it, a scale of its own
        if node.name == "norm1":
            node.input[0], node.output[0] = "c1", "n1_fp16"
            node.input[1], node.input[2] = "one_fp16", "zero_fp16"
    kept = [n for n in half.graph.node if n.name not in ("c1_to_fp32", "n1_to_fp16")]
    del half.graph.node[:], half.graph.value_info[:]
    half.graph.node.extend(kept)
    half.graph.initializer.extend(
        [numpy_helper.from_array(np.ones(2, np.float16), "one_fp16"),
         numpy_helper.from_array(np.zeros(2, np.float16), "zero_fp16")]
    )  # fmt: skip
    onnx.checker.check_model(half, full_check=True)
    assert achieved(half).faults == ("InstanceNormalization norm1 computes in fp16",)
    with pytest.raises(HzError, match="norm1 computes in fp16"):
        require(half, "fp16", "harmonizer.fp16.onnx")


def test_asking_for_fp16_and_getting_fp32_is_an_error() -> None:
    with pytest.raises(HzError, match=r"asked for fp16, the graph computes in fp32 \(0% of"):
        require(unet(), "fp16", "harmonizer.fp16.onnx")
    with pytest.raises(HzError, match="asked for fp32, the graph computes in fp16"):
        require(to_half(unet()), "fp32", "harmonizer.onnx")


def test_a_graph_without_convolutions_never_passes_as_fp16() -> None:
    model = make([helper.make_node("Sigmoid", ["volume"], ["y"], "s")], {}, {"y": ["N", 1, *GRID]})
    with pytest.raises(HzError, match="asked for fp16"):
        require(to_half(model), "fp16", "odd.onnx")


@pytest.mark.parametrize(("value", "said"), [(70000.0, "70000|7e"), (np.nan, "nan"), (-np.inf, "inf")])
@pytest.mark.parametrize("convert", [to_half, half_weights])
def test_a_weight_that_overflows_is_refused(convert, value: float, said: str) -> None:
    wide = weights(64, 16, 1, 1, 1)  # large enough to be stored as halves
    wide[0, 0] = value
    nodes = [
        helper.make_node("Conv", ["volume", "v"], ["c"], "conv0"),
        helper.make_node("Conv", ["c", "w"], ["y"], "conv1"),
    ]
    model = make(nodes, {"v": weights(16, 1, 1, 1, 1), "w": wide}, {"y": ["N", 64, *GRID]})
    with pytest.raises(HzError, match=rf"Weight w: ({said}).* does not fit into float16"):
        convert(model)


def test_tiny_weights_may_become_subnormal() -> None:
    nodes = [helper.make_node("Conv", ["volume", "w"], ["y"], "conv")]
    half = to_half(make(nodes, {"w": np.full((1, 1, 1, 1, 1), 1e-7, np.float32)}, {"y": ["N", 1, *GRID]}))
    (weight,) = (numpy_helper.to_array(t) for t in half.graph.initializer)
    assert weight.dtype == np.float16
    assert weight.item() == 2 * 2.0**-24  # the nearest multiple of float16's smallest number, 5.96e-8


def test_graphs_with_branches_or_other_types_are_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["volume"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 1, *GRID])],
    )
    node = helper.make_node("If", ["yes"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(HzError, match="If choice: graphs with branches"):
        to_half(make([node], {"yes": np.array(True)}, {"y": ["N", 1, *GRID]}))
    with pytest.raises(HzError, match=r"not float32 throughout \(found fp16\)"):
        to_half(to_half(unet()))


def test_half_weights_halve_the_file_and_compute_in_float32() -> None:
    big = weights(32, 32, 3, 3, 3)
    nodes = [
        helper.make_node("Conv", ["volume", "v", "b"], ["c"], "conv0", pads=[1] * 6),
        helper.make_node("Conv", ["c", "w"], ["y"], "conv1", pads=[1] * 6),
    ]
    constants = {"v": weights(32, 1, 3, 3, 3), "b": weights(32), "w": big}
    model = make(nodes, constants, {"y": ["N", 32, *GRID]})
    stored = half_weights(model)
    assert len(stored.SerializeToString()) < 0.55 * len(model.SerializeToString())
    found = require(stored, "fp32", "harmonizer.onnx")
    assert found.operations["Conv"] == {"fp32": 2}
    assert found.stored_bytes == {"fp16": 2 * big.size, "fp32": 4 * (32 * 27 + 32)}
    rounded = make(
        nodes, {**constants, "w": big.astype(np.float16).astype(np.float32)}, {"y": ["N", 32, *GRID]}
    )
    np.testing.assert_array_equal(run(stored, volume()), run(rounded, volume()))


def test_golden_bfloat16_graph() -> None:
    """As in float16, but the transposed convolution and the join that it reads stay in float32."""
    model = to_reduced(unet(), "bf16")
    b16, f32 = TensorProto.BFLOAT16, TensorProto.FLOAT
    kinds = types(model)
    found = [(n.op_type, [kinds[i] for i in n.input], kinds[n.output[0]]) for n in model.graph.node]
    assert found == [
        ("Cast", [f32], b16),
        ("Conv", [b16, b16, b16], b16),
        ("Cast", [b16], f32),
        ("InstanceNormalization", [f32, f32, f32], f32),
        ("Cast", [f32], b16),
        ("Relu", [b16], b16),
        ("Conv", [b16, b16], b16),
        ("Cast", [b16], f32),
        ("InstanceNormalization", [f32, f32, f32], f32),
        ("Cast", [f32], b16),
        ("Add", [b16, b16], b16),
        ("Cast", [b16], f32),
        ("Cast", [b16], f32),
        ("Concat", [f32, f32], f32),
        ("ConvTranspose", [f32, f32], f32),
        ("Cast", [f32], b16),
        ("Relu", [b16], b16),
        ("Concat", [b16, b16], b16),
        ("Conv", [b16, b16, b16], b16),
        ("Cast", [b16], f32),
        ("Clip", [f32, f32, f32], f32),
    ]
    assert [item.version for item in model.opset_import] == [22]  # the first with bfloat16 convolutions
    share = (54 + 108 + 108 * 8) / (54 + 108 + 324 + 108 * 8)  # all but the transposed one
    found = achieved(model)
    assert found.conv_flops_bf16 == pytest.approx(share, abs=1e-6)
    assert (found.precision, found.faults) == ("bf16", ())
    assert found.stored_bytes == {"bf16": 2 * (54 + 2 + 108 + 108 + 1), "fp32": 4 * (324 + 6)}


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    ulp = 2.0**-7  # of bfloat16 at 1
    given = np.float32([1, 1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp, -1 - 0.49 * ulp, 0, -0.0, 1e30, 3e-30])
    words = np.frombuffer(bfloat16_bytes(given), "<u2").astype("<u4") << 16
    back = words.view("<f4")
    np.testing.assert_array_equal(back[:7], np.float32([1, 1, 1 + 2 * ulp, 1 + ulp, -1, 0, -0.0]))
    np.testing.assert_allclose(back[7:], given[7:], rtol=2**-7)
    assert np.signbit(back[6])


def test_bfloat16_takes_weights_that_float16_does_not_but_no_others() -> None:
    nodes = [helper.make_node("Conv", ["volume", "w"], ["y"], "conv")]
    for value, fits in ((70000.0, True), (3.4e38, False), (np.nan, False)):
        wide = make(nodes, {"w": np.full((1, 1, 1, 1, 1), value, np.float32)}, {"y": ["N", 1, *GRID]})
        if fits:
            assert achieved(to_reduced(wide, "bf16")).precision == "bf16"
        else:
            with pytest.raises(HzError, match=r"Weight w: .* does not fit into bfloat16"):
                to_reduced(wide, "bf16")


def quantized(**changes: object) -> ModelProto:
    """Two convolutions in int8, a norm and a head in float32; `changes` break the policy one way each.

    norm_reads : the tensor that the norm reads.  bias : "int32" for a quantized one.  zero : the first
    quantizer's zero point.  head : whether the last convolution is quantized too.
    """
    node = helper.make_node
    q = {"s": np.float32(0.02), "z": np.int8(changes.get("zero", 0)), "z0": np.int8(0)}
    weights_ = {
        f"w{i}": np.full(shape, 3, np.int8)
        for i, shape in enumerate([(4, 1, 3, 3, 3), (4, 4, 3, 3, 3), (1, 4, 1, 1, 1)])
    }
    scales = {f"ws{i}": np.full(len(w), 0.01, np.float32) for i, w in enumerate(weights_.values())}
    zeros = {f"wz{i}": np.zeros(len(w), np.int8) for i, w in enumerate(weights_.values())}

    def pair(tensor: str, zero: str = "z0") -> list:
        return [
            node("QuantizeLinear", [tensor, "s", zero], [f"{tensor}_q"], f"{tensor}_quantize"),
            node("DequantizeLinear", [f"{tensor}_q", "s", zero], [f"{tensor}_d"], f"{tensor}_dequantize"),
        ]

    def weight(i: int) -> object:
        return node(
            "DequantizeLinear", [f"w{i}", f"ws{i}", f"wz{i}"], [f"w{i}_d"], f"w{i}_dequantize", axis=0
        )

    int32 = changes.get("bias") == "int32"
    constants = {
        **q,
        **weights_,
        **scales,
        **zeros,
        "one": np.ones(4, np.float32),
        "nil": np.zeros(4, np.float32),
    }
    constants |= (
        {"b": np.zeros(4, np.int32), "bs": np.full(4, 1e-3, np.float32), "bz": np.zeros(4, np.int32)}
        if int32
        else {"b_d": np.zeros(4, np.float32)}
    )
    nodes = [
        *pair("volume", "z"), weight(0), weight(1),
        *([node("DequantizeLinear", ["b", "bs", "bz"], ["b_d"], "b_dequantize", axis=0)] if int32 else []),
        node("Conv", ["volume_d", "w0_d", "b_d"], ["c0"], "conv0", pads=[1] * 6),
        *(pair("c0") if changes.get("norm_reads") else []),
        node("InstanceNormalization", [changes.get("norm_reads", "c0"), "one", "nil"], ["n"], "norm"),
        *pair("n"),
        node("Conv", ["n_d", "w1_d"], ["c1"], "conv1", pads=[1] * 6),
    ]  # fmt: skip
    if changes.get("head"):
        nodes += [*pair("c1"), weight(2), node("Conv", ["c1_d", "w2_d"], ["y"], "head")]
    else:
        nodes += [node("Conv", ["c1", "w2_f"], ["y"], "head")]
        constants["w2_f"] = np.ones((1, 4, 1, 1, 1), np.float32)
    used = {name for n in nodes for name in n.input}
    return make(nodes, {k: v for k, v in constants.items() if k in used}, {"y": ["N", 1, *GRID]})


def test_int8_is_the_share_of_convolutions_with_quantized_input_and_weights() -> None:
    found = require(quantized(), "int8", "age.int8.onnx")
    assert found.operations == {"Conv": {"fp32": 1, "int8": 2}, "InstanceNormalization": {"fp32": 1}}
    assert found.conv_flops_int8 == pytest.approx((108 + 432) / (108 + 432 + 4), abs=1e-6)
    assert found.stored_bytes["int8"] == 108 + 432 + 8 + 2  # weights, their zero points, and z, z0
    assert found.faults == ()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"bias": "int32"}, "DequantizeLinear b_dequantize reads an int32 bias, which TensorRT refuses"),
        ({"norm_reads": "c0_d"}, "InstanceNormalization norm reads quantized values"),
        ({"zero": 3}, "QuantizeLinear volume_quantize is not symmetric"),
        ({"head": True}, "Conv head is the network's head and computes in int8"),
    ],
)
def test_an_int8_graph_that_breaks_the_policy_is_refused(broken: dict[str, object], said: str) -> None:
    with pytest.raises(HzError, match=f"age.int8.onnx: .*{said}"):
        require(quantized(**broken), "int8", "age.int8.onnx")


def test_an_unsorted_graph_is_refused_by_the_name_of_its_node() -> None:
    half = to_half(unet())
    nodes = list(half.graph.node)
    del half.graph.node[:]
    half.graph.node.extend([*nodes[1:], nodes[0]])
    with pytest.raises(HzError, match=r"x\.onnx: not in topological order: Conv conv1 reads volume_fp16"):
        require(half, "fp16", "x.onnx")


def test_a_graph_whose_types_do_not_fit_is_refused() -> None:
    half = to_half(unet())
    tensor = next(t for t in half.graph.initializer if t.name == "w1_fp16")
    tensor.CopyFrom(numpy_helper.from_array(weights(2, 1, 3, 3, 3), "w1_fp16"))
    with pytest.raises(HzError, match=r"x\.onnx: not a sound ONNX graph"):
        require(half, "fp16", "x.onnx")
