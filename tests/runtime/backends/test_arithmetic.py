"""What an engine computes in: int8 only where its own graph says so, whatever the file holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny
from hz_runtime.backends.arithmetic import executed_graph, executed_types, holds_only_float32, precision_of
from hz_runtime.backends.registry import installed, open_backend

SHAPE = ["N", 4, 8, 8, 8]


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def quantized() -> bytes:
    """A convolution whose input and weights are rounded to int8, as hz-export writes one."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["volume", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["kernel", "step", "none"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["made"], pads=[1] * 6),
    ]
    constants = {
        "kernel": rng.integers(-127, 127, (4, 4, 3, 3, 3)).astype(np.int8),
        "scale": np.float32(1 / 127),
        "zero": np.int8(0),
        "step": np.full(4, 1e-3, np.float32),
        "none": np.zeros(4, np.int8),
    }
    return model(nodes, constants)


def half() -> bytes:
    nodes = [
        helper.make_node("Cast", ["volume"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6),
        helper.make_node("Cast", ["y"], ["made"], to=TensorProto.FLOAT),
    ]
    return model(nodes, {"w": np.ones((4, 4, 3, 3, 3), np.float16)})


def test_words_are_few_and_in_order() -> None:
    assert precision_of(["fp32", "int8", "fp32", ""]) == "int8+fp32"
    assert precision_of(["fp32", "bf16", "fp16"]) == "fp16+bf16+fp32"
    assert precision_of([]) == "fp32"


def test_shares_are_of_all_operators_and_the_word_is_of_the_heavy_ones() -> None:
    ran = [(True, "int8"), (True, "fp32"), (False, "fp32"), (False, "fp32"), (False, "")]
    executed = executed_types(ran)
    assert executed.precision == "int8+fp32"
    assert executed.operators == {"int8": 0.25, "fp32": 0.75}
    assert executed_types([(False, "")]).operators == {"fp32": 1.0}


def test_a_file_of_float32_needs_no_look() -> None:
    kernel = {"w": np.ones((4, 4, 3, 3, 3), np.float32)}
    assert holds_only_float32(model([helper.make_node("Conv", ["volume", "w"], ["made"])], kernel))
    assert not any(map(holds_only_float32, (quantized(), half(), tiny.harmonizer_onnx("fp16"))))


def test_convolutions_count_and_what_is_around_them_does_not() -> None:
    """Of the file as it stands, which an engine may run otherwise: a float Conv behind DequantizeLinear."""
    assert executed_graph(quantized()).precision == "fp32"
    assert executed_graph(half()).precision == "fp16"
    integer = [
        helper.make_node("DynamicQuantizeLinear", ["volume"], ["q", "scale", "zero"]),
        helper.make_node("ConvInteger", ["q", "w"], ["i"], pads=[1] * 6),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["f", "k"], ["made"], pads=[1] * 6),
    ]
    constants = {"w": np.ones((4, 4, 3, 3, 3), np.int8), "k": np.ones((4, 4, 3, 3, 3), np.float32)}
    assert executed_graph(model(integer, constants)).precision == "int8+fp32"
    assert executed_graph(model([helper.make_node("Relu", ["volume"], ["made"])], {})).precision == "fp32"


@pytest.mark.parametrize(
    ("engine", "achieved"),
    [
        ("onnxruntime", {"int8": "fp32", "fp16": "fp32"}),  # it has no int8 convolution of volumes
        ("openvino", {"int8": "int8", "fp16": "fp32"}),
    ],
)
def test_engines_say_what_they_run(engine: str, achieved: dict[str, str]) -> None:
    if engine not in dict(installed()):
        pytest.skip(f"{engine} is not installed here")
    if engine == "openvino" and not _has_int8():
        achieved = {**achieved, "int8": "fp32"}
    batch = np.random.default_rng(1).random((2, 4, 8, 8, 8), dtype=np.float32)
    for data, precision in ((quantized(), "int8"), (half(), "fp16")):
        backend = open_backend(engine, data, device="cpu", threads=1)
        assert backend.precision == achieved[precision]
        assert abs(sum(backend.operators.values()) - 1) < 1e-3
        assert achieved[precision] in backend.operators
        assert backend.run(batch)["made"].shape == batch.shape  # the graph that was looked at still runs
        backend.close()


def _has_int8() -> bool:
    """OpenVINO's own word on this CPU."""
    import openvino

    return "INT8" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
