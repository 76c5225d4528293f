"""The engines of a bundle: of every graph asked for, those that TensorRT builds, and what it cannot.

A GPU's generation may lack the arithmetic of a graph: on Turing (7.5) TensorRT for RTX has neither float32
convolutions of volumes nor float32 matrix products, and bfloat16 is not there at all. Such a graph costs no
other graph its engine, and such a GPU no other GPU. How one engine is built is `engine`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hz_export.engine import build_engine
from hz_export.engine_messages import NoEngine
from hz_export.engine_target import EngineOptions, find_builder
from hz_export.export_options import ExportOptions
from hz_runtime.bundle.engine_cache import EngineRecord
from hz_runtime.errors import HzError


class EnginesMissing(HzError):
    """A bundle was published without engines that were asked for, as TensorRT builds none; exit 3."""

    exit_code = 3


@dataclass(frozen=True)
class Engines:
    """built : manifest entries and bytes.  missing : a line for each graph, and GPUs, without an engine."""

    built: tuple[tuple[dict[str, Any], bytes], ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """What the model card says of those that are missing."""
        return f"TensorRT engines that could not be built: {'; '.join(self.missing)}." if self.missing else ""

    def require_all(self, bundle: str) -> None:
        """Raise EnginesMissing where some are.  bundle : the name of what was published."""
        if self.missing:
            files = "; ".join(line.split(": ")[0] for line in self.missing)
            raise EnginesMissing(
                f"{bundle} is published, but without engines of {files}: its model card says why.",
                "Where an engine is missing, hz-run runs the ONNX file on another one, such as "
                "onnxruntime-cuda or onnxruntime-cpu.",
            )


def engines_of(
    models: Sequence[Mapping[str, Any]],
    files: Mapping[str, bytes],
    options: ExportOptions,
    say: Callable[[str], None],
) -> Engines:
    """A TensorRT engine of every graph in a precision asked for, or of the float32 graphs.

    models : manifest entries.  files : bytes by name.  say : told one line a step. Raises as `build_engine`,
    but for NoEngine, which is said, and counted as missing.
    """
    if options.build is None:
        return Engines()
    built, missing = [], []
    for model in models:
        if model["precision"] not in (options.precisions or ("fp32",)):
            continue
        chosen = replace(options.build, name=model["file"])
        found, gaps = _for_most(files[model["file"]], model, chosen, options.progress, say)
        missing += gaps
        if found is None:
            continue
        record, data = found
        file = f"{Path(model['file']).stem}.{record.flavour}.engine"
        evidence = {"measured": [], "note": "never run: parity of an engine is measured on its GPU"}
        built.append(({**record.to_dict(), "file": file, "parity": evidence}, data))
    return Engines(tuple(built), tuple(missing))


def _for_most(
    onnx: bytes, model: Mapping[str, Any], options: EngineOptions, progress: bool, say: Callable[[str], None]
) -> tuple[tuple[EngineRecord, bytes] | None, list[str]]:
    """(engine for all GPUs asked for but those that TensorRT names as the hindrance, or None; why not)."""
    gaps: list[str] = []
    while True:
        capability = find_builder(options).capability
        try:
            built = build_engine(onnx, model["role"], model["precision"], options, say=say, progress=progress)
            return built, gaps
        except NoEngine as error:
            hindering = [number for number in capability if number in error.capability] or list(capability)
            why = error.message.removeprefix(f"{options.name}: ").rstrip(".")
            gaps.append(f"{options.name} for {', '.join(hindering)}: {why}")
            say(f"no engine: {gaps[-1]}")
            left = tuple(number for number in capability if number not in hindering)
            if not left:
                return None, gaps
            options = replace(options, capability=left)
