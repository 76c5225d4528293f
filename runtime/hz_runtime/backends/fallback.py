"""Which engine runs a model: the first of the table that works, and the next one where it fails later.

Every engine that was tried is kept as an `Attempt`. What engines there are is known to registry.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hz_runtime.backends.base import REMEDY, Backend, EngineFailure, notes, on_gpu
from hz_runtime.backends.built_engines import Build, open_built
from hz_runtime.backends.registry import ENGINES, Engine, engines_named, missing, open_model
from hz_runtime.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hz_runtime.bundle.store import Bundle, ModelEntry


@dataclass(frozen=True)
class Attempt:
    """What came of one engine.

    outcome : "ran" (it opened, and runs the model), "unavailable" (it could not be tried here) or "failed"
    (it did not open).  reason : why not; of one that ran, what it runs and on which device.
    file : the model's, "" where it was not looked for.  remedy : what would let it run.
    """

    engine: Engine
    outcome: Literal["ran", "unavailable", "failed"]
    reason: str
    file: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """One line, as run.json and the log have it."""
        said = {
            "ran": f"runs {self.reason}",
            "unavailable": f"not available ({self.reason})",
            "failed": f"could not open {self.file} ({self.reason})",
        }
        return f"{self.engine.label}: {said[self.outcome]}"


class RequiredBackendUnavailable(BackendError):
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
    cuda_graphs: bool = False,
) -> tuple[Backend, tuple[Attempt, ...]]:
    """Open the bundle's model of `role` on the first engine that works.

    backend : one of `registry.backend_names`; its engines are tried first, the others after them.
    require : the same names, and no other engine is tried.
    precision : None for the fastest on the engine (fp16 on CUDA, fp32 on a CPU).
    build : makes a TensorRT engine where neither bundle nor cache holds one; None forbids it.
    cuda_graphs : let TensorRT replay CUDA graphs.
    Returns the backend and every attempt, the last one being the engine taken. Where a GPU engine fails
    later, in the middle of a run, the backend goes on with the next engine by itself unless `require` is
    given; `base.notes` tells.
    Raises BackendError (exit 5) where no engine works, BundleError where the model is not the bundle's.
    """
    engines = iter(_order(backend, require))
    remaining = _Remaining(bundle, role, to, precision, threads, build, cuda_graphs, engines)
    opened = remaining.open_next()
    if opened is None:
        raise _unavailable(remaining.attempts, role, require)
    attempts = tuple(remaining.attempts)
    if require in (None, "auto") and on_gpu(opened):
        return FallbackBackend(remaining, opened), attempts
    return opened, attempts


def _order(backend: str, require: str | None) -> tuple[Engine, ...]:
    preferred, required = engines_named(backend), engines_named(require or "auto")
    if require not in (None, "auto"):
        return required
    return preferred + tuple(engine for engine in ENGINES if engine not in preferred)


def _unavailable(attempts: list[Attempt], role: str, require: str | None) -> BackendError:
    tried = "; ".join(map(str, attempts))
    if require in (None, "auto"):
        return BackendError(f"No backend can run {role}: {tried}.", REMEDY)
    remedy = attempts[-1].remedy
    remedy = f"{remedy.rstrip('.')}  (or leave --require out)" if remedy else REMEDY
    return RequiredBackendUnavailable(f"Required backend {require}: {tried}.", remedy)


@dataclass
class _Remaining:
    """The engines that are still to be tried for one model. attempts : what came of the others."""

    bundle: Bundle
    role: str
    to: str | None
    precision: str | None
    threads: int | None
    build: Build | None
    cuda_graphs: bool
    engines: Iterator[Engine]
    attempts: list[Attempt] = field(default_factory=list)

    def open_next(self) -> Backend | None:
        """The model on the next engine that works; None where there is none left."""
        for engine in self.engines:
            problem, remedy = missing(engine)
            if problem:
                self.attempts.append(Attempt(engine, "unavailable", problem, remedy=remedy))
                continue
            wanted = self.precision or engine.fastest
            entry = _entry(self.bundle, self.role, self.precision, engine.fastest, self.to)
            try:
                opened, what = self._open(engine, entry)
            except BackendError as error:
                reason = error.message.rstrip(".")
                self.attempts.append(Attempt(engine, "failed", reason, entry.file, error.remedy))
                continue
            held = entry.precision
            held += "" if held == wanted else f", {wanted} is not in the bundle"
            self.attempts.append(Attempt(engine, "ran", f"{what} ({held}) on {opened.device}", entry.file))
            return opened
        return None

    def _open(self, engine: Engine, entry: ModelEntry) -> tuple[Backend, str]:
        """The opened backend, and the name of what it runs."""
        if engine.built:
            return open_built(self.bundle, entry, engine.package, self.build, self.cuda_graphs)
        data = self.bundle.read(entry)
        return open_model(engine, data, self.threads, entry.file), entry.file


def _entry(bundle: Bundle, role: str, precision: str | None, fastest: str, to: str | None) -> ModelEntry:
    """The model in the precision asked for; else in the fastest one, else in any that there is."""
    if precision:
        return bundle.model(role, precision=precision, to=to)
    any_precision = bundle.model(role, to=to)
    same = [e for e in bundle.models if e.role == role and e.target == any_precision.target]
    return next((entry for entry in same if entry.precision == fastest), any_precision)


class FallbackBackend:
    """A backend that goes on with the next engine where its own fails, and runs the batch again there.

    What it says of itself is of the engine that runs now; `notes` tells of the others.
    """

    def __init__(self, remaining: _Remaining, opened: Backend) -> None:
        self._remaining = remaining
        self._noted = len(remaining.attempts)
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
                self._replace(running, error)
            except BackendError:
                with self._lock:  # waits where another thread is opening the next engine
                    if self._backend is running:
                        raise

    def _replace(self, failed: Backend, error: EngineFailure) -> None:
        """Put the next engine in place of one that failed; raises `error` where there is none."""
        with self._lock:
            if self._backend is not failed:
                return  # another thread has
            self._notes += [*notes(failed), f"{failed.name} failed: {error.message}"]
            with suppress(Exception):  # what has failed may fail in closing too
                failed.close()  # the next engine may want the same GPU's memory
            opened = self._remaining.open_next()
            self._notes += map(str, self._remaining.attempts[self._noted :])
            self._noted = len(self._remaining.attempts)
            if opened is None:
                raise error
            self._adopt(opened)

    def close(self) -> None:
        with self._lock:
            self._backend.close()
