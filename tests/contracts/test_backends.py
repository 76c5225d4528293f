"""One contract, every engine that is installed here, fp32 and fp16 networks.

Truth is arithmetic (tests/tiny.py, scipy in float64), never another engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

import tiny
from hz_runtime.backends.base import Backend, describe, on_gpu
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.registry import (
    ENGINES,
    backend_names,
    engines_named,
    installed,
    missing,
    open_backend,
)
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import BackendError, GridMismatch, HzError, NonFiniteInput, UsageError
from small_kserve import RUNNING

# Those that open ONNX bytes; TensorRT has contracts of its own beside this file.
ONNX_ENGINES = {engine.name: engine for engine in ENGINES if not engine.built}
PRECISIONS = ("fp32", "fp16")
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-3}  # of values in [0, 1]; float16 has 11 bits
YEARS = {"fp32": 1e-3, "fp16": 0.13}  # near 120 years float16 steps by 0.06, and two roundings add up


def opened(name: str, model: bytes, threads: int | None = 2) -> Backend:
    """Open with the engine, or skip where this machine does not have it."""
    engine = ONNX_ENGINES[name]
    if name == "remote":
        with suppress(BackendError):  # what the server cannot load is a model that it does not have
            RUNNING[os.environ["HZ_REMOTE"]].serve(model)
    if problem := missing(engine)[0]:
        pytest.skip(f"{problem} here")
    return open_backend(name, model, threads=threads)


@pytest.fixture(params=ONNX_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "remote":
        request.getfixturevalue("remote_server")
    return str(request.param)


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def harmonizer(engine: str, precision: str) -> Iterator[Backend]:
    backend = opened(engine, tiny.harmonizer_onnx(precision))
    yield backend
    backend.close()


def test_says_what_it_is(harmonizer: Backend, engine: str) -> None:
    row = ONNX_ENGINES[engine]
    shown = describe(harmonizer)
    assert shown["name"] == row.family
    assert all(shown.values())
    assert ("CUDA" in harmonizer.provider) == (row.device == "cuda")
    if row.device == "cpu":
        assert harmonizer.precision == "fp32"  # never bfloat16 behind one's back
    assert len(harmonizer.sha256) == 64


def test_specs_are_the_networks(harmonizer: Backend) -> None:
    (volume,), (harmonized,) = harmonizer.inputs, harmonizer.outputs
    assert (volume.name, volume.dtype, volume.shape) == ("volume", "float32", ("N", 1, 64, 64, 64))
    assert (harmonized.name, harmonized.dtype, harmonized.shape) == (
        "harmonized",
        "float32",
        ("N", 1, 64, 64, 64),
    )


@pytest.mark.parametrize("n", [1, 3, 2])
def test_batch_is_free_and_right(harmonizer: Backend, precision: str, n: int) -> None:
    batch = tiny.random_volumes(n, seed=n)
    found = harmonizer.run(batch)["harmonized"]
    assert found.shape == batch.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny.expected_harmonized(batch), rtol=0, atol=TOLERANCE[precision])


def test_age_is_right(engine: str, precision: str) -> None:
    backend = opened(engine, tiny.age_onnx(precision))
    batch = tiny.random_volumes(2, seed=5)
    found = backend.run(batch)["age"]
    assert found.shape == (2, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny.expected_age(batch), rtol=0, atol=YEARS[precision])


def test_batch_equals_items(harmonizer: Backend) -> None:
    batch = tiny.random_volumes(4, seed=7)
    together = harmonizer.run(batch)["harmonized"]
    alone = np.concatenate([harmonizer.run(batch[i : i + 1])["harmonized"] for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_runs_are_identical(harmonizer: Backend) -> None:
    batch = tiny.random_volumes(2, seed=3)
    first = harmonizer.run(batch)["harmonized"].tobytes()
    assert all(harmonizer.run(batch)["harmonized"].tobytes() == first for _ in range(3))


def test_result_is_the_callers_own(harmonizer: Backend) -> None:
    first = harmonizer.run(tiny.random_volumes(1, seed=1))["harmonized"]
    kept = first.copy()
    harmonizer.run(tiny.random_volumes(1, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_input_is_left_alone_and_may_have_any_strides(harmonizer: Backend) -> None:
    batch = np.asfortranarray(tiny.random_volumes(2, seed=4))
    batch.flags.writeable = False
    straight = harmonizer.run(np.ascontiguousarray(batch))["harmonized"]
    np.testing.assert_array_equal(harmonizer.run(batch)["harmonized"], straight)


def test_four_threads(harmonizer: Backend, precision: str) -> None:
    batches = [tiny.random_volumes(1 + i % 2, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: harmonizer.run(batch)["harmonized"], batches))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_allclose(result, tiny.expected_harmonized(batch), rtol=0, atol=TOLERANCE[precision])


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (np.zeros((1, 1, 64, 64, 64)), "float64"),
        (np.zeros((1, 1, 64, 64, 64), np.float16), "float16"),
        ([[0.0]], "list"),
        (np.zeros((64, 64, 64), np.float32), "(64, 64, 64)"),
        (np.zeros((1, 1, 64, 64, 32), np.float32), "(1, 1, 64, 64, 32)"),
        (np.zeros((1, 2, 64, 64, 64), np.float32), "(1, 2, 64, 64, 64)"),
        (np.zeros((0, 1, 64, 64, 64), np.float32), "(0, 1, 64, 64, 64)"),
    ],
    ids=["float64", "float16", "list", "3d", "grid", "channels", "empty"],
)
def test_wrong_input_is_named(harmonizer: Backend, batch: np.ndarray, says: str) -> None:
    with pytest.raises(GridMismatch) as caught:
        harmonizer.run(batch)
    assert says in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_input_is_refused(harmonizer: Backend, bad: float) -> None:
    batch = tiny.random_volumes(3)
    batch[1, 0, 5, 5, 5] = bad
    with pytest.raises(NonFiniteInput, match=r"1 non-finite values \(batch item 1\)"):
        harmonizer.run(batch)


def test_non_finite_output_is_refused(engine: str) -> None:
    backend = opened(engine, network([helper.make_node("Log", ["volume"], ["harmonized"])], {}))
    with pytest.raises(BackendError, match="Output 'harmonized'"):
        backend.run(np.zeros((1, 1, 64, 64, 64), np.float32))


@pytest.mark.parametrize("end", ["Clip", "Relu"])
def test_what_a_last_clip_would_hide_is_refused(engine: str, end: str) -> None:
    """Log of a negative number is NaN, which OpenVINO's Clip and Relu turn into 0."""
    ends = {"low": np.float32(0), "high": np.float32(1)} if end == "Clip" else {}
    nodes = [
        helper.make_node("Log", ["volume"], ["y"]),
        helper.make_node(end, ["y", *ends], ["harmonized"]),
    ]
    backend = opened(engine, network(nodes, ends))
    half = np.full((1, 1, 64, 64, 64), 0.5, np.float32)
    np.testing.assert_array_equal(backend.run(half)["harmonized"], 0)  # log(0.5) < 0 is an honest 0
    half[0, 0, 1, 2, 3] = -1
    with pytest.raises(BackendError, match="1 non-finite values"):
        backend.run(half)


