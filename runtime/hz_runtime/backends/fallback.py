"""Which engine runs a model: the first rung of the ladder that works, and the next one where it fails.

Every rung tried is told in one line. A TensorRT engine comes from the bundle, else from the user's engine
cache, else it is built here and now by the `build` that the caller hands in: building belongs to the export
room, which the runtime does not know.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hz_runtime.backends import cuda_driver, trt
from hz_runtime.backends.base import (
    BACKENDS,
    LABELS,
    LADDER,
    REMEDY,
    Backend,
    EngineFailure,
    OutOfMemory,
    notes,
    on_gpu,
    open_backend,
)
from hz_runtime.bundle.engine_cache import EngineCache, EngineRecord
from hz_runtime.errors import BackendError, HzError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hz_runtime.bundle.manifest import TensorSpec
    from hz_runtime.bundle.store import Bundle, EngineEntry, ModelEntry

Rung = tuple[str, str, str, str]


@dataclass(frozen=True)
class BuildRequest:
    """An engine that is wanted for this machine.

    model : the ONNX file's bytes.  file : its name.  role : e.g. "harmonizer".  precision : what the file
    computes in.  flavour : one of engines.FLAVOURS.  capability : of this machine's GPU, e.g. "9.0".
    """

    model: bytes
    file: str
    role: str
    precision: str
    flavour: str
    capability: str


# Gives the engine and its bytes; raises HzError where it cannot. May take minutes.
Build = Callable[[BuildRequest], tuple[EngineRecord, bytes]]


class Unavailable(BackendError):
    """The required backend cannot run here: one line, so that a script's log shows all of it."""

    def __str__(self) -> str:
        return self.one_line


def choose(
    bundle: Bundle,
    role: str,
    backend: str = "auto",
    require: str | None = None,
    *,
    to: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    build: Build | None = None,
    graphs: bool = False,
) -> tuple[Backend, tuple[str, ...]]:
    """Open the bundle's model of `role` on the first rung of the ladder that works.

    backend : one of BACKENDS; its rungs are tried first, the others after it. require : the same names, and
    no other rung is tried. precision : None for the fastest on the rung (fp16 on CUDA, fp32 on a CPU).
    build : makes a TensorRT engine where neither bundle nor cache holds one; None forbids it.
    graphs : let TensorRT replay CUDA graphs.
    Returns the backend and one line for every rung tried, the last one being the rung taken. Where a GPU
    engine fails later, in the middle of a run, the backend goes on down the ladder by itself unless `require`
    is given; `base.notes` tells.
    Raises BackendError (exit 5) where no rung works, BundleError where the model is not the bundle's.
    """
    descent = _Descent(bundle, role, to, precision, threads, build, graphs, iter(_rungs(backend, require)))
    opened = descent.next()
    if opened is None:
        raise _unavailable(descent, role, require)
    steps = tuple(descent.steps)
    if require in (None, "auto") and on_gpu(opened):
        return Descending(descent, opened), steps
    return opened, steps


def _rungs(backend: str, require: str | None) -> list[Rung]:
    for asked in (backend, require or "auto"):
        if asked not in BACKENDS:
            raise UsageError(f"No backend is called {asked!r}.", f"Known: {', '.join(BACKENDS)}.")
    wanted = backend if require in (None, "auto") else require
    first = [rung for rung in LADDER if wanted in (rung[0], rung[1])]
    if require not in (None, "auto"):
        return first
    return first + [rung for rung in LADDER if rung not in first]


def _unavailable(descent: _Descent, role: str, require: str | None) -> BackendError:
    tried = "; ".join(descent.steps)
    if require in (None, "auto"):
        return BackendError(f"No backend can run {role}: {tried}.", REMEDY)
    remedy = f"{descent.remedy.rstrip('.')}  (or leave --require out)" if descent.remedy else REMEDY
    return Unavailable(f"Required backend {require}: {tried}.", remedy)


