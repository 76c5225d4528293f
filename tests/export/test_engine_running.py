"""Around the building of engines: options, GPUs, timings, progress, cancelling, and the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX:  pip install 'hz-mri[rtx]'")

from fake_gpu import engine_bytes, record_of  # noqa: E402
from hz_export import engine, engine_target  # noqa: E402
from hz_export.engine import BuildCancelled, EngineOptions, build_engine  # noqa: E402
from hz_export.engine_progress import Phases, run_stoppable  # noqa: E402
from hz_runtime.backends.built_engines import BuildRequest  # noqa: E402
from hz_runtime.backends.trt import runs_on  # noqa: E402
from hz_runtime.bundle.engine_cache import EngineCache, Profile  # noqa: E402
from hz_runtime.errors import BackendError, HzError, UsageError  # noqa: E402
from processes import PATIENCE  # noqa: E402


def plain() -> bytes:
    """One convolution, (N, 1, 8, 8, 8) to (N, 2, 8, 8, 8)."""
    nodes = [helper.make_node("Conv", ["volume", "w"], ["y"], "conv", pads=[1] * 6)]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["N", 1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 8, 8, 8])],
        [numpy_helper.from_array(np.ones((2, 1, 3, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


# --- options and targets ------------------------------------------------------------------------------------


def test_options_that_this_machine_or_builder_lacks_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_target, "gpu_capability", lambda: None)
    for options, kind, said in (
        (EngineOptions(capability=("9.0",)), BackendError, "does not build for compute capability 9.0"),
        (EngineOptions(hardware_compatible=True), UsageError, "has no such option"),
        (EngineOptions(refit=True), BackendError, "need a GPU to build"),
        (EngineOptions(strip=True), BackendError, "need a GPU to build"),
        (EngineOptions(flavour="tensorflow"), UsageError, "Known: tensorrt, tensorrt_rtx"),
    ):
        with pytest.raises(kind, match=said):
            build_engine(plain(), "age", "fp32", options)


def test_tensorrt_itself_is_not_touched_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_target, "gpu_capability", lambda: None)
    monkeypatch.setattr(engine_target, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="is not installed"):
        build_engine(plain(), "age", "fp32", EngineOptions("tensorrt"))
    monkeypatch.setattr(engine_target, "find_spec", lambda name: object())
    monkeypatch.setattr(engine_target.importlib, "import_module", lambda name: pytest.fail("imported"))
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        build_engine(plain(), "age", "fp32", EngineOptions("tensorrt"))


def test_an_engine_for_chosen_gpus_and_batches() -> None:
    options = EngineOptions(capability=("8.9", "12.0"), profile=Profile(2, 2, 2))
    record, _ = build_engine(plain(), "age", "fp32", options)
    assert record.capability == ("8.9", "12.0")
    portable, _ = build_engine(plain(), "age", "fp32", EngineOptions())
    assert record.key != portable.key


def test_flags_are_those_that_change_the_engine() -> None:
    assert EngineOptions().flags == ()  # TensorRT for RTX ships no lean runtime to be compatible with
    everything = EngineOptions("tensorrt", hardware_compatible=True, refit=True, strip=True)
    assert everything.flags == ("hardware_compatible", "refit", "stripped", "version_compatible")


def wanted(flavour: str = "tensorrt") -> BuildRequest:
    return BuildRequest(plain(), "age.onnx", "age", "fp32", flavour, "8.9")


@pytest.mark.parametrize(
    ("here", "flags"),
    [
        (("tensorrt",), ()),
        (("tensorrt", "tensorrt_lean"), ("version_compatible",)),
        (("tensorrt", "tensorrt_dispatch"), ("version_compatible",)),
    ],
)
def test_an_engine_for_this_machine_is_portable_where_a_lean_runtime_could_open_it(
    monkeypatch: pytest.MonkeyPatch, here: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(engine_target, "find_spec", lambda name: name if name in here else None)
    options = engine_target.for_this_gpu(wanted())
    assert options.flags == flags
    assert (options.capability, options.name) == (("8.9",), "age.onnx")
    record = record_of(engine_bytes("age"), flags=flags)
    assert runs_on(record, "tensorrt_lean", record.version) == bool(flags)
    assert engine_target.for_this_gpu(wanted("tensorrt_rtx")).flags == ()


def test_a_lean_runtime_alone_builds_nothing_and_says_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_target, "find_spec", lambda name: name if name == "tensorrt_lean" else None)
    with pytest.raises(BackendError, match="Only TensorRT's lean runtime is installed") as caught:
        engine.builder()(wanted())
    assert "hz-export --fp16 --engine tensorrt" in caught.value.remedy


class Recorder:
    """A builder config of TensorRT for data-centre GPUs: notes what it is told."""

    def __init__(self) -> None:
        self.flags: list[Any] = []
        self.profiles: list[Any] = []
        self.hardware_compatibility_level = None
        self.profiling_verbosity = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)


def test_options_reach_the_builder_of_data_centre_gpus() -> None:
    """The enum names are those of the real module; what a GPU would do with them is not known here."""
    options = EngineOptions(
        "tensorrt", profile=Profile(1, 2, 3), hardware_compatible=True, refit=True, strip=True
    )
    target = engine_target.Target(trt, "TensorRT", "11", engine_target.AMPERE_PLUS, True)
    work = engine._Work(b"", "fp16", options, target)
    shapes: dict[str, Any] = {}
    profile = SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}))
    builder = SimpleNamespace(create_optimization_profile=lambda: profile)
    end = SimpleNamespace(name="volume", shape=(-1, 1, 64, 64, 64))
    config = Recorder()
    work._configure(builder, SimpleNamespace(num_inputs=1, get_input=lambda i: end), config)
    assert set(config.flags) == {
        trt.BuilderFlag.REFIT, trt.BuilderFlag.STRIP_PLAN, trt.BuilderFlag.VERSION_COMPATIBLE
    }  # fmt: skip
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert shapes == {"volume": tuple((n, 1, 64, 64, 64) for n in (1, 2, 3))}
    assert config.profiles == [profile]


class Timings:
    """A timing cache that is a set of bytes."""

    def __init__(self, data: bytes) -> None:
        self.known = set(data)

    def combine(self, other: Timings, ignore: bool) -> bool:
        self.known |= other.known
        return True

    def serialize(self) -> bytearray:
        return bytearray(sorted(self.known))


def test_the_timing_cache_file_adds_up_and_survives_a_failed_build(tmp_path: Path) -> None:
    path = tmp_path / "timings" / "gpu.cache"

    def config_that_learns(what: bytes) -> Any:
        config = SimpleNamespace(create_timing_cache=Timings)
        config.set_timing_cache = lambda cache, ignore: setattr(config, "cache", cache)
        config.get_timing_cache = lambda: Timings(bytes(config.cache.known) + what)
        return config

    with (
        engine._timing_cache(config_that_learns(b"a"), path),
        engine._timing_cache(config_that_learns(b"b"), path),
    ):
        pass  # two builds at the same time: neither loses what the other learnt
    assert path.read_bytes() == b"ab"
    with pytest.raises(HzError), engine._timing_cache(config_that_learns(b"c"), path):
        raise HzError("no engine")
    assert path.read_bytes() == b"ab"
    with engine._timing_cache(config_that_learns(b"d"), None):
        pass
    assert sorted(p.name for p in path.parent.iterdir()) == ["gpu.cache", "gpu.cache.lock"]


# --- progress, cancelling, the cache ------------------------------------------------------------------------


def test_a_build_stops_when_it_is_told_to() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(BuildCancelled, match=r"m\.onnx: building its engine was cancelled"):
        build_engine(plain(), "age", "fp32", EngineOptions(name="m.onnx"), stop=stop)


def test_progress_reaches_the_end_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    seen: list[float] = []

    @contextmanager
    def bar(*_: object) -> Any:
        yield seen.append

    monkeypatch.setattr(engine, "_bar", bar)
    build_engine(plain(), "age", "fp32", EngineOptions())
    assert len(seen) > 20 and seen == sorted(seen)
    assert 0 < seen[0] < 0.5 and 0.7 < seen[-1] <= 1.0


def test_phases_count_nested_steps() -> None:
    phases = Phases()
    phases.start("all", None, 4)
    assert phases.step("all", 0) == 0.25
    phases.start("part", "all", 2)
    assert phases.step("part", 0) == 0.375
    phases.finish("part")
    assert phases.step("all", 1) == 0.5
    assert phases.step("unknown", 7) == 0.5


def test_a_build_in_a_thread_raises_what_it_raised() -> None:
    def fails(_: Any) -> None:
        raise HzError("no")

    with pytest.raises(HzError, match="no"):
        run_stoppable(fails, None)
    assert run_stoppable(lambda stopped: stopped(), None) is False


CTRL_C = """
import os, signal, sys, threading, time
from hz_export import engine_progress
from hz_export.engine import EngineOptions, build_engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is ignored, as in a background job
step = engine_progress.Phases.step
def slow(self, *arguments):
    if not started.is_set():
        started.set()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)  # a real build for a GPU takes minutes: time for the main thread to hear of it
    return step(self, *arguments)
