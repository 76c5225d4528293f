"""The timing core, by a clock that the test turns: turns, medians, percentiles, ratios, and failures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from hz_export import machine
from hz_export.bench import (
    MATMUL,
    Candidate,
    OpenCandidate,
    Plan,
    Timing,
    interleaved_timings,
    opened,
    ratio,
    tiled,
    time_batch,
    timing_row,
    words,
)
from hz_export.candidates import bound, engine_candidates, from_backend
from hz_export.speed import SpeedOptions, measure_speed
from hz_export.synthetic import synthetic_heads
from hz_runtime.backends.registry import open_backend
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError, UsageError
from small_scans import write_scans

QUICK = Plan(repeats=3, warmup=1, pause=0)


class Clock:
    """A clock that stands still unless somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += next(seconds)

        return call


@pytest.fixture
def clock() -> Clock:
    return Clock()


def no_sleep(_: float) -> None:
    pass


def test_ways_take_turns_after_their_warm_up(clock: Clock) -> None:
    ways = {
        "a": clock.work("a", iter([9.0, 9.0, 1.0, 2.0, 6.0])),
        "b": clock.work("b", iter([5.0, 5.0, 0.5, 0.5, 1.0])),
    }
    timed = interleaved_timings(ways, Plan(repeats=3, warmup=2, pause=0), clock, no_sleep)
    assert clock.calls == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"]
    assert timed["a"].samples == (1.0, 2.0, 6.0)
    assert timed["a"].median == 2.0
    assert ratio(timed["a"], timed["b"]) == 4.0  # median of 2, 4, 6; of the medians it happens to be 4 too
    assert ratio(timed["b"], timed["a"]) == 0.25


def test_a_ratio_is_of_rounds_and_not_of_medians() -> None:
    """A machine that slows down tenfold halfway leaves the ratio alone."""
    a, b = Timing((1.0, 1.0, 10.0, 10.0, 10.0)), Timing((0.5, 0.5, 0.5, 5.0, 5.0))
    assert ratio(a, b) == 2.0
    assert a.median / b.median == 20.0


def test_percentiles_and_milliseconds_a_volume() -> None:
    row = Timing((0.010, 0.020, 0.030, 0.040, 0.050)).to_dict(volumes=4)
    assert row["median_ms"] == 7.5
    assert row["p95_ms"] == pytest.approx((0.04 + 0.8 * 0.01) * 1000 / 4)
    assert row["least_ms"] == 2.5
    assert row["samples_ms"] == [2.5, 5.0, 7.5, 10.0, 12.5]


def test_time_ends_the_turns_but_not_before_enough_rounds(clock: Clock) -> None:
    plan = Plan(repeats=100, warmup=0, least=4, most_seconds=2.0, pause=0)
    timed = interleaved_timings({"a": clock.work("a", iter([1.0] * 100))}, plan, clock, no_sleep)
    assert len(timed["a"].samples) == 4
    plan = Plan(repeats=100, warmup=0, least=1, most_seconds=7.5, pause=0)
    assert (
        len(
            interleaved_timings({"a": clock.work("a", iter([1.0] * 100))}, plan, clock, no_sleep)["a"].samples
        )
        == 8
    )


def test_one_that_fails_is_out_with_its_words_and_the_others_go_on(clock: Clock) -> None:
    def broken() -> None:
        clock.calls.append("broken")
        if clock.calls.count("broken") == 2:
            raise RuntimeError("out of\n  memory")

    timed = interleaved_timings(
        {"broken": broken, "b": clock.work("b", iter([1.0] * 9))}, QUICK, clock, no_sleep
    )
    assert timed["broken"] == Timing(error="RuntimeError: out of memory")
    assert timed["broken"].to_dict() == {"error": "RuntimeError: out of memory"}
    assert timed["b"].samples == (1.0, 1.0, 1.0)


