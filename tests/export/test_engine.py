"""TensorRT engines, really built (TensorRT for RTX needs no GPU): types read back, faults refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX:  pip install 'hz-mri[rtx]'")

from hz_export import to_onnx as exporter  # noqa: E402
from hz_export.engine import EngineOptions, build_engine  # noqa: E402
from hz_export.engine_messages import NoEngine, build_error, shortened  # noqa: E402
from hz_export.engine_report import inspected_types, network_types, require_built  # noqa: E402
from hz_export.graph_precision import to_reduced  # noqa: E402
from hz_export.to_onnx import OUTPUTS  # noqa: E402
from hz_runtime.bundle.engine_cache import Profile  # noqa: E402
from hz_runtime.errors import BackendError, BundleError, HzError  # noqa: E402

REFERENCE = Path(__file__).resolve().parents[2] / "runtime/hz_runtime/models/reference.hz"
PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture(scope="module")
def graphs() -> dict[str, ModelProto]:
    """Float32 graphs of both networks: the generator in full size, the age CNN four channels wide."""
    import torch

    from hz_train.age_cnn import AgeCNN
    from hz_train.volume_cyclegan import Generator

    torch.manual_seed(3)
    networks = {"harmonizer": Generator(), "age": AgeCNN(4)}
    return {role: exporter.to_onnx(network.eval(), OUTPUTS[role]) for role, network in networks.items()}


def small(nodes: list[Any], constants: dict[str, Any], channels: int = 2) -> bytes:
    """A model of (N, 1, 8, 8, 8) to y (N, channels, 8, 8, 8)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def plain() -> bytes:
    nodes = [helper.make_node("Conv", ["volume", "w"], ["y"], "conv", pads=[1] * 6)]
    return small(nodes, {"w": np.ones((2, 1, 3, 3, 3), np.float32)})


def quantized(bias: str = "float") -> bytes:
    """One convolution with int8 input and weights; its bias in float32, or wrongly quantized to int32."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["volume", "s", "z"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=0),
    ]
    constants: dict[str, Any] = {
        "s": np.float32(0.01), "z": np.int8(0), "w": np.full((2, 1, 3, 3, 3), 5, np.int8),
        "ws": np.full(2, 0.1, np.float32), "wz": np.zeros(2, np.int8),
    }  # fmt: skip
    if bias == "int32":
        nodes.append(node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], "bias_of_conv", axis=0))
        constants |= {
            "b": np.zeros(2, np.int32), "bs": np.full(2, 0.001, np.float32), "bz": np.zeros(2, np.int32)
        }  # fmt: skip
    else:
        constants["bd"] = np.zeros(2, np.float32)
    return small([*nodes, node("Conv", ["d", "wd", "bd"], ["y"], "conv", pads=[1] * 6)], constants)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("role", ["harmonizer", "age"])
def test_engines_of_both_networks_are_of_the_precision_asked_for(
    graphs: dict[str, ModelProto], role: str, precision: str
) -> None:
    data = to_reduced(graphs[role], precision).SerializeToString()
    record, made = build_engine(data, role, precision, EngineOptions(name=f"{role}.{precision}.onnx"))
    assert record.precision == precision
    assert set(record.layers) == {precision, "fp32"}
    # The generator: 14 convolutions, 15 activations, 5 additions, 3 joins, 2 transposed convolutions;
    # bfloat16 leaves the transposed ones and the joins they read in float32. The age CNN: 5, 4, 3 poolings.
    expected = {("harmonizer", "fp16"): 39, ("harmonizer", "bf16"): 35}
    assert record.layers[precision] == expected.get((role, precision), 12)
    assert record.capability == PORTABLE
    assert (record.bytes, record.profile, record.flags) == (len(made), Profile(1, 4, 16), ())
    assert record.version == trt.__version__


@pytest.mark.parametrize(("role", "inner"), [("harmonizer", 14), ("age", 3)])
def test_engines_of_both_networks_in_int8(graphs: dict[str, ModelProto], role: str, inner: int) -> None:
    """All convolutions but the first and the last, transposed ones too; everything else stays float32."""
    from hz_export.quantize import to_int8
    from small_plans import plan_of

    model = to_int8(graphs[role], plan_of(graphs[role], role))
    record, _ = build_engine(model.SerializeToString(), role, "int8", EngineOptions())
    assert record.precision == "int8"
    assert set(record.layers) == {"int8", "fp32"}
    assert record.layers["int8"] == inner


def test_every_reduced_file_that_ships_builds() -> None:
    from hz_runtime.bundle.store import load_bundle

    bundle = load_bundle(REFERENCE)
    reduced = [entry for entry in bundle.models if entry.precision != "fp32"]
    assert {(e.role, e.precision) for e in reduced} == {
        ("harmonizer", "fp16"),
        ("harmonizer", "int8"),
        ("age", "fp16"),
    }
    for entry in reduced:
        record, _ = build_engine(bundle.read(entry), entry.role, entry.precision, EngineOptions())
        assert record.precision == entry.precision


def test_one_quantized_convolution_is_int8() -> None:
    record, _ = build_engine(quantized(), "age", "int8", EngineOptions())
    assert (record.precision, dict(record.layers)) == ("int8", {"int8": 1})


def test_asking_for_fp16_and_getting_fp32_is_an_error(graphs: dict[str, ModelProto]) -> None:
    data = graphs["age"].SerializeToString()
    with pytest.raises(HzError, match=r"asked for fp16, TensorRT's layers compute in fp32 .*0% of the"):
        build_engine(data, "age", "fp16", EngineOptions(name="age.fp16.onnx"))


def test_a_norm_in_float16_is_refused() -> None:
    f16, node = np.float16, helper.make_node
    nodes = [
        node("Cast", ["volume"], ["x"], "in", to=TensorProto.FLOAT16),
        node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 6),
        node("InstanceNormalization", ["c", "one", "zero"], ["n"], "norm1"),
        node("Cast", ["n"], ["y"], "out", to=TensorProto.FLOAT),
    ]
    constants = {"w": np.ones((2, 1, 3, 3, 3), f16), "one": np.ones(2, f16), "zero": np.zeros(2, f16)}
    with pytest.raises(HzError, match=r"harmonizer\.onnx: norm norm1 computes in fp16"):
        build_engine(small(nodes, constants), "harmonizer", "fp16", EngineOptions(name="harmonizer.onnx"))


def test_an_int32_bias_is_refused_by_the_name_of_its_node() -> None:
    with pytest.raises(HzError) as caught:
        build_engine(quantized("int32"), "age", "int8", EngineOptions(name="age.int8.onnx"))
    said = caught.value.message
    assert said.startswith(f"age.int8.onnx: TensorRT for RTX {trt.__version__} refuses DequantizeLinear")
    assert "bias_of_conv" in said and "Int32" in said
    assert "\n" not in said and ".cpp" not in said and "cudaError" not in said


def test_an_unsorted_graph_is_refused_by_the_name_of_its_node(graphs: dict[str, ModelProto]) -> None:
    model = to_reduced(graphs["age"], "fp16")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[1], nodes[0], *nodes[2:]])
    with pytest.raises(HzError, match=f"not in topological order: Conv {nodes[1].name} reads"):
        build_engine(model.SerializeToString(), "age", "fp16", EngineOptions())


def test_what_the_builder_cannot_do_names_the_node() -> None:
    """TensorRT for RTX has no bfloat16 transposed convolution: the reason for the policy's exception."""
    kernel = numpy_helper.from_array(np.ones((1, 2, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["volume"], ["x"], "in", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["w"], ["v"], "narrow", to=TensorProto.BFLOAT16),
        helper.make_node("ConvTranspose", ["x", "v"], ["u"], "grow", pads=[1] * 6),
        helper.make_node("Cast", ["u"], ["y"], "out", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 8, 8, 8])],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises(HzError, match=r"x\.onnx: TensorRT for RTX \S+ builds no engine"):
        build_engine(model.SerializeToString(), "age", "bf16", EngineOptions(name="x.onnx"))


