"""TensorRT engines of a model, nearest first: the bundle's, the user's cache's, or one that is built now.

Building belongs to the export room, which the runtime does not know: the caller hands in what builds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hz_runtime.backends import cuda_driver, trt
from hz_runtime.backends.base import Backend, OutOfMemory
from hz_runtime.bundle.engine_cache import EngineCache, EngineRecord
from hz_runtime.errors import BackendError, HzError
from hz_runtime.io.json_text import OTHER_FORM

if TYPE_CHECKING:
    from hz_runtime.bundle.manifest import TensorSpec
    from hz_runtime.bundle.store import Bundle, EngineEntry, ModelEntry


@dataclass(frozen=True)
class BuildRequest:
    """An engine that is wanted for this machine.

    model : the ONNX file's bytes.  file : its name.  role : e.g. "harmonizer".  precision : what the file
    computes in.  flavour : one of engine_cache.FLAVOURS.  capability : of this machine's GPU, e.g. "9.0".
    """

    model: bytes
    file: str
    role: str
    precision: str
    flavour: str
    capability: str


# Gives the engine and its bytes; raises HzError where it cannot. May take minutes.
Build = Callable[[BuildRequest], tuple[EngineRecord, bytes]]


def open_built(
    bundle: Bundle, entry: ModelEntry, flavour: str, build: Build | None, cuda_graphs: bool
) -> tuple[Backend, str]:
    """The first engine of a model that opens here, and its name for messages.

    build : makes one where neither bundle nor cache holds one; None forbids it.
    Raises BackendError where none opens, BundleError for a bundle that was tampered with.
    """
    problems: list[str] = []
    remedy = trt.rebuild(flavour)
    for where, give in _engines(bundle, entry, flavour, build):
        try:
            record, data = give()
            if record.precision != entry.precision:
                raise BackendError(f"{where} computes in {record.precision}", remedy)
            weights = partial(bundle.read, entry)
            opened = trt.open_engine(data, record, where, cuda_graphs=cuda_graphs, weights=weights)
            if not _same(opened.inputs, entry.inputs) or not _same(opened.outputs, entry.outputs):
                opened.close()
                raise BackendError(f"{where} has other tensors than {entry.file}", trt.rebuild(flavour))
            return opened, where
        except OutOfMemory:
            raise  # another engine of the same model needs the same room
        except HzError as error:
            if error.exit_code not in (1, 5):
                raise  # a bundle that was tampered with is not an engine that fails
            problems.append(error.message.rstrip("."))
            remedy = error.remedy or remedy
        except Exception as error:  # of TensorRT's own bindings: the next engine may still work
            problems.append(f"{where} does not open ({type(error).__name__})")
    if not problems:
        problems.append(f"no engine for {cuda_driver.probe().device}, and none is to be built")
    raise BackendError("; ".join(problems), remedy)


def _engines(
    bundle: Bundle, entry: ModelEntry, flavour: str, build: Build | None
) -> Iterator[tuple[str, Callable[[], tuple[EngineRecord, bytes]]]]:
    """(name for messages, how to get it) of every engine that may be of this model, the nearest first."""
    for held in bundle.engines_of(entry):
        if held.record.flavour == flavour:
            yield held.file, partial(_held, bundle, held)
    cache = EngineCache()
    for record in _kept(cache, flavour, entry):
        yield f"kept engine {record.key[:12]}", partial(_found, cache, record.key)
    if build is not None:
        yield f"engine of {entry.file}", partial(_built, bundle, build, flavour, entry)


def _held(bundle: Bundle, held: EngineEntry) -> tuple[EngineRecord, bytes]:
    return held.record, bundle.read(held)


def _built(bundle: Bundle, build: Build, flavour: str, entry: ModelEntry) -> tuple[EngineRecord, bytes]:
    data = bundle.read(entry)
    here = cuda_driver.probe().capability
    return build(BuildRequest(data, entry.file, entry.role, entry.precision, flavour, here))


def _same(found: tuple[TensorSpec, ...], listed: tuple[TensorSpec, ...]) -> bool:
    """Whether these are the same tensors; what a free axis is called does not matter."""

    def plain(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, list[int | str]]]:
        found = ((s.name, s.dtype, [n if isinstance(n, int) else "N" for n in s.shape]) for s in specs)
        return sorted(found, key=lambda spec: spec[0])  # engines may list outputs in an order of their own

    return plain(found) == plain(listed)


def _kept(cache: EngineCache, flavour: str, entry: ModelEntry) -> list[EngineRecord]:
    """Records of the kept engines that were built from this model and fit here, newest TensorRT first.

    Records only: whether an engine is what its record says is for `EngineCache.find`.
    """
    found = []
    for path in cache.record_files():
        record = None
        with suppress(OSError, BackendError, *OTHER_FORM):
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