def test_weights_that_are_not_finite_are_refused(engine: str) -> None:
    """When the network is opened or when it runs: a Relu inside hides what they do to it from OpenVINO."""
    kernel = np.zeros((1, 1, 3, 3, 3), np.float32)
    kernel[0, 0, 1, 1, 1] = np.nan
    nodes = [
        helper.make_node("Conv", ["volume", "kernel"], ["c"], pads=[1] * 6),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "one"], ["harmonized"]),
    ]
    model = network(nodes, {"kernel": kernel, "one": np.ones(1, np.float32)})
    with pytest.raises(BackendError, match=r"not finite|non-finite"):
        opened(engine, model).run(tiny.random_volumes(1))


def test_closed_is_said(harmonizer: Backend) -> None:
    harmonizer.run(tiny.random_volumes(1))
    harmonizer.close()
    harmonizer.close()
    with pytest.raises(BackendError, match="closed"):
        harmonizer.run(tiny.random_volumes(1))


def test_an_operator_nobody_has(engine: str) -> None:
    model = network([helper.make_node("Nonesuch", ["volume"], ["harmonized"], domain="no.such")], {})
    with pytest.raises(BackendError) as caught:
        opened(engine, model)
    assert "\n" not in caught.value.message
    assert caught.value.remedy


def test_convolution_in_full_precision(engine: str) -> None:
    """Two random convolutions against float64: bfloat16 or TF32 arithmetic would be 1e-3 off."""
    rng = np.random.default_rng(11)
    first = rng.normal(0, 0.3, (4, 1, 3, 3, 3)).astype(np.float32)
    second = rng.normal(0, 0.3, (1, 4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["volume", "first"], ["c"], pads=[1] * 6),
        helper.make_node("Conv", ["c", "second"], ["harmonized"], pads=[1] * 6),
    ]
    batch = tiny.random_volumes(1, seed=6)
    found = opened(engine, network(nodes, {"first": first, "second": second})).run(batch)["harmonized"][0, 0]

    def correlate(volume: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return ndimage.correlate(volume, kernel.astype(np.float64), mode="constant")

    middle = [correlate(batch[0, 0].astype(np.float64), kernel) for kernel in first[:, 0]]
    truth = sum(correlate(volume, kernel) for volume, kernel in zip(middle, second[0], strict=True))
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4)


