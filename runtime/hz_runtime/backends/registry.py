"""The table of engines that run networks, and how one of them is opened. It imports none of them.

From `ENGINES` come the order in which engines are tried, their names for `--backend` and `--require`, and
what messages call them. A new engine takes

1. a row of `ENGINES`, where its speed puts it;
2. the file that the row names, in this folder, with two functions:
   `missing(package, device)`, why it cannot run here, half a sentence, and the remedy ("" : install the row's
   extra); ("", "") where it can. It must not load the engine where that could fail loudly.
   `open_model(model, device, threads, where)`, a `Backend` (base.py) of ONNX bytes that are known to hold all
   their weights; BackendError where the engine cannot run them. It asks `base.check_batch` and
   `base.check_outputs` before and after each run.
3. its extra in pyproject.toml.

tests/contracts takes its list from here. An engine that runs what was built from an ONNX file beforehand
(`built`) is opened by built_engines.py, which knows TensorRT's.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hz_runtime.errors import BackendError, UsageError

if TYPE_CHECKING:
    from hz_runtime.backends.base import Backend


@dataclass(frozen=True)
class Engine:
    """One way of running a network.

    name : for `--backend`.  family : what it shares with the same package's other devices, another name for
    `--backend`, and `Backend.name`.  label : in messages.  device : "cpu", "cuda" or "server".
    fastest : the precision of file that is fastest on it.  extra : of hz-mri that installs it, "" for none.
    file : its module in this folder.  package : what it imports.  distributions : that bring the package.
    built : it runs engines that were built from an ONNX file, not that file.
    hints : the types that it can be asked to compute in what a file holds as float32; with more than "fp32"
    its `open_model` takes one of them as `hint`, and raises BackendError where this machine has no such type.
    by_name : taken where it is asked for by its name, never by "auto" nor in the place of another.
    """

    name: str
    family: str
    label: str
    device: str
    fastest: str
    extra: str
    file: str
    package: str
    distributions: tuple[str, ...]
    built: bool = False
    hints: tuple[str, ...] = ("fp32",)
    by_name: bool = False

    @property
    def install(self) -> str:
        """The command that installs it, or says where it is."""
        if not self.extra:
            return "export HZ_REMOTE=http://HOST:8000"
        command = f"pip install 'hz-mri[{self.extra}]'"
        return command if self.device == "cpu" else f"On a machine with an NVIDIA GPU:  {command}"

    def module(self) -> Any:
        """Its file, imported now."""
        return import_module(f"hz_runtime.backends.{self.file}")


# Fastest first. This is the order in which they are tried.
ENGINES = (
    Engine(
        name="tensorrt",
        family="tensorrt",
        label="TensorRT",
        device="cuda",
        fastest="fp16",
        extra="tensorrt",
        file="trt",
        package="tensorrt",
        distributions=("tensorrt",),
        built=True,
    ),
    Engine(
        name="tensorrt-rtx",
        family="tensorrt-rtx",
        label="TensorRT for RTX",
        device="cuda",
        fastest="fp16",
        extra="rtx",
        file="trt",
        package="tensorrt_rtx",
        distributions=("tensorrt-rtx",),
        built=True,
    ),
    Engine(
        name="onnxruntime-cuda",
        family="onnxruntime",
        label="onnxruntime CUDA",
        device="cuda",
        fastest="fp16",
        extra="gpu",
        file="ort",
        package="onnxruntime",
        distributions=("onnxruntime-gpu", "onnxruntime"),
    ),
    Engine(
        name="openvino",
        family="openvino",
        label="OpenVINO CPU",
        device="cpu",
        fastest="fp32",
        extra="openvino",
        file="ov",
        package="openvino",
        distributions=("openvino",),
        hints=("fp32", "bf16"),
    ),
    Engine(
        name="onnxruntime-cpu",
        family="onnxruntime",
        label="onnxruntime CPU",
        device="cpu",
        fastest="fp32",
        extra="cpu",
        file="ort",
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
    ),
    Engine(
        name="remote",
        family="remote",
        label="KServe v2 server",
        device="server",
        fastest="fp32",
        extra="",
        file="remote",
        package="http",
        distributions=(),
        by_name=True,
    ),
)


def backend_names() -> tuple[str, ...]:
    """What `--backend` takes: "auto", and every engine's family and name, fastest first."""
    return ("auto", *dict.fromkeys(name for engine in ENGINES for name in (engine.family, engine.name)))


def engines_named(asked: str) -> tuple[Engine, ...]:
    """The engines of a name or family, fastest first; for "auto" all but those that go by name alone.

    UsageError for another word.
    """
    found = tuple(
        engine
        for engine in ENGINES
        if asked in (engine.name, engine.family) or (asked == "auto" and not engine.by_name)
    )
    if not found:
        raise UsageError(f"No backend is called {asked!r}.", f"Known: {', '.join(backend_names())}.")
    return found


def missing(engine: Engine) -> tuple[str, str]:
    """Why an engine cannot even be tried here, half a sentence, and the remedy; ("", "") where it can."""
    problem, remedy = engine.module().missing(engine.package, engine.device)
    return problem, remedy or (engine.install if problem else "")


def installed() -> tuple[tuple[str, str], ...]:
    """(family, version) of every engine here that takes ONNX bytes, those for a CPU first; imports none."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for engine in sorted(ENGINES, key=lambda engine: engine.device != "cpu"):
        if engine.built or engine.by_name or engine.family in found or find_spec(engine.package) is None:
            continue
        found[engine.family] = "unknown"
        for distribution in engine.distributions:
            try:
                found[engine.family] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return tuple(found.items())


def open_model(engine: Engine, model: bytes, threads: int | None, where: str, hint: str = "fp32") -> Backend:
    """Open ONNX bytes with an engine that takes them; arguments and errors are those of `open_backend`."""
    from hz_runtime.backends.external_data import check_self_contained  # not for every command's --help
    from hz_runtime.cpus import usable_cpus

    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads make no sense.", "Use 1 or more.")
    if find_spec(engine.package) is None:
        raise BackendError(f"{engine.package} is not installed.", engine.install)
    check_self_contained(model, where)
    if hint not in engine.hints:
        raise BackendError(f"{engine.label} does not compute float32 files in {hint}.", "Leave it out.")
    hinted = {} if hint == "fp32" else {"hint": hint}
    opened: Backend = engine.module().open_model(
        model, engine.device, threads or usable_cpus(), where, **hinted
    )
    return opened


def open_backend(
    name: str,
    model: bytes,
    *,
    device: str = "auto",
    threads: int | None = None,
    where: str = "model",
    hint: str = "fp32",
) -> Backend:
    """Open ONNX bytes with the engine of a name or family, e.g. "onnxruntime".

    device : "cpu", "cuda", "server", or "auto" for the first on which the engine can run here.
    threads : CPU threads of one run, None for all this process may use.  where : the model's name for
    messages.  hint : the type in which to compute what the file holds as float32, one of `Engine.hints`.
    Raises BackendError where the engine is absent or cannot run the model there, BundleError where the model
    points at other files.
    """
    takes = [engine for engine in engines_named(name) if not engine.built]
    fitting = [engine for engine in takes if device in ("auto", engine.device)]
    if not fitting:
        known = ", ".join(engine.name for engine in ENGINES if not engine.built)
        raise BackendError(f"{name} does not open an ONNX file on {device}.", f"Those that do: {known}.")
    usable = (engine for engine in fitting[:-1] if not missing(engine)[0])
    return open_model(next(usable, fitting[-1]), model, threads, where, hint)