@dataclass
class _Descent:
    """A way down the ladder for one model. steps : one line a rung.  remedy : of the last that failed."""

    bundle: Bundle
    role: str
    to: str | None
    precision: str | None
    threads: int | None
    build: Build | None
    graphs: bool
    rungs: Iterator[Rung]
    steps: list[str] = field(default_factory=list)
    remedy: str = ""

    def next(self) -> Backend | None:
        """The model on the next rung that works; None where there is none left."""
        for rung in self.rungs:
            name, engine, device, fastest = rung
            problem, self.remedy = _missing(engine, device)
            if problem:
                self.steps.append(f"{LABELS[name]}: not available ({problem})")
                continue
            entry = _entry(self.bundle, self.role, self.precision, fastest, self.to)
            try:
                opened, what = self._open(engine, device, entry)
            except BackendError as error:
                self.remedy = error.remedy
                self.steps.append(
                    f"{LABELS[name]}: could not open {entry.file} ({error.message.rstrip('.')})"
                )
                continue
            asked = (
                "" if entry.precision == (self.precision or fastest) else f", {fastest} is not in the bundle"
            )
            self.steps.append(f"{LABELS[name]}: runs {what} ({entry.precision}{asked}) on {opened.device}")
            return opened
        return None

    def _open(self, engine: str, device: str, entry: ModelEntry) -> tuple[Backend, str]:
        """The opened backend, and what it runs, in words."""
        if engine in trt.MODULES:
            return self._open_engine(engine, entry)
        data = self.bundle.read(entry)
        opened = open_backend(engine, data, device=device, threads=self.threads, where=entry.file)
        return opened, entry.file

    def _open_engine(self, flavour: str, entry: ModelEntry) -> tuple[Backend, str]:
        """An engine of the model: the bundle's, the cache's, or built now. BackendError where none opens."""
        problems: list[str] = []
        remedy = trt.rebuild(flavour)
        for where, give in self._engines(flavour, entry):
            try:
                record, data = give()
                if record.precision != entry.precision:
                    raise BackendError(f"{where} computes in {record.precision}", trt.rebuild(flavour))
                weights = partial(self.bundle.read, entry)
                opened = trt.open_engine(data, record, where, graphs=self.graphs, weights=weights)
                if not _same(opened.inputs, entry.inputs) or not _same(opened.outputs, entry.outputs):
                    opened.close()
                    raise BackendError(f"{where} has other tensors than {entry.file}", remedy)
                return opened, where
            except OutOfMemory:
                raise  # another engine of the same model needs the same room
            except HzError as error:
                if error.exit_code not in (1, 5):
                    raise  # a bundle that was tampered with is not a rung that fails
                problems.append(error.message.rstrip("."))
                remedy = error.remedy or remedy
            except Exception as error:  # of TensorRT's own bindings: the next rung may still work
                problems.append(f"{where} does not open ({type(error).__name__})")
        if not problems:
            problems.append(f"no engine for {cuda_driver.probe().device}, and none is to be built")
        raise BackendError("; ".join(problems), remedy)

    def _engines(
        self, flavour: str, entry: ModelEntry
    ) -> Iterator[tuple[str, Callable[[], tuple[EngineRecord, bytes]]]]:
        """(name for messages, how to get it) of every engine that may be of this model, the nearest first."""
        for held in self.bundle.engines_of(entry):
            if held.record.flavour == flavour:
                yield held.file, partial(self._held, held)
        cache = EngineCache()
        for record in _kept(cache, flavour, entry):
            yield f"kept engine {record.key[:12]}", partial(_found, cache, record.key)
        if self.build is not None:
            yield f"engine of {entry.file}", partial(self._built, self.build, flavour, entry)

    def _held(self, held: EngineEntry) -> tuple[EngineRecord, bytes]:
        return held.record, self.bundle.read(held)

    def _built(self, build: Build, flavour: str, entry: ModelEntry) -> tuple[EngineRecord, bytes]:
        data = self.bundle.read(entry)
        here = cuda_driver.probe().capability
        return build(BuildRequest(data, entry.file, entry.role, entry.precision, flavour, here))


def _same(found: tuple[TensorSpec, ...], listed: tuple[TensorSpec, ...]) -> bool:
    """Whether these are the same tensors; what a free axis is called does not matter."""

    def plain(specs: tuple[TensorSpec, ...]) -> list[object]:
        return [(s.name, s.dtype, [n if isinstance(n, int) else "N" for n in s.shape]) for s in specs]

    return plain(found) == plain(listed)


