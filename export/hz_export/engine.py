"""TensorRT engines from ONNX files: one builder over `tensorrt` (data-centre GPUs) and `tensorrt_rtx`.

Networks are strongly typed: precision comes from the ONNX file alone (`graph_precision`), and what came out
is read back (`engine_report`); an engine that is not what was asked for is an error. Engines are kept in a
cache under a key of everything that decides whether they fit.

Neither torch nor onnx is imported here, so that a machine that only runs bundles can build its engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hz_export.engine_messages import build_error, new_logger, parser_error
from hz_export.engine_progress import new_monitor, run_stoppable
from hz_export.engine_report import LayerTypes, engine_types, network_types, require_built, require_types
from hz_export.engine_target import (
    EngineOptions,
    Target,
    find_builder,
    for_this_gpu,
    rtx_capabilities,
    runs_here,
)
from hz_runtime.backends.built_engines import Build, BuildRequest
from hz_runtime.backends.external_data import check_self_contained, early_reader
from hz_runtime.bundle.engine_cache import EngineCache, EngineRecord, engine_key, file_lock
from hz_runtime.errors import BackendError, HzError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_bytes

__all__ = ["BuildCancelled", "EngineOptions", "build_engine", "builder"]


class BuildCancelled(HzError):
    """A build was told to stop, by its `stop` event."""


def build_engine(
    onnx: bytes,
    role: str,
    precision: str,
    options: EngineOptions,
    cache: EngineCache | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> tuple[EngineRecord, bytes]:
    """The engine of an ONNX file: from the cache, or built and kept there.

    onnx : the file's bytes.  role : e.g. "harmonizer".  precision : what the file computes in; the layers are
    checked against it.  cache : None to build in any case.  say : told one line a step.  progress : draw a
    bar on a terminal.  stop : set it to cancel.
    Returns what it was built from, and its bytes; the record's sha256 is theirs.
    Raises BackendError where the builder is missing or cannot build for what is asked, HzError naming the
    ONNX node where TensorRT refuses the graph (NoEngine where it has read it) or the layers are not of
    `precision`, BuildCancelled, and KeyboardInterrupt.
    """
    target = find_builder(options)
    if cache is None:
        return _build(onnx, role, precision, options, target, say, progress, stop)
    key = engine_key(
        sha256_bytes(onnx),
        options.profile,
        options.flags,
        options.flavour,
        target.version,
        target.capability,
    )

    def waiting() -> None:
        say(f"{options.name}: another process builds its engine; waiting for it")

    with cache.lock(key, waiting):
        found = cache.find(key)
        if found is None:
            found = _build(onnx, role, precision, options, target, say, progress, stop)
            cache.store(*found)
        elif found[0].precision != precision:
            raise BackendError(
                f"{options.name}: the kept engine computes in {found[0].precision}, not in {precision}.",
                cache.rebuild(key),
            )
    return found


def builder(say: Callable[[str], None] = lambda _: None, progress: bool = False) -> Build:
    """What `backends.choose` builds with: engines for this machine's GPU, kept in the user's cache.

    say, progress : as `build_engine`.
    """

    def build(wanted: BuildRequest) -> tuple[EngineRecord, bytes]:
        options = for_this_gpu(wanted)
        return build_engine(
            wanted.model, wanted.role, wanted.precision, options, EngineCache(), say, progress
        )

    return build


def _build(
    onnx: bytes,
    role: str,
    precision: str,
    options: EngineOptions,
    target: Target,
    say: Callable[[str], None],
    progress: bool,
    stop: threading.Event | None,
) -> tuple[EngineRecord, bytes]:
    check_self_contained(onnx, options.name)
    if early := early_reader(onnx):
        raise HzError(
            f"{options.name}: not in topological order: {early[0]} reads {early[1]} before a node makes it.",
            "Export it again:  hz-export --help",
        )
    if (options.refit or options.strip) and not target.driver:
        raise BackendError(
            f"{options.name}: weights to be refitted or stripped need a GPU to build; this machine has "
            "no NVIDIA driver.",
            "Build there, or without --refit and --strip-weights.",
        )
    sizes = options.profile
    say(f"{options.name}: {target.builder}, {precision}, batches {sizes.least} to {sizes.most}: building")
    work = _Work(onnx, precision, options, target)
    with _bar(progress, f"{role} engine") as shown:
        data, types, inspected = run_stoppable(lambda stopped: work(shown, stopped), stop)
    layers = {**types.layers, **{f"engine {word}": count for word, count in inspected.items()}}
    record = EngineRecord(
        role=role,
        model_sha256=sha256_bytes(onnx),
        flavour=options.flavour,
        version=target.version,
        capability=target.capability,
        profile=options.profile,
        flags=options.flags,
        precision=types.precision,
        layers=layers,
        sha256=sha256_bytes(data),
        bytes=len(data),
    )
    say(f"{options.name}: engine of {len(data) / 1e6:.1f} MB for {', '.join(target.capability)}; {types}")
    return record, data


@dataclass(frozen=True)
class _Work:
    """One build, from bytes to bytes; runs in a thread that Ctrl-C does not reach."""

    onnx: bytes
    precision: str
    options: EngineOptions
    target: Target

    def __call__(
        self, shown: Callable[[float], None], stopped: Callable[[], bool]
    ) -> tuple[bytes, LayerTypes, dict[str, int]]:
        trt, where = self.target.trt, self.options.name
        logger = new_logger(trt)
        builder = trt.Builder(logger)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger)
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # a layer with a type, not a plugin
        if not parser.parse(self.onnx):
            raise parser_error(parser, self.target.builder, where)
        types = require_types(network_types(trt, network), self.precision, where)
        config = builder.create_builder_config()
        self._configure(builder, network, config)
        monitor = new_monitor(trt, shown, stopped)
        config.progress_monitor = monitor
        with _timing_cache(config, self._timing_file()):
            built = builder.build_serialized_network(network, config)
        if built is None and stopped():
            raise BuildCancelled(f"{where}: building its engine was cancelled.")
        if built is None:
            layers = (network.get_layer(i).name for i in range(network.num_layers))
            raise build_error(logger.errors, layers, self.target.builder, where)
        data = bytes(memoryview(built))
        return data, types, self._inspected(logger, data)

    def _configure(self, builder: Any, network: Any, config: Any) -> None:
        trt, options = self.target.trt, self.options
        flags = trt.BuilderFlag
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector states no types
        wanted = {"refit": flags.REFIT, "stripped": flags.STRIP_PLAN, "version_compatible": None}
        if options.flavour == "tensorrt":
            wanted["version_compatible"] = flags.VERSION_COMPATIBLE
        for name in options.flags:
            if wanted.get(name) is not None:
                config.set_flag(wanted[name])
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.flavour == "tensorrt_rtx":
            known = rtx_capabilities(trt)
            config.num_compute_capabilities = len(self.target.capability)
            for index, number in enumerate(self.target.capability):
                config.set_compute_capability(known[number], index)
        _add_profile(builder, network, config, options)

    def _timing_file(self) -> Path | None:
        return self.options.timing_cache if self.options.flavour == "tensorrt" else None

    def _inspected(self, logger: Any, data: bytes) -> dict[str, int]:
        """What the built engine's layers say, where this machine's GPU can take it back; else nothing."""
        if self.options.strip or not (self.target.driver and runs_here(self.target.capability)):
            return {}
        found = engine_types(self.target.trt, logger, data)
        require_built(found, self.precision, self.options.name)
        return found


def _add_profile(builder: Any, network: Any, config: Any, options: EngineOptions) -> None:
    """Batch sizes for every input whose first axis is free; HzError for any other free axis."""
    profile, sizes = builder.create_optimization_profile(), options.profile
    free = False
    for index in range(network.num_inputs):
        end = network.get_input(index)
        rest = tuple(end.shape[1:])
        if -1 in rest:
            raise HzError(
                f"{options.name}: input {end.name} has free axes besides its first: {tuple(end.shape)}.",
                "Export it again:  hz-export --help",
            )
        if end.shape[0] == -1:
            free = True
            profile.set_shape(end.name, (sizes.least, *rest), (sizes.tuned, *rest), (sizes.most, *rest))
    if free:
        config.add_optimization_profile(profile)


@contextmanager
def _timing_cache(config: Any, path: Path | None) -> Iterator[None]:
    """Kernel timings from a file during one build, and what was learnt added to it afterwards.

    The file is read again under a lock before it is replaced, so that builds at the same time add up. One of
    another TensorRT is ignored, and replaced.
    """
    if path is None:
        yield
        return
    config.set_timing_cache(config.create_timing_cache(_bytes_of(path)), False)
    yield
    learnt = config.get_timing_cache()
    if learnt is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f"{path.name}.lock")):
        learnt.combine(config.create_timing_cache(_bytes_of(path)), False)
        atomic_write_bytes(path, bytes(memoryview(learnt.serialize())))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@contextmanager
def _bar(wanted: bool, title: str) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, or nothing; gives a callable that takes what is done, 0 to 1."""
    if not wanted:
        yield lambda _: None
        return
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=100, desc=title, bar_format=form, leave=False, disable=None) as bar:
        yield lambda done: bar.update(max(0.0, 100 * done - bar.n)) and None
