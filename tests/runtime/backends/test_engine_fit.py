"""Which engines fit this GPU and this TensorRT, and what is missing: told before TensorRT is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiny
from fake_gpu import HERE, Driver, engine_bytes, fake_tensorrt, install, record_of
from hz_runtime.backends import cuda_driver, trt
from hz_runtime.backends.cuda_driver import DriverState
from hz_runtime.backends.registry import engines_named, missing
from hz_runtime.backends.trt import MODULES, TensorRtBackend, _built_for, fits_gpu, open_engine, runs_on
from hz_runtime.errors import BackendError
from hz_runtime.io.atomic import sha256_bytes

PORTABLE = ("version_compatible",)
SMALL = {"grid": (6, 5, 4), "profile": (1, 2, 8)}


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    install(monkeypatch, made, fake_tensorrt(made))
    return made


def opened(**record: Any) -> TensorRtBackend:
    data = engine_bytes(**SMALL)
    return open_engine(data, record_of(data, **record), "e.engine")


def test_an_engine_of_another_gpu_is_refused_by_name(driver: Driver) -> None:
    with pytest.raises(BackendError, match=r"built for compute capability 9\.0, Fake GPU has 8\.9") as caught:
        opened(capability=("9.0",))
    assert "hz-export --fp16 --engine tensorrt" in caught.value.remedy
    assert not driver.calls


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        (("8.9",), "8.9", True),
        (("8.0", "8.6", "12.0"), "8.6", True),
        (("8.0", "8.6"), "9.0", False),
        (("8.0+",), "9.0", True),
        (("8.0+",), "12.0", True),
        (("8.0+",), "7.5", False),
    ],
)
def test_capability(built: tuple[str, ...], here: str, fits: bool) -> None:
    assert fits_gpu(record_of(engine_bytes(), capability=built), DriverState(capability=here)) is fits


@pytest.mark.parametrize(
    ("built", "flags", "module", "version", "runs"),
    [
        ("11.4.0.106", (), "tensorrt", "11.4.0.106", True),
        ("11.4.0.106", (), "tensorrt", "11.4.1.2", False),
        ("11.4.0.106", (), "tensorrt_lean", "11.4.0.106", False),
        ("11.3.0.1", PORTABLE, "tensorrt_lean", "11.4.0.106", True),
        ("11.5.0.1", PORTABLE, "tensorrt_lean", "11.4.0.106", False),
        ("10.13.0.35", PORTABLE, "tensorrt_lean", "11.4.0.106", True),
        ("8.6.1", PORTABLE, "tensorrt_lean", "11.4.0.106", False),
        ("11.3.0.1", PORTABLE, "tensorrt_dispatch", "11.4.0.106", True),
        ("11.3.0.1", (*PORTABLE, "exclude_lean_runtime"), "tensorrt_dispatch", "11.4.0.106", False),
        ("11.3.0.1", PORTABLE, "tensorrt_rtx", "11.4.0.106", False),
    ],
)
def test_version(built: str, flags: tuple[str, ...], module: str, version: str, runs: bool) -> None:
    assert runs_on(record_of(engine_bytes(), version=built, flags=flags), module, version) is runs


def test_rtx_engines_run_on_their_own_version_only() -> None:
    record = record_of(engine_bytes(), flavour="tensorrt_rtx", version="1.7.1.116")
    assert runs_on(record, "tensorrt_rtx", "1.7.1.116")
    assert not runs_on(record, "tensorrt_rtx", "1.8.0.1")
    assert not runs_on(record, "tensorrt", "1.7.1.116")


@pytest.mark.parametrize("module", MODULES["tensorrt"])
def test_the_module_that_the_engine_needs_is_taken(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    driver = Driver()
    install(monkeypatch, driver, fake_tensorrt(driver, module, "11.5.0.1"))
    data = engine_bytes(**SMALL, host_code=True)
    backend = open_engine(data, record_of(data, flags=PORTABLE))
    assert (backend.provider, backend.version) == (f"CUDA ({module})", "11.5.0.1")
    batch = np.random.default_rng(0).random((2, 1, 6, 5, 4), dtype=np.float32)
    np.testing.assert_array_equal(backend.run(batch)["harmonized"], tiny.expected_harmonized(batch))
    with pytest.raises(BackendError, match=rf"built by tensorrt 11\.4\.0\.106; here is {module} 11\.5\.0\.1"):
        open_engine(data, record_of(data), "it")


STRIPPED = engine_bytes(**SMALL, stripped=True)


def stripped(onnx: bytes, **changed: Any) -> TensorRtBackend:
    record = record_of(STRIPPED, **{"flags": ("stripped",), "model_sha256": sha256_bytes(onnx), **changed})
    return open_engine(STRIPPED, record, "s.engine", weights=lambda: onnx)


def test_an_engine_without_weights_gets_those_of_its_onnx_file() -> None:
    backend = stripped(tiny.harmonizer_onnx("fp16"))
    batch = np.random.default_rng(1).random((3, 1, 6, 5, 4), dtype=np.float32)
    np.testing.assert_array_equal(backend.run(batch)["harmonized"], tiny.expected_harmonized(batch))


def test_weights_of_another_file_or_none_are_refused() -> None:
    onnx = tiny.harmonizer_onnx("fp16")
    with pytest.raises(BackendError, match=r"needs the ONNX file 0{12}\.\.\., another one is given"):
        stripped(onnx, model_sha256="0" * 64)
    with pytest.raises(BackendError, match=r"holds no weights: .* none is given") as caught:
        open_engine(STRIPPED, record_of(STRIPPED, flags=("stripped",)), "s.engine")
    assert "from the bundle" in caught.value.remedy


def test_weights_that_do_not_go_in_are_an_error_with_tensorrts_words(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=r"read the weights of s\.engine: Failed to parse the ONNX model"):
        stripped(b"no onnx")
    trt = fake_tensorrt(driver)
    install(monkeypatch, driver, trt)

    def missing(self: Any) -> bool:
        self.logger.log(1, "Missing weights: conv.weight")
        return False

    monkeypatch.setattr(trt.Refitter, "refit_cuda_engine", missing)
    with pytest.raises(BackendError, match=r"put the weights into s\.engine: Missing weights: conv"):
        stripped(tiny.harmonizer_onnx("fp16"))
    assert driver.retained == 0


@pytest.mark.parametrize("module", ["tensorrt_lean", "tensorrt_dispatch"])
def test_a_lean_runtime_refuses_an_engine_without_weights(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    install(monkeypatch, driver, fake_tensorrt(driver, module))
    with pytest.raises(
        BackendError, match=rf"without weights; here is {module} .* cannot put weights in"
    ) as it:
        stripped(tiny.harmonizer_onnx("fp16"), flags=("stripped", *PORTABLE))
    assert it.value.remedy.startswith("pip install tensorrt ")
    assert "--strip-weights" in it.value.remedy
    assert not driver.calls


def test_a_module_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(trt, "import_module", broken)
    with pytest.raises(BackendError, match=r"does not load: libnvinfer\.so\.11"):
        opened()


def test_what_is_missing_is_found_before_tensorrt_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(trt, "import_module", imported.append)
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: False)
    monkeypatch.setattr(cuda_driver, "probe", lambda: cuda_driver.ask(None))
    data = engine_bytes()
    with pytest.raises(BackendError, match=r"e\.engine cannot run: no NVIDIA driver is installed"):
        open_engine(data, record_of(data), "e.engine")
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: True)
    monkeypatch.setattr(trt, "find_spec", lambda name: None)
    problem, remedy = missing(*engines_named("tensorrt-rtx"))
    assert problem == "tensorrt_rtx is not installed"
    assert remedy == "On a machine with an NVIDIA GPU:  pip install 'hz-mri[rtx]'"
    monkeypatch.setattr(trt, "find_spec", lambda name: name if name.startswith("tensorrt") else None)
    assert trt.missing("tensorrt")[0] == "cuda-bindings is not installed"
    monkeypatch.setattr(trt, "find_spec", lambda name: name)
    assert trt.missing("tensorrt")[0] == "no NVIDIA driver is installed"
    monkeypatch.setattr(cuda_driver, "probe", lambda: HERE)
    monkeypatch.setattr(trt, "_built_for", lambda module: 14)
    problem, remedy = trt.missing("tensorrt")
    assert problem == "the NVIDIA driver runs CUDA 13.0, tensorrt needs 14"
    assert "driver" in remedy
    monkeypatch.setattr(trt, "_built_for", lambda module: 13)
    assert trt.missing("tensorrt") == ("", "")
    assert not imported


def test_the_cuda_that_a_package_is_for_is_read_from_it() -> None:
    from importlib.util import find_spec

    assert _built_for("no_such_package") == 0
    there = [name for names in MODULES.values() for name in names if find_spec(name)]
    if not there:
        pytest.skip("no TensorRT is installed here")
    assert all(_built_for(name) >= 12 for name in there)
