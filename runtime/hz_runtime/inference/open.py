"""A bundle's networks, opened on the engines that are to run them, as numpy-in, numpy-out objects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from hz_runtime.backends.base import Backend
from hz_runtime.backends.fallback import Attempt, choose
from hz_runtime.backends.file_choice import FAST
from hz_runtime.backends.registry import engines_named, missing
from hz_runtime.errors import UsageError
from hz_runtime.inference.pass_through import PassThrough
from hz_runtime.inference.predictors import AgePredictor, DiagnosisPredictor, Harmonizer
from hz_runtime.model_space.recipe import Recipe

if TYPE_CHECKING:
    from hz_runtime.backends.built_engines import Build
    from hz_runtime.bundle.store import Bundle


@dataclass(frozen=True)
class NetworkOptions:
    """What runs the networks; the defaults take the fastest engine that is here.

    to : site to harmonize to; None for the only one.  backend : "auto", "openvino", "onnxruntime", ...: tried
    first.  require : the same, and no other is tried.  precision : of the files to run, for the networks of
    which the bundle holds such a file, or "fast" (`backends.file_choice`); None for the engine's own.
    threads : CPU threads of one network run; None for all that this process may use.
    build : makes a TensorRT engine where neither bundle nor cache holds one; None forbids it.
    cuda_graphs : let TensorRT record the GPU's work once and replay it.
    """

    to: str | None = None
    backend: str = "auto"
    require: str | None = None
    precision: str | None = None
    threads: int | None = None
    build: Build | None = None
    cuda_graphs: bool = False


@dataclass(frozen=True)
class Networks:
    """The opened networks of a bundle, thread-safe; a context manager that closes them.

    harmonizer : a `PassThrough` where the bundle holds none.
    age_predictor, diagnosis_predictor : None where the bundle holds no such network.
    attempts : by role, every engine that was tried for it, the one that was taken last.
    """

    harmonizer: Harmonizer
    age_predictor: AgePredictor | None = None
    diagnosis_predictor: DiagnosisPredictor | None = None
    attempts: Mapping[str, tuple[Attempt, ...]] = field(default_factory=dict)

    @property
    def backends(self) -> dict[str, Backend]:
        """The opened backends by role, the harmonizer's first where there is one."""
        networks = {
            "harmonizer": self.harmonizer if self.harmonizer.harmonizes else None,
            "age": self.age_predictor,
            "diagnosis": self.diagnosis_predictor,
        }
        return {role: network.backend for role, network in networks.items() if network is not None}

    def close(self) -> None:
        """Give the engines' memory back; twice is fine."""
        for backend in self.backends.values():
            backend.close()

    def __enter__(self) -> Networks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_networks(bundle: Bundle, options: NetworkOptions | None = None) -> Networks:
    """Open all networks that a bundle holds, each on the first engine that works.

    Raises BundleError, UsageError where the bundle maps to several sites or holds no file of
    `options.precision`, and BackendError where no engine (or not the required one) opens.
    """
    options = options or NetworkOptions()
    recipe = Recipe.from_dict(dict(bundle.recipe))
    roles = {model.role for model in bundle.models}
    in_precision = {model.role for model in bundle.models if model.precision == options.precision}
    if options.precision == FAST or (not in_precision and _takes_hint(options)):
        in_precision = roles
    if options.precision and not in_precision:
        raise UsageError(
            f"{bundle.path.name} holds no {options.precision} file.",
            "Leave --precision out, or export one:  hz-export --help",
        )
    attempts: dict[str, tuple[Attempt, ...]] = {}
    with ExitStack() as opened:  # where one cannot be opened, none stays open

        def backend_of(role: str) -> Backend:
            backend, attempts[role] = choose(
                bundle,
                role,
                options.backend,
                options.require,
                to=options.to if role == "harmonizer" else None,
                precision=options.precision if role in in_precision else None,
                threads=options.threads,
                build=options.build,
                cuda_graphs=options.cuda_graphs,
            )
            opened.callback(backend.close)
            return backend

        kind, first = _first_role(bundle, roles, options.to)
        backend = backend_of(first)
        entry, reference = bundle.entry(backend.sha256), bundle.cohort.get("reference")
        harmonizer = kind(backend, recipe, entry, bundle.statistics, reference)
        age_predictor = diagnosis_predictor = None
        if "age" in roles:
            backend = backend if first == "age" else backend_of("age")
            age_range = bundle.cohort.get("age_range")
            age_predictor = AgePredictor(
                backend,
                bundle.age_bias,
                recipe,
                bundle.age_interval,
                age_range,
                bundle.anatomy,
                bundle.age_features.reference() if bundle.age_features else None,
                bundle.age_distribution,
            )
        if "diagnosis" in roles:
            backend = harmonizer.backend if first == "diagnosis" else backend_of("diagnosis")
            diagnosis_predictor = DiagnosisPredictor(backend, bundle.entry(backend.sha256), recipe)
        opened.pop_all()
    return Networks(harmonizer, age_predictor, diagnosis_predictor, attempts)


def _first_role(bundle: Bundle, roles: set[str], to: str | None) -> tuple[type[Harmonizer], str]:
    """What stands in front of a bundle's predictors, and the role of the network that it runs on."""
    others = [role for role in ("age", "diagnosis") if role in roles]
    if "harmonizer" in roles or not others:
        return Harmonizer, "harmonizer"  # without any of them, that there is none is said where it is opened
    if to is not None:
        raise UsageError(f"{bundle.path.name} harmonizes nothing: it holds no harmonizer.", "Leave --to out.")
    return PassThrough, others[0]


def _takes_hint(options: NetworkOptions) -> bool:
    """Whether an engine that may run here can be asked to compute float32 files in the precision wanted."""
    return any(
        options.precision in engine.hints[1:] and not missing(engine)[0]
        for engine in engines_named(options.require or "auto")
    )
