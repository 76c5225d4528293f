"""The fake GPU of the tests against the real modules: every name, parameter and enum member that the runtime
uses is there. No TensorRT runtime is created: without a driver that would crash the interpreter."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.util import find_spec
from typing import Any

import pytest

from fake_gpu import Driver, fake_tensorrt
from hz_runtime.backends.trt import MODULES, _logger

KNOWN = [name for names in MODULES.values() for name in names]
REAL = [name for name in KNOWN if find_spec(name)] or KNOWN[:1]


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> Any:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    return importlib.import_module(request.param)


@pytest.fixture
def fake(real: Any) -> Any:
    return fake_tensorrt(Driver(), real.__name__)


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "_")]


def classes(fake: Any) -> list[type]:
    made = [fake.ILogger, fake.Runtime, fake.IRuntimeConfig, fake.ICudaEngine, fake.IExecutionContext]
    return [*made, fake.Refitter, *([fake.OnnxParserRefitter] if hasattr(fake, "OnnxParserRefitter") else [])]


def overloads(real_method: Any) -> list[str]:
    """Signatures in a pybind11 docstring, one or several."""
    name = real_method.__name__
    text = re.sub(r"<\w+\.\w+: \d+>", "DEFAULT", real_method.__doc__ or "")
    return re.findall(rf"(?m)^(?:\d+\. )?({re.escape(name)}\(.*)$", text)


def test_methods_and_their_parameters_are_real(real: Any, fake: Any) -> None:
    seen = 0
    for made in classes(fake):
        theirs = getattr(real, made.__name__)
        for name, method in inspect.getmembers(made, inspect.isfunction):
            if name == "__init__":
                continue
            assert hasattr(theirs, name), f"{real.__name__}.{made.__name__}.{name}"
            wanted = parameters(method)
            fitting = [
                text
                for text in overloads(getattr(theirs, name))
                if all(re.search(rf"\b{parameter}: ", text) for parameter in wanted)
                and text.count(": ") - ("self: " in text) == len(wanted)
            ]
            assert fitting, (name, wanted, overloads(getattr(theirs, name)))
            seen += 1
    assert seen >= 16


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        ("Runtime", "engine_host_code_allowed"),
        ("ICudaEngine", "num_io_tensors"),
        ("ICudaEngine", "device_memory_size_v2"),
    ],
)
def test_attributes_are_real(real: Any, owner: str, attribute: str) -> None:
    assert isinstance(inspect.getattr_static(getattr(real, owner), attribute), property)


def test_enums_are_real(real: Any, fake: Any) -> None:
    for enum in ("DataType", "TensorIOMode", "ExecutionContextAllocationStrategy"):
        ours, theirs = getattr(fake, enum), getattr(real, enum)
        assert {member.name for member in ours} <= set(theirs.__members__), enum


def test_only_rtx_records_graphs_by_itself(real: Any) -> None:
    """The runtime tells by this attribute who records CUDA graphs."""
    is_rtx = real.__name__ == "tensorrt_rtx"
    assert hasattr(real, "CudaGraphStrategy") == is_rtx
    if is_rtx:
        assert "WHOLE_GRAPH_CAPTURE" in real.CudaGraphStrategy.__members__
        assert isinstance(inspect.getattr_static(real.IRuntimeConfig, "cuda_graph_strategy"), property)


def test_only_those_with_a_parser_put_weights_in(real: Any, fake: Any) -> None:
    assert hasattr(real, "OnnxParserRefitter") == hasattr(fake, "OnnxParserRefitter")
    if hasattr(real, "OnnxParserRefitter"):
        assert isinstance(inspect.getattr_static(real.OnnxParserRefitter, "num_errors"), property)
        wanted = ("refitter: ", "Refitter, logger: ")
        assert all(text in real.OnnxParserRefitter.__init__.__doc__ for text in wanted)
    assert "engine: " in real.Refitter.__init__.__doc__


def test_contexts_take_a_strategy_or_a_configuration(real: Any) -> None:
    texts = overloads(real.ICudaEngine.create_execution_context)
    assert any("strategy: " in text and "ExecutionContextAllocationStrategy" in text for text in texts)
    assert any("runtime_config: " in text and "IRuntimeConfig" in text for text in texts)


def test_the_logger_is_one_that_tensorrt_takes(real: Any, capfd: pytest.CaptureFixture[str]) -> None:
    kept: list[str] = []
    logger = _logger(real, kept)
    assert isinstance(logger, real.ILogger)
    for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        logger.log(getattr(real.ILogger, severity), f"{severity}\n  said")
    assert kept == ["ERROR said", "INTERNAL_ERROR said"]
    assert capfd.readouterr() == ("", "")


def test_versions_are_what_records_compare(real: Any) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.\d+)?", real.__version__)
    if real.__name__ != "tensorrt_rtx":
        assert int(real.__version__.split(".")[0]) >= 10


def test_the_drivers_functions_are_real() -> None:
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed here")
    real = importlib.import_module("cuda.bindings.driver")
    names = [name for name in dir(Driver) if name.startswith("cu")]
    assert len(names) >= 20
    for name in names:
        text = (getattr(real, name).__doc__ or "").splitlines()[0]
        found = re.fullmatch(rf"{name}\((.*)\)", text)
        assert found, text
        given = [part.split(":")[0].split()[-1] for part in found[1].split(", ") if part]
        assert given == parameters(getattr(Driver, name)), name
    for enum in ("CUstream_flags", "CUevent_flags", "CUstreamCaptureMode"):
        for member, value in vars(getattr(Driver, enum)).items():
            assert int(getattr(getattr(real, enum), member)) == value
    assert int(real.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == 2
    assert int(real.CUstream(7)) == 7  # how TensorRT is given a stream
    assert int(real.CUdeviceptr(7)) == 7
    attributes = real.CUdevice_attribute
    assert int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == 75
    assert int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) == 76
    for code, name in ((34, "STUB_LIBRARY"), (100, "NO_DEVICE"), (802, "SYSTEM_NOT_READY")):
        assert int(getattr(real.CUresult, f"CUDA_ERROR_{name}")) == code
    for code, name in ((803, "SYSTEM_DRIVER_MISMATCH"), (804, "COMPAT_NOT_SUPPORTED_ON_DEVICE")):
        assert int(getattr(real.CUresult, f"CUDA_ERROR_{name}")) == code
