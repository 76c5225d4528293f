"""A bundle as a model repository of NVIDIA's Triton Inference Server, for `hz-run --backend remote`.

Every network of a run becomes a model under the name by which hz asks for it, which is the hash of its ONNX
file: several bundles share a repository, and a changed network is another model. TensorRT engines that the
bundle holds become models of their own beside it. Engines of TensorRT for RTX and engines without weights
are left out: Triton's back end opens neither. Nothing here imports Triton, and none was available to try it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from hz_runtime.backends.kserve import PARAMETER, model_name
from hz_runtime.backends.remote import BUILT
from hz_runtime.bundle.manifest import RUN_ROLES, EngineEntry, ModelEntry, TensorSpec
from hz_runtime.bundle.store import Bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import atomic_write_bytes, shown

VERSION = "1"  # one for ever: other bytes have another name
MOST = 16  # volumes or slices a call: what hz's TensorRT engines take, and the most slices that it sends
DELAY_US = 5000  # that a volume waits for others: less than a hundredth of what a network takes on a CPU
_WEIGHTLESS = "stripped"  # in an engine's flags
_ONNX, _PLAN = ("onnxruntime", "onnxruntime_onnx"), ("tensorrt", "tensorrt_plan")


def write_repository(
    bundle: Bundle, folder: Path, instances: int = 1, say: Callable[[str], None] = lambda _: None
) -> tuple[str, ...]:
    """Write a model repository, or add to one; models of other bundles in it stay.

    instances : of every network on each device: so many batches at once.
    say : gets a line for every model, and for every engine that is left out.
    Returns the models' names. Raises UsageError for a folder that holds other things, HzError where it cannot
    be written.
    """
    _check(folder)
    names = []
    for model in (entry for entry in bundle.models if entry.role in RUN_ROLES):
        for entry, name, problem in _servable(bundle, model):
            if problem:
                say(f"left out: {entry.file} ({problem})")
                continue
            data = bundle.read(entry)
            engine = entry if isinstance(entry, EngineEntry) else None
            try:
                file = "model.onnx" if engine is None else "model.plan"
                (folder / name / VERSION).mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(folder / name / VERSION / file, data)
                text = configuration(name, model, engine, instances, bundle.id)
                atomic_write_bytes(folder / name / "config.pbtxt", text.encode("ascii"))
            except OSError as error:
                raise HzError(
                    f"{shown(folder)}: {name} cannot be written ({error.strerror}).",
                    "Check that the folder is writable and has space, or name another one.",
                ) from error
            names.append(name)
            say(f"{name}: {entry.file}")
    return tuple(names)


def _check(folder: Path) -> None:
    try:
        strange = [
            path.name
            for path in folder.iterdir()  # an export that was killed may lack a model's configuration
            if not (path / "config.pbtxt").is_file() and not path.name.startswith("hz-")
        ]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{shown(folder)} is no folder.", "Name another one.") from None
    if strange:
        raise UsageError(
            f"{shown(folder)} holds {strange[0][:80]}, which is no model of Triton.", "Name another folder."
        )


def _servable(bundle: Bundle, model: ModelEntry) -> Iterator[tuple[ModelEntry | EngineEntry, str, str]]:
    """(what to serve, under which name, why not) of a network: its ONNX file, and engines built from it."""
    name = model_name(model.sha256)
    yield model, name, ""
    served = False
    for engine in bundle.engines_of(model):
        if engine.record.flavour != "tensorrt":
            yield engine, "", "Triton has no TensorRT for RTX"
        elif _WEIGHTLESS in engine.record.flags:
            yield engine, "", "it has no weights"
        elif served:
            yield engine, "", "another engine of this network is there; serve it from a repository of its own"
        else:
            served = True
            yield engine, name + BUILT, ""


def configuration(
    name: str, model: ModelEntry, engine: EngineEntry | None, instances: int, bundle_id: str
) -> str:
    """config.pbtxt of a network: inference.ModelConfig in protobuf's text form."""
    backend, platform = _ONNX if engine is None else _PLAN
    kind = "KIND_AUTO" if engine is None else "KIND_GPU"
    most = MOST if engine is None else engine.record.profile.most
    facts = {PARAMETER: model.sha256, "hz_file": model.file, "hz_role": model.role, "hz_bundle": bundle_id}
    facts["hz_precision"] = model.precision
    if engine is not None:
        facts |= {
            "hz_engine": engine.file,
            "hz_tensorrt": engine.record.version,
            "hz_capability": ", ".join(engine.record.capability),
        }
    (source,) = model.inputs
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(backend)}",
        f"platform: {_quoted(platform)}",
        f"max_batch_size: {most}",
        *_tensor("input", source),
        *(line for spec in model.outputs for line in _tensor("output", spec)),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group {{ kind: {kind} count: {instances} }}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}",
        *(line for size in dict.fromkeys((1, most)) for line in _warm_up(source, size)),
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in facts.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, spec: TensorSpec) -> list[str]:
    """The batch's axis is Triton's own and is not listed."""
    return [f"{kind} {{ name: {_quoted(spec.name)} data_type: TYPE_FP32 dims: {_dims(spec)} }}"]


def _warm_up(source: TensorSpec, size: int) -> list[str]:
    """A batch of empty volumes before the first that counts: kernels are chosen and memory is taken."""
    return [
        f'model_warmup {{ name: "batch of {size}" batch_size: {size} inputs {{ key: {_quoted(source.name)} '
        f"value {{ data_type: TYPE_FP32 dims: {_dims(source)} zero_data: true }} }} }}"
    ]


def _dims(spec: TensorSpec) -> str:
    return f"[ {', '.join(str(axis) if isinstance(axis, int) else '-1' for axis in spec.shape[1:])} ]"


def _quoted(text: str) -> str:
    """A string of protobuf's text form; everything that comes here is printable ASCII or is made so."""
    plain = text.encode("ascii", "replace").decode()
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