QUIET = """
import sys
seen = []
def listen(event, args):
    sends = event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.", "http.", "subprocess."))
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if sends or writes or event in ("os.mkdir", "os.posix_spawn", "os.fork"):
        seen.append((event, str(args)))
sys.addaudithook(listen)
import pathlib, numpy as np
from hz_runtime.backends.registry import open_backend
engine, model = sys.argv[1:]
backend = open_backend(engine, pathlib.Path(model).read_bytes(), threads=1)
backend.run(np.zeros((1, 1, 64, 64, 64), np.float32))
import threading
[thread.join(5) for thread in threading.enumerate() if thread is not threading.current_thread()]
assert not seen, seen
assert not {"openvino_telemetry", "openvino.tools.ovc"} & set(sys.modules)
"""


@pytest.mark.parametrize("engine", [name for name in ONNX_ENGINES if name != "remote"])  # it is there to send
def test_nothing_is_sent_or_written(engine: str, tmp_path: Path) -> None:
    """A patient's scan is open in this process: an engine neither calls home nor leaves files behind."""
    opened(engine, tiny.age_onnx()).close()  # skips where it is not here
    model, home = tmp_path / "age.onnx", tmp_path / "home"
    model.write_bytes(tiny.age_onnx())
    home.mkdir()
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "GITHUB_ACTIONS")}
    env |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", QUIET, engine, str(model)]
    done = subprocess.run(
        command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir())
    assert not done.stdout
    assert not done.stderr