def test_a_failing_warm_up_is_not_repeated(clock: Clock) -> None:
    def broken() -> None:
        clock.calls.append("x")
        raise MemoryError

    timed = interleaved_timings({"x": broken}, Plan(repeats=2, warmup=3), clock, no_sleep)
    assert timed["x"].error == "MemoryError"
    assert clock.calls == ["x"]


def test_words_of_errors() -> None:
    assert words(ValueError("a\n b")) == "ValueError: a b"
    assert words(HzError("found.", "do this")) == "found. do this"


def test_a_plan_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="0 repeats"):
        Plan(repeats=0)


def test_what_cannot_be_opened_is_left_out_and_what_can_is_closed() -> None:
    closed = []

    def opens() -> OpenCandidate:
        return OpenCandidate("good", "cpu", "fp32", {}, lambda b: b, close=lambda: closed.append("good"))

    def fails() -> OpenCandidate:
        raise ImportError("no such engine")

    left_out: list[dict[str, str]] = []
    with opened([Candidate("bad", fails), Candidate("good", opens)], left_out) as here:
        assert [c.name for c in here] == ["good"]
        assert left_out == [{"name": "bad", "why": "ImportError: no such engine"}]
        assert closed == []
    assert closed == ["good"]


def test_scopes_go_by_where_the_data_lies() -> None:
    batch = np.zeros((1, 1, 2, 2, 2), np.float32)
    cpu = OpenCandidate("c", "cpu", "fp32", {}, lambda b: b)
    host_only = OpenCandidate("h", "cuda", "fp16", {}, lambda b: b)
    gpu = OpenCandidate("g", "cuda", "fp16", {}, lambda b: b, resident=lambda b: lambda: "on the GPU")
    assert list(cpu.ways(batch)) == ["model"]
    assert list(host_only.ways(batch)) == ["transfers"]
    assert gpu.ways(batch)["model"]() == "on the GPU"
    assert gpu.ways(batch)["transfers"]() is batch


def test_a_batch_that_does_not_fit_is_an_error_of_its_contender_only() -> None:
    def no_room(_: Any) -> Callable[[], object]:
        raise MemoryError("16 volumes")

    big = OpenCandidate("big", "cuda", "fp16", {}, lambda b: b, resident=no_room)
    small = OpenCandidate("small", "cpu", "fp32", {}, lambda b: b)
    batch = np.zeros((1, 1, 2, 2, 2), np.float32)
    timed = time_batch([big, small], batch, QUICK, {"fp32": lambda: None})
    assert timed["big", "model"].error == "MemoryError: 16 volumes"
    assert set(timed) == {("big", "model"), ("small", "model"), (MATMUL, "fp32")}


def test_rates_by_hand() -> None:
    slow, fast = Timing((4.0, 4.0)), Timing((2.0, 2.0))
    row = timing_row(fast, 8, 10, 100.0, slow)
    assert (row["flops_per_s"], row["share_of_peak"], row["times_baseline"]) == (40.0, 0.4, 2.0)
    assert timing_row(fast, 8, 10, None, None)["share_of_peak"] is None
    assert "flops_per_s" not in timing_row(fast, 8, None, 100.0, slow)
    assert timing_row(fast, 1, 10, 100.0, Timing(error="gone"))["times_baseline"] is None


@pytest.mark.parametrize("torch_here", [True, False])
def test_the_peak_multiplies_and_counts(monkeypatch: pytest.MonkeyPatch, torch_here: bool) -> None:
    if torch_here:
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    peak = machine.matmul(side=64, threads=1)
    assert peak.flops == 2 * 64**3
    assert peak.how.startswith("torch" if torch_here else "numpy")
    assert np.asarray(peak.call()).shape == (64, 64)


def test_no_peak_is_invented() -> None:
    with pytest.raises(ValueError, match="no peak of fp16 is measured on cpu"):
        machine.matmul("cpu", "fp16")


def test_the_driver_says_which_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "version"
    proc.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    monkeypatch.setattr(machine, "Path", lambda _: proc)
    assert machine.kernel_driver() == "570.86.15"


