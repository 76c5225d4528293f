"""Built TensorRT engines: what each was built from, and where they are kept.

An engine belongs to one ONNX file, one profile of batch sizes, one TensorRT and one kind of GPU. All of
that is in its key; the key names the file, so that a changed network or another TensorRT finds no engine
rather than a wrong one. Engines hold machine code: their bytes are hashed before TensorRT sees them.

Nothing here imports TensorRT: the runtime reads engines, `hz_export.engine` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hz_runtime.errors import BackendError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_bytes
from hz_runtime.io.json_text import OTHER_FORM
from hz_runtime.io.user_folders import user_folder

FLAVOURS = ("tensorrt", "tensorrt_rtx")
RECORD = 1  # version of the record's layout


@dataclass(frozen=True)
class Profile:
    """Batch sizes an engine accepts: least, tuned for, most."""

    least: int = 1
    tuned: int = 4
    most: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.tuned <= self.most:
            raise ValueError(f"batch sizes {self.least}, {self.tuned}, {self.most} are not in order")


@dataclass(frozen=True)
class EngineRecord:
    """What an engine was built from, and what came out.

    flavour : one of FLAVOURS.  version : of the builder, e.g. "11.4.0.106".
    capability : compute capabilities it runs on, e.g. ("9.0",), or ("8.0", "8.6", "8.9", "12.0").
    flags : builder options that change the engine, sorted, e.g. ("version_compatible",).
    precision : asked for by the ONNX file and read back from the built layers; they must agree.
    layers : how many layers the engine has of each output type, e.g. {"fp16": 31, "fp32": 17}.
    """

    role: str
    model_sha256: str
    flavour: str
    version: str
    capability: tuple[str, ...]
    profile: Profile
    flags: tuple[str, ...]
    precision: str
    layers: Mapping[str, int]
    sha256: str
    bytes: int

    @property
    def key(self) -> str:
        """See `engine_key`."""
        return engine_key(
            self.model_sha256, self.profile, self.flags, self.flavour, self.version, self.capability
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"record": RECORD, **asdict(self), "layers": dict(self.layers)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EngineRecord:
        """Raises BackendError where a field is missing or of another kind."""
        try:
            if raw["record"] != RECORD or raw["flavour"] not in FLAVOURS:
                raise ValueError
            return cls(
                role=str(raw["role"]),
                model_sha256=str(raw["model_sha256"]),
                flavour=str(raw["flavour"]),
                version=str(raw["version"]),
                capability=tuple(map(str, raw["capability"])),
                profile=Profile(**{key: int(raw["profile"][key]) for key in ("least", "tuned", "most")}),
                flags=tuple(map(str, raw["flags"])),
                precision=str(raw["precision"]),
                layers={str(k): int(v) for k, v in raw["layers"].items()},
                sha256=str(raw["sha256"]),
                bytes=int(raw["bytes"]),
            )
        except OTHER_FORM:
            raise BackendError(
                "The record of an engine is not readable.", "Build the engine again."
            ) from None


def engine_key(
    model_sha256: str,
    profile: Profile,
    flags: tuple[str, ...],
    flavour: str,
    version: str,
    capability: tuple[str, ...],
) -> str:
    """Hex sha256 over everything that decides whether an engine may be used."""
    parts = [model_sha256, asdict(profile), sorted(flags), flavour, version, sorted(capability)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_cache() -> Path | None:
    """HZ_ENGINES, or hz/engines in the user's cache folder; None for a user who has none."""
    if given := os.environ.get("HZ_ENGINES"):
        return Path(given)
    caches = user_folder("XDG_CACHE_HOME", ".cache")
    return caches and caches / "hz" / "engines"


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time inside, for one lock file, which stays. Ends with its process, however that ends.

    waiting : called once, where another process is inside.  Raises OSError where the file cannot be made.
    """
    import fcntl

    with open(path, "wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class EngineCache:
    """A folder of KEY.engine and KEY.json pairs, shared by any number of processes.

    folder : None where the user has none to keep engines in: none is found, and to store one is an error.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache()

    def record_files(self) -> list[Path]:
        """The KEY.json files, sorted; whether they are records is for `EngineRecord.from_dict`."""
        return sorted(self.folder.glob("*.json")) if self.folder else []

    def find(self, key: str) -> tuple[EngineRecord, bytes] | None:
        """The engine of `key`, its bytes verified; None where there is none.

        Raises BackendError for an engine that does not match its record: it is never handed to TensorRT.
        """
        if self.folder is None:
            return None
        record_file, engine_file = self.folder / f"{key}.json", self.folder / f"{key}.engine"
        try:
            text, data = record_file.read_bytes(), engine_file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(key, f"cannot be read ({error.strerror})") from None
        try:
            record = EngineRecord.from_dict(json.loads(text))
        except (BackendError, *OTHER_FORM):
            raise self._refused(key, "has a record that is not readable") from None
        if record.key != key:
            raise self._refused(key, "was built for something else")
        if sha256_bytes(data) != record.sha256:
            raise self._refused(key, "does not match its sha256")
        return record, data

    def store(self, record: EngineRecord, data: bytes) -> None:
        """Keep an engine; the record goes last, so that a pair found is whole.

        Raises HzError where the folder cannot be written, BackendError where there is none.
        """
        if sha256_bytes(data) != record.sha256:
            raise ValueError("the record is of other bytes")
        folder = self._made_folder()
        atomic_write_bytes(folder / f"{record.key}.engine", data)
        text = json.dumps(record.to_dict(), indent=1, sort_keys=True)
        atomic_write_bytes(folder / f"{record.key}.json", text.encode())

    @contextmanager
    def lock(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One process at a time inside, for one `name` (a key): of several that start together one builds,
        the others wait and then find what it built. Ends with its process, however that ends.

        waiting : called once, where another process is inside.
        """
        path = self._made_folder() / f"{name}.lock"
        try:
            stream = path.open("ab")
        except OSError as error:
            raise self._unwritable(error) from None
        stream.close()
        with file_lock(path, waiting):
            yield

    def rebuild(self, key: str) -> str:
        """The remedy for an engine that is refused: the command after which it is built again."""
        return f"Remove it; the next run builds it again:  rm {self.folder}/{key[:12]}*"

    def _refused(self, key: str, what: str) -> BackendError:
        return BackendError(f"Engine {key[:12]} {what}.", self.rebuild(key))

    def _made_folder(self) -> Path:
        if self.folder is None:
            raise BackendError(
                "There is no folder to keep engines in: this user has no home.",
                "Name one:  export HZ_ENGINES=FOLDER",
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return self.folder

    def _unwritable(self, error: OSError) -> BackendError:
        return BackendError(
            f"The folder for engines cannot be written ({self.folder}: {error.strerror}).",
            "Name another one:  export HZ_ENGINES=FOLDER",
        )