def _kept(cache: EngineCache, flavour: str, entry: ModelEntry) -> list[EngineRecord]:
    """Records of the kept engines that were built from this model and fit here, newest TensorRT first.

    Records only: whether an engine is what its record says is for `EngineCache.find`.
    """
    found = []
    for path in cache.record_files():
        record = None
        with suppress(OSError, ValueError, BackendError, AttributeError):
            record = EngineRecord.from_dict(json.loads(path.read_bytes()))
        if (
            record is not None
            and path.stem == record.key
            and (record.model_sha256, record.flavour) == (entry.sha256, flavour)
            and record.precision == entry.precision
            and trt.fits(record)
        ):
            found.append(record)
    return sorted(found, key=lambda record: trt.version_order(record.version), reverse=True)


def _found(cache: EngineCache, key: str) -> tuple[EngineRecord, bytes]:
    found = cache.find(key)
    if found is None:
        raise BackendError(f"Engine {key[:12]} is gone.", cache.rebuild(key))
    return found


def _missing(engine: str, device: str) -> tuple[str, str]:
    """Why a rung cannot even be tried, and the remedy; or ("", "")."""
    if engine in trt.MODULES:
        return trt.missing(engine)
    extra = "openvino" if engine == "openvino" else "gpu" if device == "cuda" else "cpu"
    remedy = f"pip install 'hz-mri[{extra}]'"
    if device == "cuda":
        remedy = f"On a machine with an NVIDIA GPU:  {remedy}"
    if find_spec(engine) is None:
        return f"{engine} is not installed", remedy
    if device == "cuda":
        from hz_runtime.backends import ort

        try:
            found = ort.has_cuda()
        except Exception as error:  # a broken installation raises whatever its libraries do
            return f"onnxruntime does not load ({' '.join(str(error).split())[:200]})", remedy
        if not found:
            return "no CUDAExecutionProvider in this onnxruntime", remedy
        state = cuda_driver.probe()  # without a driver, onnxruntime would print errors and blame the graph
        return state.problem, state.remedy
    return "", ""


def _entry(bundle: Bundle, role: str, precision: str | None, fastest: str, to: str | None) -> ModelEntry:
    """The model in the precision asked for; else in the fastest one, else in any that there is."""
    if precision:
        return bundle.model(role, precision=precision, to=to)
    any_precision = bundle.model(role, to=to)
    same = [e for e in bundle.models if e.role == role and e.target == any_precision.target]
    return next((entry for entry in same if entry.precision == fastest), any_precision)


class Descending:
    """A backend that goes on down the ladder where its engine fails, and runs the batch again there.

    What it says of itself is of the engine that runs now; `notes` tells of the others.
    """

    def __init__(self, descent: _Descent, opened: Backend) -> None:
        self._descent = descent
        self._told = len(descent.steps)
        self._lock = threading.Lock()
        self._notes: list[str] = []
        self._adopt(opened)

    def _adopt(self, opened: Backend) -> None:
        self._backend = opened
        self.name, self.version, self.provider = opened.name, opened.version, opened.provider
        self.device, self.precision, self.sha256 = opened.device, opened.precision, opened.sha256
        self.inputs, self.outputs = opened.inputs, opened.outputs

    @property
    def engine_sha256(self) -> str:
        return str(getattr(self._backend, "engine_sha256", ""))

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *(note for note in notes(self._backend) if note not in self._notes))

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        while True:
            running = self._backend
            try:
                return running.run(batch)
            except EngineFailure as error:
                self._descend(running, error)
            except BackendError:
                with self._lock:  # waits where another thread is on its way down
                    if self._backend is running:
                        raise

    def _descend(self, failed: Backend, error: EngineFailure) -> None:
        """Put the next rung in place of one that failed; raises `error` where there is none."""
        with self._lock:
            if self._backend is not failed:
                return  # another thread has
            self._notes += [*notes(failed), f"{failed.name} failed: {error.message}"]
            with suppress(Exception):  # what has failed may fail in closing too
                failed.close()  # the next rung may want the same GPU's memory
            opened = self._descent.next()
            self._notes += self._descent.steps[self._told :]
            self._told = len(self._descent.steps)
            if opened is None:
                raise error
            self._adopt(opened)

    def close(self) -> None:
        with self._lock:
            self._backend.close()
