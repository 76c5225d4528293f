"""The server as an engine: what is checked before a scan is sent, what travels, what is said where it fails.

That its answers are right is in tests/contracts, over the same server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from hz_runtime.backends.base import Backend, EngineFailure, notes
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.kserve import address_problem, model_name
from hz_runtime.backends.onnx_tensors import tensors
from hz_runtime.backends.registry import engines_named, missing, open_backend
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import BackendError
from small_kserve import SmallKServe

AGE = tiny.age_onnx()
BATCH = tiny.random_volumes(2, seed=9)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallKServe]:
    running = SmallKServe()
    monkeypatch.setenv("HZ_REMOTE", running.url)
    yield running
    running.close()


@pytest.fixture
def age(server: SmallKServe) -> Iterator[Backend]:
    server.serve(AGE)
    backend = open_backend("remote", AGE)
    yield backend
    backend.close()


def test_tensors_are_those_that_an_engine_reads() -> None:
    for model in (AGE, tiny.harmonizer_onnx("fp16"), tiny.features_onnx()):
        local = open_backend("onnxruntime-cpu", model, threads=1)
        assert tensors(model) == (local.inputs, local.outputs)
    with pytest.raises(BackendError, match="HZ_REMOTE names no server"):
        open_backend("remote", AGE)


@pytest.mark.parametrize("binary", [True, False])
def test_every_bit_arrives(server: SmallKServe, binary: bool) -> None:
    """As bytes and as JSON numbers: the answer is that of the same engine in this process."""
    server.binary = binary
    model = tiny.harmonizer_onnx()
    server.serve(model)
    here = open_backend("onnxruntime-cpu", model, threads=1).run(BATCH[:1])["harmonized"]
    backend = open_backend("remote", model)
    assert backend.run(BATCH[:1])["harmonized"].tobytes() == here.tobytes()
    backend.close()


def test_what_run_json_says(age: Backend, server: SmallKServe) -> None:
    assert (age.version, age.provider) == ("small 1.0", "KServe v2, onnxruntime_onnx")
    assert age.device == f"server {server.url}"


def test_one_connection_serves_many_batches_and_is_opened_anew(age: Backend, server: SmallKServe) -> None:
    for _ in range(3):
        age.run(BATCH)
    assert server.connections == 1
    drops = iter(["drop"])
    server.fault = lambda path: next(drops, "")  # as a server does that found the connection idle
    np.testing.assert_allclose(age.run(BATCH)["age"], tiny.expected_age(BATCH), atol=1e-3)
    assert server.connections == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("503", r"no answer of hz-.* \(503 told to\)"),
        ("302", "302"),
        ("drop", "does not answer"),
        ("nonsense", "not that of the KServe v2 protocol"),
    ],
)
def test_a_server_that_fails_is_named(age: Backend, server: SmallKServe, fault: str, says: str) -> None:
    server.fault = lambda path: fault if path.endswith("infer") else ""
    with pytest.raises(EngineFailure, match=says) as caught:
        age.run(BATCH)
    assert server.url in caught.value.message and caught.value.remedy and "\n" not in caught.value.message


def test_an_answer_of_another_shape_is_no_result(age: Backend, server: SmallKServe) -> None:
    """The server gives one year for two volumes."""
    real = server._infer

    def one(name: str, head: str | None, body: bytes) -> tuple[int, dict[str, object], bytes]:
        status, said, raw = real(name, head, body)
        said["outputs"][0] |= {"shape": [1, 1], "parameters": {"binary_data_size": 4}}
        return status, said, raw[:4]

    server._infer = one  # type: ignore[method-assign]
    with pytest.raises(EngineFailure, match=r"'age' is FP32 \(1, 1\), expected FP32 \(2, 1\)"):
        age.run(BATCH)


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SmallKServe()
    gone.close()
    monkeypatch.setenv("HZ_REMOTE", gone.url)
    with pytest.raises(BackendError, match=rf"{gone.url} does not answer") as caught:
        open_backend("remote", AGE)
    assert "HZ_REMOTE" in caught.value.remedy


def test_a_model_that_is_not_there_is_named(server: SmallKServe) -> None:
    server.serve(tiny.harmonizer_onnx())
    with pytest.raises(BackendError, match=r"has no model hz-[0-9a-f]{32}, which is age\.onnx") as caught:
        open_backend("remote", AGE, where="age.onnx")
    assert "hz-export --triton" in caught.value.remedy


def test_an_engine_built_from_the_file_is_taken_where_the_file_is_not(server: SmallKServe) -> None:
    name = model_name(open_backend("onnxruntime-cpu", AGE).sha256)
    server.serve(AGE, f"{name}-tensorrt")
    found = open_backend("remote", AGE).run(BATCH)["age"]
    np.testing.assert_allclose(found, tiny.expected_age(BATCH), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outputs": []}, r"'age' .*is not there"),
        ({"inputs": [{"name": "volume", "datatype": "FP32", "shape": [-1, 1, 64, 64, 32]}]}, "64, 32"),
        ({"inputs": [{"name": "volume", "datatype": "FP16", "shape": [-1, 1, 64, 64, 64]}]}, "FP16"),
    ],
)
def test_other_tensors_are_refused_before_anything_is_sent(
    server: SmallKServe, change: dict[str, object], says: str
) -> None:
    server.metadata[server.serve(AGE)] |= change
    with pytest.raises(BackendError, match=says):
        open_backend("remote", AGE)
    assert {method for method, _ in server.asked} == {"GET"}


def test_another_file_under_the_name_is_refused_where_the_server_shows_it(server: SmallKServe) -> None:
    name = server.serve(AGE)
    server.hashes[name] = "f" * 64
    with pytest.raises(BackendError, match="is of another file"):
        open_backend("remote", AGE)
    server.configured = False  # no extension of Triton's: name and tensors are all that the protocol has
    open_backend("remote", AGE).close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gpu:8000", "no address that begins with"),
        ("ftp://gpu", "no address that begins with"),
        ("http://", "no address that begins with"),
        ("http://gpu:99999", "is no address"),
        ("http://me:secret@gpu", "holds more than"),
        ("http://gpu/?a=1", "holds more than"),
    ],
)
def test_addresses(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HZ_REMOTE", url)
    problem, remedy = missing(*engines_named("remote"))
    assert says in problem and "secret" not in problem and "HZ_REMOTE" in remedy
    assert not address_problem("https://gpu.example:8000/triton")


def test_it_is_asked_for_by_name_alone(server: SmallKServe, tiny_bundle: Path) -> None:
    """A server that is known gets nothing unasked; where it fails in a run, an engine here goes on."""
    bundle = load_bundle(tiny_bundle)
    backend, _ = choose(bundle, "age")
    assert backend.name != "remote" and server.asked == []
    server.serve(bundle.read(bundle.model("age")))
    backend, _ = choose(bundle, "age", "remote")
    assert backend.name == "remote"
    server.fault = lambda path: "503"
    np.testing.assert_allclose(backend.run(BATCH)["age"], tiny.expected_age(BATCH), atol=1e-3)
    assert backend.name != "remote" and "503" in notes(backend)[0]
    with pytest.raises(BackendError, match=r"Required backend remote: .*503") as caught:
        choose(bundle, "age", require="remote")
    assert caught.value.exit_code == 5
