"""Int8 graphs: the arithmetic of the quantizers, the rules TensorRT sets, and engines that must agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime", reason="calibration needs onnxruntime")

from hz_calibration.deviation import BRAIN_ABOVE, Budget, answers
from hz_calibration.graph import fingerprint, with_outputs
from hz_calibration.plan import PrecisionPlan
from hz_calibration.ranges import Range, collect, ranges
from hz_export.quantize import to_int8
from hz_runtime.backends.registry import open_backend
from hz_runtime.errors import HzError, UsageError
from small_networks import INNER, age, grids, harmonizer, weight, with_half_weights, with_weight

READ = {"down": "stem_relu_out", "block": "down_relu_out", "up": "cat_out", "join": "cat2_out"}


def planned(model: ModelProto, nodes: tuple[str, ...] = INNER, **changes: Any) -> PrecisionPlan:
    """A plan with measured ranges, all of `nodes` in int8."""
    tensors = [n.input[0] for n in model.graph.node if n.name in nodes]
    plan = PrecisionPlan(
        role="harmonizer",
        network=fingerprint(model),
        method="minmax",
        weight_bits=8,
        budget=Budget(1.0),
        ranges=ranges(collect(model, tensors, grids(2)), "minmax"),
        int8=nodes,
        kept=(),
        half_kept=(),
        nodes=(),
        whole={},
        scans=(),
        engine="",
    )
    return replace(plan, **changes)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return harmonizer()


@pytest.fixture(scope="module")
def int8(model: ModelProto) -> ModelProto:
    return to_int8(model, planned(model))


def relative(found: np.ndarray, expected: np.ndarray, volumes: np.ndarray) -> float:
    """Mean absolute difference over mean absolute intensity, inside the brain."""
    brain = volumes > BRAIN_ABOVE
    return float(np.abs(found - expected)[brain].mean() / np.abs(expected[brain]).mean())


def test_only_the_planned_convolutions_read_quantized_values(int8: ModelProto) -> None:
    makers = {name: node for node in int8.graph.node for name in node.output}
    assert set(INNER) <= {node.name for node in int8.graph.node}
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        from_quantized = [makers[n].op_type == "DequantizeLinear" for n in node.input if n in makers]
        assert any(from_quantized) == (node.name in INNER), node.name


def test_what_tensorrt_demands_of_quantizers(int8: ModelProto) -> None:
    weights = {t.name: t for t in int8.graph.initializer}
    assert not any(t.data_type in (TensorProto.INT32, TensorProto.UINT8) for t in int8.graph.initializer)
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = weights[node.input[2]]
            assert zero.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero).any()
        if node.name in INNER:
            assert weights[node.input[2]].data_type == TensorProto.FLOAT  # the bias


@pytest.mark.parametrize("name, axis", [("down", 0), ("up", 1)])
@pytest.mark.parametrize("bits, levels", [(8, 127), (7, 63)])
def test_weights_are_rounded_per_output_channel(
    model: ModelProto, name: str, axis: int, bits: int, levels: int
) -> None:
    made = to_int8(model, planned(model, weight_bits=bits))
    dequantize = next(n for n in made.graph.node if n.name == f"{name}_weight_dequantize")
    assert helper.get_node_attr_value(dequantize, "axis") == axis
    steps, scale = weight(made, f"{name}_weight_int8"), weight(made, f"{name}_weight_scale")
    assert steps.dtype == np.int8
    assert np.abs(steps.astype(int)).max(tuple(k for k in range(5) if k != axis)).tolist() == [levels] * len(
        scale
    )
    shape = [-1 if k == axis else 1 for k in range(5)]
    gap = np.abs(steps * scale.reshape(shape) - weight(model, f"{name}.weight"))
    assert (gap <= scale.reshape(shape) * 0.5001).all()


def test_a_dead_channel_has_no_step_of_zero(model: ModelProto) -> None:
    """Weights that have decayed to float32's last numbers: a step of 0 would make them NaN."""
    values = weight(model, "down.weight").copy()
    values[0] = 1e-44
    faint = with_weight(model, "down.weight", values)
    made = to_int8(faint, planned(faint))
    scale = weight(made, "down_weight_scale")
    assert scale[0] == 1 and (scale[1:] < 1).all()
    assert not weight(made, "down_weight_int8")[0].any()
    assert Range(1e-44, 0.0, 1e-44).scale == 1.0


def test_activations_are_rounded_to_the_plans_steps(model: ModelProto) -> None:
    """Against numpy, at a tensor that is quantized: q = clip(round(x / s), -128, 127), x' = q * s."""
    plan = planned(model)
    plan = replace(plan, ranges={**plan.ranges, READ["down"]: Range(1.5, 0.0, 9.0)})  # cuts what is larger
    made = with_outputs(to_int8(model, plan), [READ["down"], f"{READ['down']}_dequantized"])
    backend = open_backend("onnxruntime", made.SerializeToString(), device="cpu")
    found = backend.run(grids(1)[:, None])
    backend.close()
    step = np.float32(1.5 / 127)
    exact = np.clip(np.rint(found[READ["down"]] / step), -128, 127) * step
    np.testing.assert_allclose(found[f"{READ['down']}_dequantized"], exact, atol=1e-6)
    assert found[READ["down"]].max() > 1.5