def test_synthetic_heads_look_like_prepared_scans() -> None:
    heads = synthetic_heads(2)
    np.testing.assert_array_equal(heads, synthetic_heads(2))
    assert heads.shape == (2, 64, 64, 64)
    assert heads.dtype == np.float32
    assert heads.min() == 0.0 and heads.max() == 1.0
    brain = heads > 0
    assert 0.1 < brain.mean() < 0.6
    assert not brain[:, 0].any() and not brain[:, :, :, -1].any()
    steps = np.abs(np.diff(heads, axis=1))[brain[:, 1:] & brain[:, :-1]]
    assert steps.mean() < 0.05  # smooth, where noise of this range would step by a third
    assert np.abs(heads[0] - heads[1]).max() > 0.1


def test_tiles_repeat_in_order() -> None:
    volumes = np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)
    assert tiled(volumes, 5).reshape(-1).tolist() == [0, 1, 0, 1, 0]
    assert tiled(volumes, 5).shape == (5, 1, 1, 1, 1)


def test_bound_memory_gives_what_run_gives() -> None:
    """The binding that keeps data on a GPU, on the CPU, where it can be compared."""
    pytest.importorskip("onnxruntime")
    backend = open_backend("onnxruntime", tiny.harmonizer_onnx(), device="cpu", threads=1)
    volume = tiny.random_volumes(2)
    binding = bound(backend, volume, "cpu")()
    (found,) = binding.copy_outputs_to_cpu()  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, tiny.expected_harmonized(volume), atol=1e-6)
    candidate = from_backend("x", backend, "cpu", "fp32")
    np.testing.assert_array_equal(candidate.answer(volume), found)
    candidate.close()


def test_a_cpu_is_not_asked_to_run_float16_graphs(tiny_bundle: Path) -> None:
    names = [c.name for c in engine_candidates(load_bundle(tiny_bundle))]
    assert "onnxruntime-cpu fp32" in names
    assert "onnxruntime-cpu fp16" not in names
    assert "onnxruntime-cuda fp16" in names
    assert "openvino bf16" in names and "onnxruntime-cpu bf16" not in names


def test_speed_of_a_bundle_describes_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_scans(tmp_path / "in", 2)
    options = SpeedOptions(
        batches=(1, 2), plan=QUICK, threads=1, only=("onnxruntime-cpu",), scans=(tmp_path / "in",)
    )
    result = measure_speed(load_bundle(tiny_bundle), options)
    (row,) = result["contenders"]
    assert (row["name"], row["device"]) == ("onnxruntime-cpu fp32", "cpu")
    assert set(row["batches"]) == {"1", "2"}
    model = row["batches"]["2"]["model"]
    assert len(model["samples_ms"]) == 3
    assert model["times_baseline"] == 1.0  # it is its own baseline
    assert result["baseline"] == {"cpu": "onnxruntime-cpu fp32"}
    assert result["peak"]["cpu"]["fp32"]["flops_per_s"] > 1e8
    assert result["volumes"]["n"] == 2
    whole = result["end_to_end"]["onnxruntime-cpu"]
    assert whole["scans"] == 2
    assert set(whole["median_stage_s"]) >= {"read", "prepare", "infer", "write"}
    left = {item["name"] for item in result["left_out"]}
    assert "torch" in left
    assert result["machine"]["cores"] >= 1


def test_nothing_to_time_is_a_usage_error(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        measure_speed(load_bundle(tiny_bundle), SpeedOptions(only=("abacus",)))


def test_the_core_needs_neither_torch_nor_a_reader_of_scans(root: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'nibabel', 'isal', 'click', 'safetensors', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import hz_export.bench, hz_export.differences, hz_export.machine, hz_export.torch_baselines\n"
        "import hz_export.candidates, hz_export.synthetic\n"
        "print(hz_export.machine.describe_machine()['cores'] > 0)\n"
    )
    env = {"PYTHONPATH": f"{root / 'runtime'}:{root / 'export'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "True", done.stderr