started = threading.Event()
engine_progress.Phases.step = slow
try:
    build_engine(sys.stdin.buffer.read(), "age", "fp32", EngineOptions())
except KeyboardInterrupt:
    print("interrupted")
"""


def environment(root: Path) -> dict[str, str]:
    rooms = ("runtime", "calibration", "train", "export", "cli")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / room) for room in rooms)}


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_a_build_in_order(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        input=plain(),
        env=environment(root),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [b"interrupted"]), done.stderr


def test_a_kept_engine_is_found_and_a_changed_one_refused(tmp_path: Path) -> None:
    cache, said = EngineCache(tmp_path), []
    first = build_engine(plain(), "age", "fp32", EngineOptions(), cache, said.append)
    built = len(said)
    assert build_engine(plain(), "age", "fp32", EngineOptions(), cache, said.append) == first
    assert len(said) == built
    with pytest.raises(BackendError, match="the kept engine computes in fp32, not in fp16"):
        build_engine(plain(), "age", "fp16", EngineOptions(), cache)
    other = EngineOptions(profile=Profile(1, 1, 1))
    assert build_engine(plain(), "age", "fp32", other, cache)[0].key != first[0].key
    (file,) = tmp_path.glob(f"{first[0].key}.engine")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BackendError, match="does not match its sha256") as caught:
        build_engine(plain(), "age", "fp32", EngineOptions(), cache)
    assert f"rm {tmp_path}/{first[0].key[:12]}*" in caught.value.remedy


BUILD = """
import sys
from pathlib import Path
from hz_export.engine import EngineOptions, build_engine
from hz_runtime.bundle.engine_cache import EngineCache
print("ready", flush=True)
model = sys.stdin.buffer.read()
record, data = build_engine(model, "age", "fp32", EngineOptions(), EngineCache(Path(sys.argv[1])), print)
print(record.sha256)
"""


def test_processes_that_start_together_build_once(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:  # closes their pipes, which ends them, where an assertion fails
        builders = [
            stack.enter_context(subprocess.Popen(command, env=environment(root), **pipes)) for _ in range(3)
        ]
        for builder in builders:
            assert builder.stdout is not None and builder.stdout.readline() == b"ready\n"
        for builder in builders:
            assert builder.stdin is not None
            builder.stdin.write(plain())
            builder.stdin.close()
        said = []
        for builder in builders:
            assert builder.stdout is not None
            said.append(builder.stdout.read().decode().splitlines())
            assert builder.wait(PATIENCE) == 0
    assert sum(any("building" in line for line in lines) for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    assert len(list((tmp_path / "cache").glob("*.engine"))) == 1


LEAN = """
import sys
import hz_export.engine
heavy = {"torch", "onnx", "tensorrt", "tensorrt_rtx", "tqdm", "numpy"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""


def test_the_builder_imports_neither_torch_nor_onnx(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAN], env=environment(root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
