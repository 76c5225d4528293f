"""Which engine runs a model: the first of the table that works, and the next one where it fails later.

Every engine that was tried is kept as an `Attempt`. What engines there are is known to registry.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hz_runtime.backends.base import REMEDY, Backend, EngineFailure, hint_of, notes, on_gpu
from hz_runtime.backends.built_engines import Build, open_built
from hz_runtime.backends.file_choice import FAST, FileChoice, file_choices
from hz_runtime.backends.registry import Engine, engines_named, missing, open_model
from hz_runtime.errors import BackendError, BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hz_runtime.bundle.store import Bundle


@dataclass(frozen=True)
class Attempt:
    """What came of one engine.

    outcome : "ran" (it opened, and runs the model), "unavailable" (it could not be tried here) or "failed"
    (it did not open).  reason : why not; of one that ran, what it runs and on which device.
    file : the model's, "" where it was not looked for.  remedy : what would let it run.
    caveat : of one that ran, what is known against the precision that was asked for; "" for nothing.
    """

    engine: Engine
    outcome: Literal["ran", "unavailable", "failed"]
    reason: str
    file: str = ""
    remedy: str = ""
    caveat: str = ""

    def __str__(self) -> str:
        """One line, as run.json and the log have it."""
        said = {
            "ran": f"runs {self.reason}",
            "unavailable": f"not available ({self.reason})",
            "failed": f"could not open {self.file} ({self.reason})",
        }
        return f"{self.engine.label}: {said[self.outcome]}{'; ' if self.caveat else ''}{self.caveat}"


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
    precision: str | FileChoice | None = None,
    threads: int | None = None,
    build: Build | None = None,
    cuda_graphs: bool = False,
) -> tuple[Backend, tuple[Attempt, ...]]:
    """Open the bundle's model of `role` on the first engine that works.

    backend : one of `registry.backend_names`; its engines are tried first, the others after them.
    require : the same names, and no other engine is tried.
    precision : None for the engine's own (fp16 on CUDA, fp32 on a CPU); else as `file_choices` takes it, or
    the very file to open.
    build : makes a TensorRT engine where neither bundle nor cache holds one; None forbids it.
    cuda_graphs : let TensorRT replay CUDA graphs.
    Returns the backend and every attempt, the last one being the engine taken. Where a GPU or a server fails
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
    if require in (None, "auto") and (on_gpu(opened) or attempts[-1].engine.by_name):
        return FallbackBackend(remaining, opened), attempts
    return opened, attempts


def _order(backend: str, require: str | None) -> tuple[Engine, ...]:
    preferred, required = engines_named(backend), engines_named(require or "auto")
    if require not in (None, "auto"):
        return required
    return preferred + tuple(engine for engine in engines_named("auto") if engine not in preferred)


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
    precision: str | FileChoice | None
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
            opened = self._open_first(engine)
            if opened is not None:
                return opened
        return None

    def _open_first(self, engine: Engine) -> Backend | None:
        """The first of the files to try on an engine that opens there; None where none does."""
        try:
            choices = self._choices(engine)
        except BundleError as error:
            if self.precision != "bf16":  # which one engine takes as a hint, and another as a file
                raise
            self.attempts.append(
                Attempt(engine, "unavailable", error.message.rstrip("."), remedy=error.remedy)
            )
            return None
        for choice in choices:
            entry = choice.entry
            try:
                opened, what = self._open(engine, choice)
            except BackendError as error:
                reason = error.message.rstrip(".")
                self.attempts.append(Attempt(engine, "failed", reason, entry.file, error.remedy))
                continue
            if choice.proven and opened.precision != choice.proven:
                opened.close()
                reason = f"it computes in {opened.precision}, its evidence is of {choice.proven}"
                self.attempts.append(Attempt(engine, "failed", reason, entry.file))
                continue
            reason = f"{what} ({self._shown(engine, choice)}) on {opened.device}"
            self.attempts.append(Attempt(engine, "ran", reason, entry.file, caveat=choice.caveat))
            return opened
        return None

    def _choices(self, engine: Engine) -> tuple[FileChoice, ...]:
        if isinstance(self.precision, FileChoice):
            return (self.precision,)
        return file_choices(self.bundle, self.role, engine, self.precision, self.to)

    def _shown(self, engine: Engine, choice: FileChoice) -> str:
        """The precision that runs, and what was wanted of it where that is another."""
        asked = self.precision
        if asked == FAST and engine.device == "cpu":
            return f"{choice.precision}, the quickest that the bundle has evidence for here"
        wanted = asked if isinstance(asked, str) and asked != FAST else engine.fastest
        held = choice.precision
        return (
            held
            if isinstance(asked, FileChoice) or held == wanted
            else f"{held}, {wanted} is not in the bundle"
        )

    def _open(self, engine: Engine, choice: FileChoice) -> tuple[Backend, str]:
        """The opened backend, and the name of what it runs."""
        entry = choice.entry
        if engine.built:
            return open_built(self.bundle, entry, engine.package, self.build, self.cuda_graphs)
        data = self.bundle.read(entry)
        return open_model(engine, data, self.threads, entry.file, choice.hint), entry.file


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
    def operators(self) -> Mapping[str, float]:
        return dict(getattr(self._backend, "operators", {}))

    @property
    def hint(self) -> str:
        return hint_of(self._backend)

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