def test_a_tensor_is_quantized_once_however_many_read_it() -> None:
    model = harmonizer()
    block = next(n for n in model.graph.node if n.name == "block")
    twin = onnx.NodeProto()
    twin.CopyFrom(block)
    twin.name, twin.output[0] = "twin", "twin_out"
    model.graph.node.insert(list(model.graph.node).index(block), twin)
    made = to_int8(model, planned(model, (*INNER, "twin")))
    assert [n.name for n in made.graph.node].count(f"{READ['block']}_quantize") == 1


def test_a_plan_holds_for_weights_stored_in_half(model: ModelProto) -> None:
    made = to_int8(with_half_weights(model), planned(model))
    assert relative(answers(made, grids(1)), answers(model, grids(1)), grids(1)) < 0.05


def test_a_plan_for_other_weights_is_refused(model: ModelProto) -> None:
    with pytest.raises(UsageError, match="another harmonizer network"):
        to_int8(harmonizer(seed=8), planned(model))


def test_a_plan_that_does_not_fit_is_refused(model: ModelProto) -> None:
    with pytest.raises(HzError, match="sum, which is no convolution"):
        to_int8(model, replace(planned(model), int8=("sum",)))
    with pytest.raises(HzError, match="no range for stem_relu_out"):
        to_int8(model, planned(model, ranges={}))
    nan = with_weight(model, "block.weight", weight(model, "block.weight") * np.nan)
    with pytest.raises(HzError, match="not finite"):
        to_int8(nan, planned(model, network=fingerprint(nan)))


def test_an_int8_network_stays_near_the_float32_one(model: ModelProto, int8: ModelProto) -> None:
    volumes = grids(2)
    assert 0 < relative(answers(int8, volumes), answers(model, volumes), volumes) < 0.05


def sums_without_overflow() -> bool:
    """Whether this CPU adds products of 8-bit numbers in 32 bits, as VNNI and AMX do; AVX2 in 16."""
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and bool(re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", cpu.read_text()))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("nodes", [INNER, *((name,) for name in INNER)], ids=["all", *INNER])
def test_openvino_gives_what_onnxruntime_gives(model: ModelProto, nodes: tuple[str, ...], bits: int) -> None:
    pytest.importorskip("openvino")
    if bits == 8 and not sums_without_overflow():
        pytest.skip("this CPU has neither VNNI nor AMX: 8-bit weights overflow in OpenVINO")
    volumes = grids(1)
    made = to_int8(model, planned(model, nodes, weight_bits=bits))
    one, other = answers(made, volumes), answers(made, volumes, "openvino")
    # Rounding to the other side of a step, as in float32 itself; steps of 7-bit weights are twice as long.
    assert relative(other, one, volumes) < 0.004 * 2 ** (8 - bits)


def test_openvino_goes_wrong_without_the_guard(model: ModelProto) -> None:
    """Why the Clip is there. When this fails, OpenVINO was repaired: the guard can go."""
    pytest.importorskip("openvino")
    volumes = grids(1)
    made = to_int8(model, planned(model, ("join",)))
    clip = next(n for n in made.graph.node if n.name == "cat2_out_hold")
    for node in made.graph.node:
        if node.name == "cat2_out_quantize":
            node.input[0] = clip.input[0]
    made.graph.node.remove(clip)
    one, other = answers(made, volumes), answers(made, volumes, "openvino")
    assert relative(other, one, volumes) > 0.05


def test_the_guard_stands_only_where_a_conv_reads_a_concat(int8: ModelProto) -> None:
    assert [n.name for n in int8.graph.node if n.name.endswith("_hold")] == ["cat2_out_hold"]


OLD_CPU = """
import sys
import numpy, onnx
from hz_calibration.deviation import answers
from small_networks import grids
for path in sys.argv[1:]:
    made = onnx.load(path)
    gap = answers(made, grids(1), "openvino") - answers(made, grids(1))
    print(float(numpy.abs(gap)[grids(1) > 0.02].mean()))
"""


def test_seven_bit_weights_do_not_overflow_on_cpus_without_vnni(
    model: ModelProto, tmp_path: Path, root: Path
) -> None:
    """oneDNN is told to use AVX2 at most; ranges are cut, so that many activations are at the largest."""
    pytest.importorskip("openvino")
    plan = planned(model, ("down",))
    narrow = {k: replace(r, amax=r.amax / 4) for k, r in plan.ranges.items()}
    for bits in (8, 7):
        made = to_int8(model, replace(plan, ranges=narrow, weight_bits=bits))
        onnx.save(made, tmp_path / f"{bits}.onnx")
    rooms = ("runtime", "calibration", "train", "export", "cli", "tests")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(root / r) for r in rooms),
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    command = [sys.executable, "-c", OLD_CPU, str(tmp_path / "8.onnx"), str(tmp_path / "7.onnx")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    eight, seven = map(float, done.stdout.split())
    assert seven < 2e-3
    assert eight > 2 * seven


def test_an_age_network_is_quantized_too() -> None:
    model = age()
    made = to_int8(model, planned(model, ("b",), role="age"))
    assert np.abs(answers(made, grids(2)) - answers(model, grids(2))).max() < 0.5


@pytest.mark.parametrize("role", ["harmonizer", "age"])
def test_tensorrt_builds_it(role: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    network = {"harmonizer": harmonizer, "age": age}[role]()
    made = to_int8(network, planned(network, INNER if role == "harmonizer" else ("b",), role=role))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parsed = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse(made.SerializeToString()), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    kinds = [parsed.get_layer(i).type for i in range(parsed.num_layers)]
    assert trt.LayerType.QUANTIZE in kinds
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("volume", (1, 1, 16, 16, 16), (2, 1, 16, 16, 16), (4, 1, 16, 16, 16))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(parsed, config) is not None
