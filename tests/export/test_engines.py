"""The engines of a bundle where TensorRT cannot build them all; a stand-in builds them, or says why not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hz_export import engines
from hz_export.engine_messages import build_error
from hz_export.engine_target import EngineOptions
from hz_export.engines import Engines, EnginesMissing, engines_of
from hz_export.export_options import ExportOptions
from hz_runtime.errors import BackendError, HzError

# What TensorRT for RTX 1.7.1.116 logs.
CONVOLUTION = "Cannot compile operation 'conv' for Turing (SM75): FP32 3D convolution is not supported."
PRODUCT = "Cannot compile operation 'node_linear' for Turing (SM75): FP32 GEMM is not supported."
BFLOAT = "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16"
MODELS = [
    {"file": f"{role}{end}.onnx", "role": role, "precision": word}
    for role in ("harmonizer", "age")
    for word, end in (("fp32", ""), ("fp16", ".fp16"), ("bf16", ".bf16"))
]


def refusal(file: str, capability: tuple[str, ...]) -> str:
    """Why there is no such engine; empty where there is."""
    if "7.5" not in capability:
        return ""
    return {"harmonizer.fp16.onnx": "", "age.fp16.onnx": PRODUCT}.get(
        file, BFLOAT if ".bf16" in file else CONVOLUTION
    )


@pytest.fixture(autouse=True)
def _builder(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(onnx: bytes, role: str, word: str, options: EngineOptions, **_: Any) -> Any:
        if text := refusal(options.name, options.capability):
            raise build_error([text], ["conv", "node_linear"], "TensorRT for RTX 1.7", options.name)
        shown = {"role": role, "precision": word, "capability": list(options.capability)}
        return SimpleNamespace(flavour="tensorrt_rtx", to_dict=lambda: shown), onnx

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(
        engines,
        "find_builder",
        lambda options: SimpleNamespace(capability=options.capability or ("8.6", "12.0")),
    )


def built(*precisions: str, capability: tuple[str, ...] = ("7.5",)) -> tuple[Engines, list[str]]:
    """(engines of both networks, the lines that were said)."""
    said: list[str] = []
    models = [model for model in MODELS if model["precision"] in ("fp32", *precisions)]
    options = ExportOptions(precisions=precisions, build=EngineOptions(capability=capability))
    return engines_of(models, {m["file"]: b"onnx" for m in models}, options, said.append), said


def made(found: Engines) -> list[tuple[str, list[str]]]:
    return [(entry["file"], entry["capability"]) for entry, _ in found.built]


def test_what_can_be_built_is_and_the_rest_is_said() -> None:
    found, said = built("fp16", "bf16")
    assert made(found) == [("harmonizer.fp16.tensorrt_rtx.engine", ["7.5"])]
    assert [line.split(": ")[0] for line in found.missing] == [
        "harmonizer.bf16.onnx for 7.5", "age.fp16.onnx for 7.5", "age.bf16.onnx for 7.5",
    ]  # fmt: skip
    assert said == [f"no engine: {line}" for line in found.missing]
    assert "at node_linear" in found.missing[1] and "FP32 GEMM is not supported" in found.missing[1]
    assert "TensorRT engines that could not be built: harmonizer.bf16.onnx for 7.5" in found.remark


def test_other_gpus_get_theirs() -> None:
    """An engine is for several GPUs: the one that cannot have it does not cost the others theirs."""
    found, _ = built(capability=("7.5", "8.6", "8.9"))
    assert [capability for _, capability in made(found)] == [["8.6", "8.9"]] * 2
    assert [line.split(": ")[0] for line in found.missing] == ["harmonizer.onnx for 7.5", "age.onnx for 7.5"]


def test_the_export_ends_with_what_is_missing() -> None:
    found, _ = built()
    assert not found.built and len(found.missing) == 2
    with pytest.raises(
        EnginesMissing, match=r"b\.hz is published, but without engines of harmonizer\.onnx for 7\.5; age"
    ) as error:
        found.require_all("b.hz")
    assert error.value.exit_code == 3
    assert "precision" not in error.value.remedy  # there may be none that can be built
    whole, said = built("fp16", capability=())
    whole.require_all("b.hz")
    assert len(whole.built) == 2 and not whole.remark and not said


def test_what_is_no_matter_of_the_gpu_ends_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise HzError("age.onnx: asked for fp16, TensorRT's layers compute in fp32.")

    monkeypatch.setattr(engines, "build_engine", refuse)
    with pytest.raises(HzError, match="asked for fp16"):
        built()


def test_a_graph_that_no_gpu_takes_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(_: bytes, __: str, ___: str, options: EngineOptions, **____: Any) -> Any:
        tried.append(options.name)
        raise build_error(["Could not infer output types"], [], "TensorRT 11", options.name)

    monkeypatch.setattr(engines, "build_engine", refuse)
    found, _ = built(capability=("8.6", "8.9"))
    assert (
        tried == ["harmonizer.onnx", "age.onnx"]
        and "for 8.6, 8.9: TensorRT 11 builds no engine (" in found.missing[0]
    )
    assert replace(found, missing=()).remark == ""
    assert isinstance(build_error(["CHECK(status == CUDA_SUCCESS) failed"], [], "T", "a"), BackendError)