def network(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    """An unchecked fp32 model from "volume" to "harmonized"."""
    shape = ["N", 1, 64, 64, 64]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("harmonized", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("no.such", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


# The fallback from engine to engine


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz")


def pretend(monkeypatch: pytest.MonkeyPatch, *engines: str) -> None:
    """Make hz believe that only these engines are installed."""
    from importlib.util import find_spec

    from hz_runtime.backends import cuda_driver, ort, ov, registry, trt

    for module in (registry, ort, ov, trt):
        monkeypatch.setattr(module, "find_spec", lambda name: find_spec(name) if name in engines else None)
    monkeypatch.setattr(cuda_driver, "has_driver", lambda: True)  # that there is none would be said first


def test_auto_takes_the_fastest_and_says_so(tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path)
    backend, attempts = choose(bundle, "harmonizer")
    assert attempts[-1].outcome == "ran" and attempts[-1].engine.family == backend.name
    assert all(attempt.outcome != "ran" and attempt.reason for attempt in attempts[:-1])
    assert [attempt.engine for attempt in attempts] == list(ENGINES[: len(attempts)])
    assert bundle.entry(backend.sha256).precision == ("fp16" if on_gpu(backend) else "fp32")
    if "openvino" in dict(installed()) and not on_gpu(backend):
        assert backend.name == "openvino"


@pytest.mark.parametrize("role", ["harmonizer", "age"])
def test_falls_to_onnxruntime_cpu(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    if "onnxruntime" not in dict(installed()):
        pytest.skip("onnxruntime is not installed here")
    pretend(monkeypatch, "onnxruntime")
    monkeypatch.setattr("hz_runtime.backends.ort.has_cuda", lambda: False)
    backend, attempts = choose(load_bundle(tiny_path), role)
    assert backend.provider == "CPUExecutionProvider"
    assert [str(attempt) for attempt in attempts[:4]] == [
        "TensorRT: not available (tensorrt or tensorrt_lean or tensorrt_dispatch is not installed)",
        "TensorRT for RTX: not available (tensorrt_rtx is not installed)",
        "onnxruntime CUDA: not available (no CUDAExecutionProvider in this onnxruntime)",
        "OpenVINO CPU: not available (openvino is not installed)",
    ]
    assert str(attempts[4]).startswith(f"onnxruntime CPU: runs {role}.onnx (fp32) on CPU")


def test_an_engine_that_breaks_is_announced(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if {"openvino", "onnxruntime"} - set(dict(installed())):
        pytest.skip("needs both engines")

    def broken(*_: object) -> None:
        raise BackendError("no such kernel", "")

    monkeypatch.setattr("hz_runtime.backends.ov.open_model", broken)
    backend, attempts = choose(load_bundle(tiny_path), "age", "openvino")
    assert str(attempts[0]) == "OpenVINO CPU: could not open age.onnx (no such kernel)"
    assert (attempts[0].outcome, attempts[0].file) == ("failed", "age.onnx")
    assert backend.name == "onnxruntime"


def test_no_engine_names_the_remedy(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(BackendError) as caught:
        choose(load_bundle(tiny_path), "harmonizer")
    assert caught.value.exit_code == 5
    assert "pip install 'hz-mri[cpu]'" in caught.value.remedy
    assert caught.value.message.count("is not installed") == len(engines_named("auto"))


@pytest.mark.parametrize("name", [name for name in backend_names() if name != "auto"])
def test_require_fails_rather_than_falls(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch)
    with pytest.raises(BackendError, match=f"Required backend {name}") as caught:
        choose(load_bundle(tiny_path), "harmonizer", require=name)
    assert caught.value.exit_code == 5
    assert ("HZ_REMOTE=" if name == "remote" else "pip install 'hz-mri[") in caught.value.remedy
    assert "leave --require out" in caught.value.remedy
    assert "\n" not in str(caught.value)  # message and remedy on one line, for logs


def test_require_wins_over_backend(tiny_path: Path) -> None:
    if "onnxruntime" not in dict(installed()):
        pytest.skip("onnxruntime is not installed here")
    backend, attempts = choose(load_bundle(tiny_path), "age", "openvino", require="onnxruntime-cpu")
    assert backend.name == "onnxruntime"
    assert len(attempts) == 1


def test_a_precision_can_be_asked_for(tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path)
    backend, attempts = choose(bundle, "harmonizer", precision="fp16")
    assert bundle.entry(backend.sha256).precision == "fp16"
    assert "(fp16)" in str(attempts[-1])


@pytest.mark.parametrize("kwargs", [{"backend": "tpu"}, {"require": "tpu"}, {"threads": 0}])
def test_nonsense_is_a_usage_error(tiny_path: Path, kwargs: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        choose(load_bundle(tiny_path), "harmonizer", **kwargs)  # type: ignore[arg-type]
    with pytest.raises(HzError):
        open_backend("tpu", b"")


def test_volumes_of_a_millimetre_run_one_by_one(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO fixes the shape of large items; what comes back stays, and what a backend says of itself."""
    monkeypatch.setattr("hz_runtime.backends.ov.LARGEST_FREE", 1000)
    volumes = tiny.random_volumes(3)
    backend = opened(engine, tiny.harmonizer_onnx())
    try:
        (found,) = backend.run(volumes).values()
        assert backend.inputs[0].shape == ("N", 1, *tiny.GRID) == backend.outputs[0].shape
    finally:
        backend.close()
    assert np.abs(found - tiny.expected_harmonized(volumes)).max() < TOLERANCE["fp32"]
