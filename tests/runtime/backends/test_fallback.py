"""Where TensorRT engines come from, which are refused, and the way down when one fails: over a fake GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from fake_gpu import HERE, Driver, engine_bytes, fake_tensorrt, install, record_of
from hz_runtime.backends.base import notes
from hz_runtime.backends.built_engines import BuildRequest
from hz_runtime.backends.fallback import FallbackBackend, choose
from hz_runtime.backends.registry import installed
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.engine_cache import EngineCache, EngineRecord
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BackendError, BundleError, HzError
from small_scans import write_scans

MODELS = {"harmonizer": "harmonizer.fp16.onnx", "age": "age.fp16.onnx"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("HZ_ENGINES", str(tmp_path / "engines"))
    return EngineCache()


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture(autouse=True)
def trt(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = fake_tensorrt(driver)
    install(monkeypatch, driver, made)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz"))


def engine_for(
    bundle: Bundle, role: str = "harmonizer", data: bytes = b"", **changed: Any
) -> tuple[EngineRecord, bytes]:
    data = data or engine_bytes(role, stripped="stripped" in changed.get("flags", ()))
    return record_of(data, model_sha256=bundle.model(role, precision="fp16").sha256, **changed), data


def with_engines(tmp_path: Path, *changes: dict[str, Any]) -> Bundle:
    """The tiny bundle with an engine of each network for each of `changes` to the record."""
    plain = load_bundle(tiny.make_tiny_bundle(tmp_path / "plain.hz"))
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["engines"] = []
    for number, changed in enumerate(changes):
        for role in MODELS:
            record, made = engine_for(plain, role, **changed)
            files[f"{role}.{number}.engine"] = made
            manifest["engines"].append({**record.to_dict(), "file": f"{role}.{number}.engine", "parity": {}})
    return write_bundle(tmp_path / "engines.hz", manifest, files)


class Builder:
    """Counts what it is asked to build."""

    def __init__(
        self, bundle: Bundle, made: Callable[[BuildRequest], tuple[EngineRecord, bytes]] | None = None
    ) -> None:
        self.asked: list[BuildRequest] = []
        self.made = made or (lambda wanted: engine_for(bundle, wanted.role))

    def __call__(self, wanted: BuildRequest) -> tuple[EngineRecord, bytes]:
        self.asked.append(wanted)
        return self.made(wanted)


def test_the_bundles_engine_is_taken_first(trt: Any, tmp_path: Path) -> None:
    bundle = with_engines(tmp_path, {"capability": ("9.0",)}, {})
    build = Builder(bundle)
    backend, attempts = choose(bundle, "harmonizer", build=build)
    assert str(*attempts) == "TensorRT: runs harmonizer.1.engine (fp16) on Fake GPU"
    assert bundle.entry(backend.sha256).file == "harmonizer.fp16.onnx"
    assert not build.asked
    batch = tiny.random_volumes(3)
    np.testing.assert_array_equal(backend.run(batch)["harmonized"], tiny.expected_harmonized(batch))
    assert [size for _, size in trt.runs] == [3]


def test_then_a_kept_one_then_one_that_is_built(plain: Bundle, cache: EngineCache) -> None:
    build = Builder(plain)
    backend, attempts = choose(plain, "age", build=build)
    assert str(*attempts) == "TensorRT: runs engine of age.fp16.onnx (fp16) on Fake GPU"
    (wanted,) = build.asked
    assert wanted.model == tiny.age_onnx("fp16")
    assert (wanted.file, wanted.role, wanted.precision) == ("age.fp16.onnx", "age", "fp16")
    assert (wanted.flavour, wanted.capability) == ("tensorrt", HERE.capability)
    batch = tiny.random_volumes(2)
    np.testing.assert_array_equal(backend.run(batch)["age"], tiny.expected_age(batch))
    record, data = engine_for(plain, "age")
    cache.store(record, data)
    _, attempts = choose(plain, "age", build=build)
    assert str(*attempts) == f"TensorRT: runs kept engine {record.key[:12]} (fp16) on Fake GPU"
    assert len(build.asked) == 1


def test_kept_engines_of_other_things_are_passed_over(plain: Bundle, cache: EngineCache) -> None:
    for changed in (
        {"version": "11.3.0.1"},
        {"capability": ("9.0",)},
        {"precision": "fp32"},
        {"flavour": "tensorrt_rtx"},
    ):
        cache.store(*engine_for(plain, **changed))
    cache.store(*engine_for(plain, "age"))
    (cache.folder / "x.json").write_text("[]")
    (cache.folder / "y.json").write_text("{")
    with pytest.raises(BackendError, match="no engine for Fake GPU, and none is to be built") as caught:
        choose(plain, "harmonizer", require="tensorrt")
    assert "without --no-build" in caught.value.remedy
    cache.store(*engine_for(plain))
    _, attempts = choose(plain, "harmonizer", require="tensorrt")
    assert "runs kept engine" in str(attempts[0])


def test_an_engine_without_weights_takes_them_from_the_bundle(tmp_path: Path) -> None:
    """Shipped in the bundle without its weights: the ONNX file beside it holds them."""
    bundle = with_engines(tmp_path, {"flags": ("stripped",)})
    backend, attempts = choose(bundle, "harmonizer", require="tensorrt")
    assert "runs harmonizer.0.engine" in str(attempts[0])
    batch = tiny.random_volumes(2)
    np.testing.assert_array_equal(backend.run(batch)["harmonized"], tiny.expected_harmonized(batch))


def test_a_kept_engine_without_weights_takes_them_too(plain: Bundle, cache: EngineCache) -> None:
    cache.store(*engine_for(plain, "age", flags=("stripped",)))
    backend, attempts = choose(plain, "age", require="tensorrt")
    assert "runs kept engine" in str(attempts[0])
    batch = tiny.random_volumes(2)
    np.testing.assert_array_equal(backend.run(batch)["age"], tiny.expected_age(batch))


def test_a_lean_runtime_takes_a_portable_kept_engine(
    driver: Driver, plain: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, driver, fake_tensorrt(driver, "tensorrt_lean", "11.4.0.106"))
    data = engine_bytes(host_code=True)
    cache.store(*engine_for(plain, version="11.4.0.106"))
    cache.store(*engine_for(plain, data=data, version="11.2.0.1", flags=("version_compatible",)))
    backend, _ = choose(plain, "harmonizer", require="tensorrt")
    assert backend.provider == "CUDA (tensorrt_lean)"


def test_a_tampered_kept_engine_is_refused_with_what_to_do(
    trt: Any, plain: Bundle, cache: EngineCache
) -> None:
    record, data = engine_for(plain)
    cache.store(record, data)
    (cache.folder / f"{record.key}.engine").write_bytes(data + b" ")
    trt.Runtime = None
    with pytest.raises(BackendError, match="does not match its sha256") as caught:
        choose(plain, "harmonizer", require="tensorrt")
    assert f"rm {cache.folder}" in caught.value.remedy


def test_a_bundles_tampered_engine_is_a_refused_bundle(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path, {})
    path = bundle.path / "harmonizer.0.engine"
    path.write_bytes(path.read_bytes().replace(b"harm", b"hurt"))
    with pytest.raises(BundleError, match=r"harmonizer\.0\.engine does not match"):
        choose(bundle, "harmonizer")


def test_wrong_engines_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    bundle = with_engines(tmp_path, {"capability": ("9.0",)}, {"version": "11.3.0.1"})
    with pytest.raises(BackendError) as caught:
        choose(bundle, "age", require="tensorrt")
    assert "age.0.engine was built for compute capability 9.0, Fake GPU has 8.9" in caught.value.message
    assert "age.1.engine was built by tensorrt 11.3.0.1; here is tensorrt 11.4.0.106" in caught.value.message
    assert "hz-export --fp16 --engine tensorrt" in caught.value.remedy


def test_an_engine_of_other_tensors_or_precision_is_refused(plain: Bundle) -> None:
    other = Builder(plain, lambda wanted: engine_for(plain, wanted.role, engine_bytes("age", grid=(8, 8, 8))))
    with pytest.raises(BackendError, match="has other tensors than age"):
        choose(plain, "age", require="tensorrt", build=other)
    single = Builder(plain, lambda wanted: engine_for(plain, wanted.role, precision="fp32"))
    with pytest.raises(BackendError, match="computes in fp32"):
        choose(plain, "age", require="tensorrt", build=single)


def test_a_build_that_fails_is_a_step_down(plain: Bundle) -> None:
    if not installed():
        pytest.skip("no engine for a CPU is installed here")

    def fails(_: BuildRequest) -> tuple[EngineRecord, bytes]:
        raise HzError("TensorRT 11.4 refuses node conv_3.", "Export it again.")

    backend, attempts = choose(plain, "harmonizer", build=fails)
    assert str(attempts[0]) == (
        "TensorRT: could not open harmonizer.fp16.onnx (TensorRT 11.4 refuses node conv_3)"
    )
    assert str(attempts[1]) == "TensorRT for RTX: not available (tensorrt_rtx is not installed)"
    assert backend.name in ("openvino", "onnxruntime")


def test_rtx_is_the_second_engine(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver, fake_tensorrt(driver, "tensorrt_rtx", "1.7.1.116"))
    bundle = with_engines(tmp_path, {"flavour": "tensorrt_rtx", "version": "1.7.1.116"}, {})
    backend, attempts = choose(bundle, "harmonizer")
    assert str(attempts[0]).startswith("TensorRT: not available (tensorrt or tensorrt_lean")
    assert str(attempts[1]) == "TensorRT for RTX: runs harmonizer.0.engine (fp16) on Fake GPU"
    assert backend.name == "tensorrt-rtx"


# Failing in the middle


def failing(tmp_path: Path, says: str) -> Bundle:
    """The tiny bundle with engines that open, and log `says` instead of running."""
    if not installed():
        pytest.skip("no engine for a CPU is installed here")
    plain = load_bundle(tiny.make_tiny_bundle(tmp_path / "plain.hz"))
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    manifest["engines"] = []
    for role in MODELS:
        record, files[f"{role}.engine"] = engine_for(plain, role, engine_bytes(role, fails=says))
        manifest["engines"].append({**record.to_dict(), "file": f"{role}.engine", "parity": {}})
    return write_bundle(tmp_path / "failing.hz", manifest, files)


@pytest.mark.parametrize("says", ["Cuda Runtime (out of memory)", "Cuda Runtime (an illegal memory access)"])
def test_an_engine_that_fails_hands_over_to_the_next(driver: Driver, tmp_path: Path, says: str) -> None:
    backend, attempts = choose(failing(tmp_path, says), "harmonizer")
    assert isinstance(backend, FallbackBackend)
    assert backend.provider.startswith("CUDA")
    batch = tiny.random_volumes(2)
    found = backend.run(batch)["harmonized"]
    np.testing.assert_allclose(found, tiny.expected_harmonized(batch), rtol=0, atol=1e-3)
    assert (backend.provider, backend.precision) in (("CPU", "fp32"), ("CPUExecutionProvider", "fp32"))
    assert len(attempts) == 1  # what was noted before the run stays what it was
    noted = " | ".join(backend.notes)
    assert "tensorrt failed: " in noted
    assert says in noted
    assert ": runs harmonizer.onnx (fp32)" in backend.notes[-1]
    if "memory)" in says:
        assert "at most 8 from here on" in noted
    assert driver.used == 0
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(batch)


def test_many_threads_fall_together_and_once(tmp_path: Path) -> None:
    backend, _ = choose(failing(tmp_path, "broken"), "harmonizer")
    batches = [tiny.random_volumes(1, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: backend.run(batch)["harmonized"], batches))
    for batch, result in zip(batches, found, strict=True):
        np.testing.assert_allclose(result, tiny.expected_harmonized(batch), rtol=0, atol=1e-3)
    assert sum("tensorrt failed" in note for note in notes(backend)) == 1


def test_what_is_required_fails_rather_than_falls(tmp_path: Path) -> None:
    backend, _ = choose(failing(tmp_path, "broken"), "harmonizer", require="tensorrt")
    with pytest.raises(BackendError, match="TensorRT cannot run the engine: broken"):
        backend.run(tiny.random_volumes(1))


def test_nothing_below_gives_the_engines_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from hz_runtime.backends import fallback

    backend, _ = choose(failing(tmp_path, "broken"), "harmonizer")
    monkeypatch.setattr(fallback, "missing", lambda *_: ("gone", ""))
    with pytest.raises(BackendError, match="cannot run the engine: broken"):
        backend.run(tiny.random_volumes(1))


def test_a_broken_onnxruntime_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from hz_runtime.backends import ort
    from hz_runtime.backends.registry import engines_named, missing

    def broken() -> bool:
        raise AttributeError("module 'onnxruntime' has no attribute 'get_available_providers'")

    monkeypatch.setattr(ort, "has_cuda", broken)
    why, remedy = missing(*engines_named("onnxruntime-cuda"))
    assert why.startswith("onnxruntime does not load (module 'onnxruntime' has no attribute")
    assert "pip install" in remedy


# A whole run


def test_a_run_on_the_gpu_in_batches(trt: Any, tmp_path: Path) -> None:
    bundle = with_engines(tmp_path, {})
    report = run_batch(write_scans(tmp_path / "in", 5), bundle, tmp_path / "out", RunOptions(report=False))
    assert report.exit_code == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["options"]["batch"] == 4
    assert run["backend"]["provider"] == "CUDA (tensorrt)"
    assert run["backend"]["notes"] == []
    assert run["backend"]["engine_sha256"] == bundle.engines[0].sha256
    assert {size for _, size in trt.runs} == {4}
    sidecar = json.loads(next((tmp_path / "out").glob("*desc-harmonized_T1w.json")).read_text())
    engine = {"Name": "tensorrt", "Provider": "CUDA (tensorrt)", "Precision": "fp16"}
    assert sidecar["GeneratedBy"][0]["Engine"] == engine


def test_a_run_whose_gpu_fails_ends_well_and_says_so(tmp_path: Path) -> None:
    bundle = failing(tmp_path, "Cuda Runtime (out of memory)")
    events: list[str] = []
    scans = write_scans(tmp_path / "in", 3)
    report = run_batch(scans, bundle, tmp_path / "out", RunOptions(), lambda event: events.append(event.text))
    assert report.exit_code == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["backend"]["name"] in ("openvino", "onnxruntime")  # what ran, not what was meant to
    noted = run["backend"]["notes"]
    assert any(note.startswith("harmonizer: tensorrt failed: The GPU is out of memory") for note in noted)
    assert any(note.startswith("age: tensorrt failed: ") for note in noted)
    assert set(noted) <= set(events)
    assert all(note in (tmp_path / "out/hz-run.log").read_text() for note in noted)
    for path in (tmp_path / "out").glob("*desc-harmonized_T1w.json"):
        assert json.loads(path.read_text())["GeneratedBy"][0]["Engine"]["Precision"] == "fp32"


def test_a_sidecar_names_the_engine_that_ran_its_scan(tmp_path: Path) -> None:
    """The engine may change between a scan's turn at the network and its turn at the disk."""
    from hz_runtime.batch.stages import Stages

    bundle = with_engines(tmp_path, {})
    real = Stages.write

    def later(self: Stages, job: Any) -> Any:
        changed = replace(
            self, harmonizer=type(self.harmonizer)(_Other(), self.recipe, self.harmonizer.entry)
        )
        return real(changed, job)

    class _Other:
        name, provider, precision = "another", "CPU", "fp32"

    patch = pytest.MonkeyPatch()
    patch.setattr(Stages, "write", later)
    try:
        run_batch(write_scans(tmp_path / "in", 1), bundle, tmp_path / "out", RunOptions(report=False))
    finally:
        patch.undo()
    sidecar = json.loads(next((tmp_path / "out").glob("*desc-harmonized_T1w.json")).read_text())
    assert sidecar["GeneratedBy"][0]["Engine"]["Name"] == "tensorrt"
