"""A bundle's files on every engine of this machine, as candidates for timing.

Engines are opened by the runtime's own fallback, so that what is timed is what hz-run would run: its checks
of shape and finiteness are part of every call. A TensorRT engine that neither bundle nor cache holds is built
first, as hz-run would: timings without the fastest engine would say nothing. Building is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hz_export.bench import F32, Candidate, OpenCandidate
from hz_export.engine import builder
from hz_runtime.backends.base import Backend, describe
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.file_choice import FileChoice
from hz_runtime.backends.registry import ENGINES
from hz_runtime.inference.slice_wise import answer_of

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle, ModelEntry

# A CPU has no use for a graph typed for a GPU's units: it is computed in float32, with more casts.
ON_CPU = ("fp32", "int8")


def entries(bundle: Bundle, role: str, to: str | None = None) -> list[ModelEntry]:
    """The bundle's files of one role and target, in its order; raises as `Bundle.model` does."""
    target = bundle.model(role, to=to).target
    return [entry for entry in bundle.models if entry.role == role and entry.target == target]


def engine_candidates(
    bundle: Bundle,
    role: str = "harmonizer",
    to: str | None = None,
    threads: int | None = None,
    names: Sequence[str] = (),
) -> list[Candidate]:
    """Every engine with every file that makes sense there, e.g. "openvino int8", and with every type that it
    can be asked to compute the file's float32 in: "openvino bf16", "openvino int8 in bf16".

    names : of the engines to keep, none for all.  threads : of the CPU, None for all.
    """
    found = []
    for engine in ENGINES:
        name, device = engine.name, engine.device
        for entry in entries(bundle, role, to):
            if (names and name not in names) or (device == "cpu" and entry.precision not in ON_CPU):
                continue
            for hint in engine.hints:
                choice = FileChoice(entry, hint)
                opener = _opener(bundle, choice, name, device, threads)
                found.append(Candidate(f"{name} {choice.precision}", opener))
    return found


def _opener(
    bundle: Bundle, choice: FileChoice, name: str, device: str, threads: int | None
) -> Callable[[], OpenCandidate]:
    entry = choice.entry

    def open_it() -> OpenCandidate:
        backend, _ = choose(
            bundle,
            entry.role,
            require=name,
            to=entry.target,
            precision=choice,
            threads=threads,
            build=builder(),
        )
        return from_backend(f"{name} {choice.precision}", backend, device, entry.precision)

    return open_it


def from_backend(name: str, backend: Backend, device: str, precision: str) -> OpenCandidate:
    """An opened backend as a candidate.  device : "cpu" or "cuda".  precision : of the file it runs."""

    def answer(batch: F32) -> F32:
        return answer_of(backend.run(batch))

    return OpenCandidate(
        name, device, precision, describe(backend), answer, _resident(backend, device), backend.close
    )


def _resident(backend: Any, device: str) -> Callable[[F32], Callable[[], object]] | None:
    """How this engine runs on data that is already in the GPU's memory; None where it does not say."""
    if device == "cpu":
        return None
    if hasattr(backend, "resident"):
        resident: Callable[[F32], Callable[[], object]] = backend.resident
        return resident
    if backend.name == "onnxruntime":
        return lambda batch: bound(backend, batch, device)
    return None


def bound(backend: Any, batch: F32, device: str) -> Callable[[], object]:
    """onnxruntime with input and output bound to `device` memory: a call that moves nothing and waits.

    Reaches into the backend's session: the runtime itself has no use for data that stays on the GPU.
    """
    from hz_runtime.backends.ort import quiet_onnxruntime

    session = backend._session
    binding = session.io_binding()
    value = quiet_onnxruntime().OrtValue.ortvalue_from_numpy(batch, device, 0)
    binding.bind_ortvalue_input(backend.inputs[0].name, value)
    for spec in backend.outputs:
        binding.bind_output(spec.name, device, 0)

    def call() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call