def test_a_gpu_that_lacks_the_arithmetic_is_named() -> None:
    """Turing has no float32 convolutions of volumes in TensorRT for RTX."""
    options = EngineOptions(name="x.onnx", capability=("7.5", "8.6"))
    with pytest.raises(NoEngine, match=r"builds no engine at conv .*FP32 3D convolution") as error:
        build_engine(plain(), "age", "fp32", options)
    assert error.value.capability == ("7.5",)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(BundleError, match=r"age\.onnx: not a readable ONNX model"):
        build_engine(os.urandom(500), "age", "fp32", EngineOptions(name="age.onnx"))


def test_messages_are_one_sentence_about_one_node() -> None:
    raw = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([type.cpp:186: infer_type] Could not infer "
        "output types for operation:  2914: deconv | cat-(bf16[{ForeignNode[conv_1...clip]}_shapeInput]), "
        "conv_10 filterWeights In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)"
    )
    error = build_error(["an earlier one", raw], ["conv_1", "conv_10", "clip"], "TensorRT 11", "age.onnx")
    assert error.message.startswith("age.onnx: TensorRT 11 builds no engine at conv_10 (Could not infer")
    assert "/_src" not in error.message
    no_driver = build_error(["CHECK(status == CUDA_SUCCESS) failed. "], [], "TensorRT 11", "age.onnx")
    assert isinstance(no_driver, BackendError)
    assert len(shortened("word " * 900)) < 210


# --- reading back -------------------------------------------------------------------------------------------


def test_flops_of_the_parsed_network_are_those_of_the_graph(graphs: dict[str, ModelProto]) -> None:
    """Two readers, one of ONNX and one of TensorRT's network, count the same arithmetic."""
    from hz_export.engine_messages import new_logger
    from hz_export.graph_precision import achieved

    for model in (to_reduced(graphs["harmonizer"], "bf16"), graphs["age"]):
        logger = new_logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(model.SerializeToString())
        found, graph = network_types(trt, network), achieved(model)
        assert sum(found.conv_flops.values()) == graph.conv_flops
        assert found.precision == graph.precision
        assert found.faults == ()


INSPECTED = {
    "Layers": [
        {"Name": "conv", "Outputs": [{"Name": "c", "Format/Datatype": "Channel major FP16 format"}]},
        {"Name": "norm", "Outputs": [{"Name": "n", "Format/Datatype": "Row major linear FP32"}]},
        {"Name": "b", "Outputs": [{"Name": "b", "Format": "Linear", "Datatype": "BFloat16"}]},
        {"Name": "h", "Outputs": [{"Name": "h", "Datatype": "Half"}]},
        "a name only",
    ]
}


def test_the_inspectors_words_are_counted() -> None:
    assert inspected_types(json.dumps(INSPECTED)) == {"bf16": 1, "fp16": 2, "fp32": 1}
    assert inspected_types("not JSON") == {}
    require_built({}, "fp16", "x")  # nothing stated, nothing to hold against it
    require_built({"fp16": 1, "fp32": 9}, "fp16", "x")
    with pytest.raises(HzError, match=r"none of the engine's layers computes in it \(9 fp32\)"):
        require_built({"fp32": 9}, "fp16", "x")
