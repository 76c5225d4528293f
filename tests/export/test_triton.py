"""A bundle as a model repository of Triton, read back by the protobuf that Triton's client brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from fake_gpu import engine_bytes, record_of
from hz_cli.export import main
from hz_export.triton import write_repository
from hz_runtime.backends.kserve import model_name
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_bytes


@pytest.fixture(scope="module")
def with_engines(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with engines of its harmonizer: one that Triton takes, and two that it does not."""
    files = tiny.tiny_files()
    sha256 = sha256_bytes(files["harmonizer.fp16.onnx"])
    engines = {
        "harmonizer.plan": {"flags": ()},
        "harmonizer.rtx.plan": {"flavour": "tensorrt_rtx"},
        "harmonizer.thin.plan": {"flags": ("stripped",)},
    }
    entries = []
    for number, (name, changed) in enumerate(engines.items()):
        data = engine_bytes(profile=(1, 2, 8), number=number)
        files[name] = data
        record = record_of(data, model_sha256=sha256, **changed)
        entries.append({"file": name, **record.to_dict(), "parity": {}})
    path = tmp_path_factory.mktemp("engines") / "tiny.hz"
    return write_bundle(path, {**tiny.tiny_manifest(), "engines": entries}, files)


def test_the_files_are_the_bundles(with_engines: Bundle, tmp_path: Path) -> None:
    lines: list[str] = []
    names = write_repository(with_engines, tmp_path / "models", say=lines.append)
    served = {path.parent.name: path for path in tmp_path.glob("models/*/config.pbtxt")}
    assert set(served) == set(names)
    assert set(names) == {
        *(model_name(entry.sha256) for entry in with_engines.models),
        f"{model_name(with_engines.model('harmonizer', precision='fp16').sha256)}-tensorrt",
    }
    for entry in with_engines.models:
        file = tmp_path / "models" / model_name(entry.sha256) / "1" / "model.onnx"
        assert file.read_bytes() == with_engines.read(entry)
    (plan,) = tmp_path.glob("models/*/1/model.plan")
    assert plan.read_bytes() == with_engines.read_listed("harmonizer.plan")
    assert [line for line in lines if line.startswith("left out")] == [
        "left out: harmonizer.rtx.plan (Triton has no TensorRT for RTX)",
        "left out: harmonizer.thin.plan (it has no weights)",
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_repository(with_engines, tmp_path / "models")  # again, and into the same folder
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_tritons_own_reading(with_engines: Bundle, tmp_path: Path) -> None:
    """Parsed by the protobuf that tritonclient brings: an unknown field or a wrong type is an error there."""
    model_config_pb2 = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc], Triton's own client"
    )
    from google.protobuf import text_format

    write_repository(with_engines, tmp_path, instances=2)
    fp16 = with_engines.model("harmonizer", precision="fp16")
    name = model_name(fp16.sha256)
    read = {
        path.parent.name: text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for path in tmp_path.glob("*/config.pbtxt")
    }
    for folder, config in read.items():
        assert config.name == folder
        (group,), (source,) = config.instance_group, config.input
        assert group.count == 2
        assert (source.name, list(source.dims)) == ("volume", [1, *tiny.GRID])
        assert source.data_type == model_config_pb2.TYPE_FP32
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
        assert config.version_policy.latest.num_versions == 1
        assert {w.batch_size for w in config.model_warmup} == {1, config.max_batch_size}
        assert all(w.inputs["volume"].zero_data for w in config.model_warmup)
        assert config.parameters["hz_bundle"].string_value == with_engines.id
    onnx, built = read[name], read[f"{name}-tensorrt"]
    assert (onnx.platform, onnx.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert (built.platform, built.backend, built.max_batch_size) == ("tensorrt_plan", "tensorrt", 8)
    assert built.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert onnx.parameters["hz_sha256"].string_value == fp16.sha256
    age = read[model_name(with_engines.model("age").sha256)]
    assert [(one.name, list(one.dims)) for one in age.output] == [("age", [1])]


def test_a_folder_of_other_things_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        write_repository(load_bundle(tiny_bundle), tmp_path)


def test_the_command_needs_no_torch(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["--triton", str(tmp_path / "models"), str(tiny_bundle)])
    assert done.exit_code == 0, done.output
    held = json.loads((tiny_bundle / "bundle.json").read_text())["models"]
    assert len(list((tmp_path / "models").iterdir())) == len(held)
    assert "--require remote" in done.output
