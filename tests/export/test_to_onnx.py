"""Checkpoints to float32 graphs: same answers as torch, a clean interface, nothing of this machine inside."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from hz_export import to_onnx as exporter  # noqa: E402
from hz_export.graph_precision import achieved, half_weights, to_half  # noqa: E402
from hz_export.quantize import to_int8  # noqa: E402
from hz_export.to_onnx import cleaned, read_checkpoint, specs, with_features  # noqa: E402
from hz_runtime.backends.registry import open_backend  # noqa: E402
from hz_runtime.errors import HzError, UsageError  # noqa: E402
from small_plans import plan_of  # noqa: E402

OUTPUTS = {"harmonizer": ("harmonized", ["N", 1, 64, 64, 64]), "age": ("age", ["N", 1])}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """role -> (torch network, ONNX model) of the tiny checkpoints."""
    from small_checkpoints import write_age, write_harmonizer

    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for write in (write_harmonizer, write_age):
        checkpoint = read_checkpoint(write(folder))
        model = exporter.to_onnx(checkpoint.network, OUTPUTS[checkpoint.role][0])
        found[checkpoint.role] = (checkpoint.network, model)
    return found


@pytest.mark.parametrize("role", OUTPUTS)
def test_interface_is_the_manifests(exported, role: str) -> None:
    model = exported[role][1]
    name, shape = OUTPUTS[role]
    assert specs(model.graph.input) == [{"name": "volume", "shape": ["N", 1, 64, 64, 64], "dtype": "float32"}]
    assert specs(model.graph.output) == [{"name": name, "shape": shape, "dtype": "float32"}]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("role", OUTPUTS)
@pytest.mark.parametrize("n", [1, 3])
def test_answers_as_torch_for_any_batch(exported, role: str, n: int) -> None:
    network, model = exported[role]
    volumes = np.random.default_rng(n).random((n, 1, 64, 64, 64), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(volumes)).numpy()
    (found,) = open_backend("onnxruntime", model.SerializeToString(), device="cpu").run(volumes).values()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["fp32", "half weights", "fp16", "int8"])
def test_an_age_network_gives_its_features_in_every_form(exported, engine: str, form: str) -> None:
    network, plain = exported["age"]
    full = with_features(plain)
    assert specs(full.graph.output)[1] == {"name": "features", "shape": ["N", 64], "dtype": "float32"}
    assert [node.op_type for node in full.graph.node] == [node.op_type for node in plain.graph.node]
    made = {"fp32": lambda model: model, "half weights": half_weights, "fp16": to_half, "int8": in_int8}
    volumes = np.random.default_rng(4).random((3, 1, 64, 64, 64), dtype=np.float32)
    with torch.no_grad():
        given = torch.from_numpy(volumes)
        expected = {"age": network(given).numpy(), "features": network.last_features(given).numpy()}
    found = open_backend(engine, made[form](full).SerializeToString(), device="cpu").run(volumes)
    assert found.keys() == expected.keys()
    rel = {"fp32": 1e-4, "half weights": 5e-3, "fp16": 1e-2, "int8": 0.1}[form]
    scale = np.abs(expected["features"]).max()
    np.testing.assert_allclose(found["features"], expected["features"], atol=rel * scale, rtol=0)
    np.testing.assert_allclose(found["age"], expected["age"], rtol=rel)
    with pytest.raises(HzError, match="no last linear layer"):
        with_features(exported["harmonizer"][1])


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """All convolutions but the first and the last, in weights that no CPU cuts off."""
    return to_int8(model, replace(plan_of(model, "age"), weight_bits=7))


def test_operations_are_kept_whole_and_batch_norm_is_folded(exported) -> None:
    generator = Counter(node.op_type for node in exported["harmonizer"][1].graph.node)
    assert generator == {
        "Conv": 14, "ConvTranspose": 2, "InstanceNormalization": 15, "Relu": 15, "Add": 5, "Concat": 3,
        "Clip": 1,
    }  # fmt: skip
    age = Counter(node.op_type for node in exported["age"][1].graph.node)
    assert age["Conv"] == 5
    assert age["Gemm"] == 2
    assert "BatchNormalization" not in age


def test_the_real_graphs_keep_the_precision_policy(exported) -> None:
    generator, age = (achieved(to_half(exported[role][1])) for role in OUTPUTS)
    assert generator.precision == age.precision == "fp16"
    assert generator.faults == age.faults == ()
    assert generator.casts == 32  # one in, one out, two around each of 15 norms
    assert age.operations["Gemm"] == {"fp32": 2}


@pytest.mark.parametrize("role", OUTPUTS)
def test_nothing_of_the_exporting_machine_is_inside(exported, role: str) -> None:
    data = exported[role][1].SerializeToString()
    for trace in (
        os.getcwd(),
        str(Path(torch.__file__).parent),
        "site-packages",
        "stack_trace",
        ".py",
        "/home/",
    ):
        assert trace.encode() not in data
    assert getpass.getuser() == "root" or getpass.getuser().encode() not in data


def test_external_weights_are_refused(exported) -> None:
    from hz_runtime.errors import HzError

    model = onnx.ModelProto()
    model.CopyFrom(exported["age"][1])
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(HzError, match="lies outside the model"):
        cleaned(model)


def test_a_checkpoint_knows_its_network(make_harmonizer) -> None:
    checkpoint = read_checkpoint(make_harmonizer())
    assert checkpoint.role == "harmonizer"
    assert not checkpoint.network.training
    assert checkpoint.parameters == sum(p.numel() for p in checkpoint.network.parameters())
    assert len(checkpoint.sha256) == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "patch_cyclegan"}, "holds a 'patch_cyclegan'"),
        ({"network": {"width": 3}}, "does not fit its network"),
        ({"network": {"depth": 3}}, "does not fit its network"),
    ],
)
def test_checkpoints_that_are_something_else_are_refused(make_harmonizer, changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_checkpoint(make_harmonizer(**changes))


def test_a_diverged_checkpoint_is_refused(make_harmonizer) -> None:
    from hz_train.checkpoint import load_checkpoint, save_checkpoint

    path = make_harmonizer()
    tensors, meta = load_checkpoint(path)
    tensors["generator.last.bias"][:] = float("nan")
    save_checkpoint(path, tensors, meta)
    with pytest.raises(UsageError, match=r"last\.bias holds non-finite"):
        read_checkpoint(path)


def test_missing_and_torn_checkpoints_are_refused(make_harmonizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a complete checkpoint"):
        read_checkpoint(tmp_path / "absent.safetensors")
    path = make_harmonizer()
    with path.open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(UsageError, match="does not match its JSON"):
        read_checkpoint(path)
