"""The table of engines: names, order and messages come from its rows alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from hz_runtime.backends import registry
from hz_runtime.backends.fallback import Attempt
from hz_runtime.backends.registry import ENGINES, backend_names, engines_named, missing, open_backend
from hz_runtime.errors import BackendError, UsageError

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_those_of_the_rows() -> None:
    assert backend_names() == (
        "auto",
        "tensorrt",
        "tensorrt-rtx",
        "onnxruntime",
        "onnxruntime-cuda",
        "openvino",
        "onnxruntime-cpu",
        "remote",
    )
    assert (
        len({engine.name for engine in ENGINES}) == len({engine.label for engine in ENGINES}) == len(ENGINES)
    )


def test_a_family_stands_for_all_of_its_engines() -> None:
    assert [engine.name for engine in engines_named("onnxruntime")] == ["onnxruntime-cuda", "onnxruntime-cpu"]
    assert [engine.name for engine in engines_named("openvino")] == ["openvino"]
    # a scan leaves the machine only where that is asked for
    assert [engine for engine in ENGINES if engine not in engines_named("auto")] == [*engines_named("remote")]
    with pytest.raises(UsageError, match="'tpu'") as caught:
        engines_named("tpu")
    assert all(name in caught.value.remedy for name in backend_names())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_row_names_what_there_is(engine: registry.Engine) -> None:
    """Its file has the two functions, and its extra brings one of its distributions."""
    module = engine.module()
    assert callable(module.missing)
    assert callable(module.open_engine if engine.built else module.open_model)
    if not engine.extra:  # nothing is installed: it is elsewhere
        assert engine.by_name and "HZ_REMOTE=" in engine.install
        return
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {re.split(r"[\[<>=;\s]", line)[0] for line in extras[engine.extra]}
    assert brought & set(engine.distributions)
    assert f"'hz-mri[{engine.extra}]'" in engine.install


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_is_missing_has_a_remedy(engine: registry.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HZ_REMOTE", raising=False)
    if not engine.by_name:
        monkeypatch.setattr(engine.module(), "find_spec", lambda _: None)
    problem, remedy = missing(engine)
    assert problem and remedy and not problem.endswith(".")


def test_an_engine_that_does_not_run_there_is_named() -> None:
    with pytest.raises(BackendError, match="openvino does not open an ONNX file on cuda") as caught:
        open_backend("openvino", b"", device="cuda")
    assert "onnxruntime-cuda" in caught.value.remedy and "tensorrt" not in caught.value.remedy


def test_attempts_as_lines() -> None:
    openvino = engines_named("openvino")[0]
    lines = {
        Attempt(openvino, "unavailable", "openvino is not installed"): (
            "OpenVINO CPU: not available (openvino is not installed)"
        ),
        Attempt(openvino, "failed", "no such kernel", "a.onnx"): (
            "OpenVINO CPU: could not open a.onnx (no such kernel)"
        ),
        Attempt(openvino, "ran", "a.onnx (fp32) on a CPU", "a.onnx"): (
            "OpenVINO CPU: runs a.onnx (fp32) on a CPU"
        ),
    }
    assert {str(attempt): line for attempt, line in lines.items()} == {line: line for line in lines.values()}
