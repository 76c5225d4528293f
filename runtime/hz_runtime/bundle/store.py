"""Bundles: `NAME.hz`, a directory with bundle.json, ONNX files and MODEL_CARD.md, verified before use.

What is guarded: every listed file is hashed before anything of it is parsed, and the bytes that an engine
gets are the very bytes that were hashed (read once; no path is ever handed on), so a file swapped between
check and use, a link or ONNX external data cannot smuggle other weights in. Who made a bundle is known only
of a signed one, by whoever trusts the key (`trust`): whoever can rewrite bundle.json consistently can publish
another bundle; else compare `Bundle.id`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.bundle.age_calibration import AgeBias
from hz_runtime.bundle.fields import REMEDY
from hz_runtime.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    PRECISIONS,
    ROLES,
    SCHEMA,
    EngineEntry,
    Manifest,
    ModelEntry,
    TensorSpec,
    bundle_id,
    check_name,
    parse,
)
from hz_runtime.bundle.signature import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    Signature,
    envelope,
    parse_signature,
    signed_bytes,
    statement,
)
from hz_runtime.errors import BundleError, HzError, UsageError
from hz_runtime.io.atomic import alive, atomic_write_bytes, sha256_bytes, shown, sync_folder

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import SigningKey
    from hz_runtime.bundle.trust import Trust

__all__ = [
    "AgeBias",
    "Bundle",
    "EngineEntry",
    "ModelEntry",
    "TensorSpec",
    "default_bundle",
    "load_bundle",
    "read_signature",
    "sign_bundle",
    "write_bundle",
]

MANIFEST = "bundle.json"
REFERENCE = "models/reference.hz"  # in the package, as data
MAX_FILE_BYTES = 2 << 30  # ONNX's own limit: one protobuf message holds less than 2 GiB
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle(Manifest):
    """A verified bundle: everything bundle.json says, and where it lies.

    signer : the trusted key that signed it, sha256 hex of its PEM; empty where none was asked for, or
    it is not signed.
    """

    path: Path
    signer: str = ""

    def model(self, role: str, *, precision: str | None = None, to: str | None = None) -> ModelEntry:
        """The one model of `role`, in `precision` (None: the first of PRECISIONS there is), to site `to`.

        Raises BundleError where the bundle has no such model and UsageError where `to` is needed to choose.
        """
        of_role = [entry for entry in self.models if entry.role == role]
        if not of_role:
            held = ", ".join(sorted({entry.role for entry in self.models}))
            raise BundleError(
                f"{self.path.name}: no {role} model (it holds: {held}).",
                "Use a bundle that was exported with one.",
            )
        targets = sorted({entry.target for entry in of_role if entry.target})
        if to is None and len(targets) > 1:
            raise UsageError(
                f"{self.path.name} maps to several sites: {', '.join(targets)}.", "Name one of them."
            )
        if to is not None and to not in targets:
            known = ", ".join(targets) or "none"
            raise UsageError(f"{self.path.name}: no {role} to site {to!r}.", f"Sites it maps to: {known}.")
        kept = [entry for entry in of_role if to is None or entry.target == to]
        for wanted in (precision,) if precision else PRECISIONS:
            for entry in kept:
                if entry.precision == wanted:
                    return entry
        held = ", ".join(sorted({entry.precision for entry in kept}))
        raise BundleError(
            f"{self.path.name}: no {role} model in {precision or 'any known precision'} (it holds: {held}).",
            "Export the one you need:  hz-export --help",
        )

    def engines_of(self, model: ModelEntry) -> tuple[EngineEntry, ...]:
        """The TensorRT engines that were built from this very file."""
        return tuple(entry for entry in self.engines if entry.record.model_sha256 == model.sha256)

    def read(self, entry: ModelEntry | EngineEntry) -> bytes:
        """The bytes of a model or engine, read once and proven to be the manifest's; hand these on."""
        where = self.path.name
        with _opened(self.path, entry.file, where) as (handle, size):
            if size != entry.bytes:
                raise _changed(where, entry.file, f"{size} bytes, expected {entry.bytes}")
            data: bytes = handle.read(entry.bytes + 1)
        found = sha256_bytes(data)
        if found != entry.sha256:
            raise _changed(where, entry.file, f"sha256 {found[:8]}..., expected {entry.sha256[:8]}...")
        return data

    def read_listed(self, name: str) -> bytes:
        """The bytes of any file that the manifest lists, read once and proven to be the manifest's."""
        where, expected = self.path.name, self.files[name]
        data = _read_whole(self.path, name, MAX_FILE_BYTES, where)
        if sha256_bytes(data) != expected:
            raise _changed(where, name, f"sha256 {sha256_bytes(data)[:8]}..., expected {expected[:8]}...")
        return data

    def entry(self, sha256: str) -> ModelEntry:
        """The model whose file has this sha256: what a backend says it runs, e.g. `backend.sha256`."""
        for entry in self.models:
            if entry.sha256 == sha256:
                return entry
        raise BundleError(f"{self.path.name}: no model has sha256 {sha256[:12]}...", REMEDY)


def load_bundle(path: str | os.PathLike[str] | None = None, trust: Trust | None = None) -> Bundle:
    """Read and verify a bundle; nothing of its files is parsed before all of them match their sha256.

    path : the NAME.hz directory; None finds the installed reference bundle (see `default_bundle`).
    trust : keys that its signature is held to; None asks for none.
    Raises BundleError (exit 4), naming the file and what to do.
    """
    root = Path(path) if path is not None else default_bundle()
    where = shown(root)
    data = _manifest(root, where)
    manifest = parse(data, where)
    sizes = {name: _verify(root, name, sha, where) for name, sha in manifest.files.items()}
    listed: tuple[ModelEntry | EngineEntry, ...] = (*manifest.models, *manifest.engines)
    for entry in listed:
        if entry.bytes != sizes[entry.file]:
            raise _changed(where, entry.file, f"{sizes[entry.file]} bytes, expected {entry.bytes}")
    return Bundle(
        path=root.absolute(),
        signer=_signer(root, trust, {**manifest.files, MANIFEST: sha256_bytes(data)}, where) if trust else "",
        **{field.name: getattr(manifest, field.name) for field in fields(Manifest)},
    )


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """What a bundle says of itself, for people: none of its files is verified. Raises BundleError."""
    root = Path(path)
    return parse(_manifest(root, shown(root)), shown(root))


def _manifest(root: Path, where: str) -> bytes:
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise BundleError(f"{where}: bundle {what}.", "Name a NAME.hz directory that hz-export wrote.")
    return _read_whole(root, MANIFEST, MAX_MANIFEST_BYTES, where)


def sign_bundle(path: str | os.PathLike[str], key: SigningKey) -> Bundle:
    """Verify a bundle and sign it as it is; a signature that it had is replaced.

    Raises BundleError where it is damaged or its folder holds what bundle.json does not list, HzError where
    the signature cannot be written.
    """
    bundle = load_bundle(path)
    unlisted = sorted(set(os.listdir(bundle.path)) - {*bundle.files, MANIFEST, SIGNATURE})
    if unlisted:
        raise BundleError(
            f"{bundle.path.name}: {unlisted[0][:80]} is no file of this bundle.", "Move it away, then sign."
        )
    data = _read_whole(bundle.path, MANIFEST, MAX_MANIFEST_BYTES, bundle.path.name)
    if parse(data, bundle.path.name).id != bundle.id:
        raise BundleError(f"{bundle.path.name}: {MANIFEST} changed while it was read.", REMEDY)
    signed = _signed(key, bundle.path.name, {**bundle.files, MANIFEST: sha256_bytes(data)})
    atomic_write_bytes(bundle.path / SIGNATURE, signed)
    return bundle


def read_signature(bundle: Bundle) -> Signature | None:
    """What its model.sig says, believed by nobody yet; None where it has none. Raises BundleError."""
    if not os.path.lexists(bundle.path / SIGNATURE):
        return None
    where = bundle.path.name
    return parse_signature(_read_whole(bundle.path, SIGNATURE, MAX_SIGNATURE_BYTES, where), where)


def _signed(key: SigningKey, name: str, files: Mapping[str, str]) -> bytes:
    payload = statement(name, files)
    return envelope(payload, key.sign(signed_bytes(payload)), key.key)


def _signer(root: Path, trust: Trust, files: Mapping[str, str], where: str) -> str:
    held = os.listdir(root)
    data = _read_whole(root, SIGNATURE, MAX_SIGNATURE_BYTES, where) if SIGNATURE in held else None
    return trust.check(data, files, held, where)


def _read_whole(root: Path, name: str, most: int, where: str) -> bytes:
    with _opened(root, name, where) as (handle, size):
        if size > most:
            raise BundleError(f"{where}: {name} is {size} bytes; more than {most} is refused.", REMEDY)
        data: bytes = handle.read(most + 1)
    return data


def default_bundle() -> Path:
    """The bundle that $HZ_BUNDLE names, else the reference bundle, which is part of the package.

    No folder of that name where hz happens to be started counts. Raises BundleError where there is none.
    """
    from importlib import resources

    named = os.environ.get("HZ_BUNDLE")
    if named:
        if not Path(named).is_dir():
            raise BundleError(
                f"$HZ_BUNDLE names {Path(named).name}, which is not there.", "Correct or unset HZ_BUNDLE."
            )
        return Path(named)
    place = resources.files("hz_runtime") / REFERENCE
    if isinstance(place, Path) and (place / MANIFEST).is_file():  # else hz runs from inside an archive
        return place
    raise BundleError(
        "No bundle was named, and hz was installed without its reference bundle.",
        "Name one (--model NAME.hz), or set HZ_BUNDLE to its path.",
    )


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    overwrite: bool = False,
    key: SigningKey | None = None,
) -> Bundle:
    """Publish a bundle: complete and verified at `path`, or not at all.

    manifest : the fields of bundle.json; sha256, sizes, "files", "id" and "created" are filled in here. A
    model entry that states another sha256 than its file has is refused: its evidence is of other bytes.
    files : name -> contents, each model's "file" among them.  key : signs it; None leaves it unsigned.
    Raises UsageError where `path` exists (unless `overwrite` and it is a bundle), BundleError where the
    manifest would not load.
    """
    target = Path(path)
    if target.suffix != ".hz":
        raise UsageError(f"{target.name}: a bundle's name ends in .hz.", f"Use {target.name or 'NAME'}.hz.")
    _check_target(target, overwrite)
    complete = _completed(manifest, files, target.name)
    parse(_dump(complete), target.name)  # refuse before anything is written
    temp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
        written = {**files, MANIFEST: _dump(complete)}
        if key is not None:
            hashes = {name: sha256_bytes(data) for name, data in written.items()}
            written[SIGNATURE] = _signed(key, target.name, hashes)
        for name, data in written.items():
            atomic_write_bytes(temp / name, data)
        load_bundle(temp)
        _publish(temp, target)
        _sweep(target)
    except OSError as error:
        raise HzError(
            f"{shown(target)}: the bundle cannot be written ({error.strerror}).",
            "Check that the folder is writable and has space, or name another one.",
        ) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return load_bundle(target)


def _completed(manifest: Mapping[str, Any], files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    hashes = {check_name(name, where): sha256_bytes(data) for name, data in files.items()}
    models = []
    for entry in manifest.get("models", []):
        name, role = entry.get("file"), entry.get("role")
        if name not in hashes or role not in ROLES:
            raise BundleError(
                f"{where}: model {name!r} ({role}) has no file or no known role.", "Fix the exporter."
            )
        if entry.get("sha256", hashes[name]) != hashes[name]:
            raise BundleError(
                f"{where}: {name} is not the file its manifest entry describes.", "Fix the exporter."
            )
        models.append({**entry, "sha256": hashes[name], "bytes": len(files[name])})
    complete = {**manifest, "models": models, "files": hashes}
    complete.setdefault("schema", SCHEMA)
    complete.setdefault("created", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    try:
        complete["id"] = bundle_id(complete)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{where}: the manifest is not plain JSON ({error}).", "Fix the exporter."
        ) from None
    return complete


def _dump(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UsageError(
            f"{target.name} exists.", "Use another name, or overwrite it on purpose (--overwrite)."
        )
    if target.is_symlink() or not (target / MANIFEST).is_file():  # never delete somebody's folder
        raise UsageError(f"{target.name} exists and is not a bundle.", "Move it away, or use another name.")


def _publish(temp: Path, target: Path) -> None:
    """Move the finished directory into place; an old bundle stays until the new one stands."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        if os.path.lexists(target):
            os.replace(target, old)
        os.replace(temp, target)
    except BaseException:  # Ctrl-C, too
        if old.exists() and not os.path.lexists(target):
            os.replace(old, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed writers of this bundle left beside it; `files.sweep_temporaries` for folders."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(tmp|old)")
    with suppress(OSError):  # the bundle stands already
        for name in os.listdir(target.parent):
            found = leftover.fullmatch(name)
            if found and not alive(int(found[1])):
                shutil.rmtree(target.with_name(name), ignore_errors=True)


@contextmanager
def _opened(root: Path, name: str, where: str) -> Iterator[tuple[Any, int]]:
    """Open one file of a bundle: a plain file lying in it, no link, pipe or device. Gives (handle, size)."""
    flags = os.O_RDONLY  # O_NONBLOCK: opening a pipe must not wait for its writer
    for name_of_flag in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name_of_flag, 0)
    path = root / name
    try:
        if path.is_symlink():  # O_NOFOLLOW closes the race where the system has it
            raise _link(path, where)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise BundleError(f"{where}: {name} is missing.", REMEDY) from None
    except OSError as error:
        raise BundleError(f"{where}: {name} cannot be opened ({error.strerror}).", REMEDY) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BundleError(f"{where}: {name} is not a plain file.", REMEDY)
    with os.fdopen(descriptor, "rb") as handle:
        if status.st_size > MAX_FILE_BYTES:
            raise BundleError(f"{where}: {name} is larger than 2 GiB.", REMEDY)
        try:
            yield handle, status.st_size
        except OSError as error:
            raise BundleError(f"{where}: {name} cannot be read ({error.strerror}).", REMEDY) from None


def _link(path: Path, where: str) -> BundleError:
    """What to say of a file that is a link: hubs' caches (files are links to ../../blobs) and git-annex keep
    files so, and such a bundle is not damaged."""
    if not path.exists():
        return BundleError(
            f"{where}: {path.name} is a link to a file that is not here.",
            "Download the bundle again, or fetch its files (of a DataLad data set:  datalad get PATH).",
        )
    copy = where if where.endswith(".hz") else f"{where}.hz"
    return BundleError(
        f"{where}: {path.name} is a link, as in the cache of a hub; a bundle holds plain files.",
        f"Copy the folder with what its links lead to:  cp -rL PATH/{where} ./{copy}  and name the copy.",
    )


def _verify(root: Path, name: str, sha256: str, where: str) -> int:
    """Hash one file in pieces; returns its size. BundleError where it is not the file that was exported."""
    digest, size = hashlib.sha256(), 0
    with _opened(root, name, where) as (handle, declared):
        while piece := handle.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
            if size > declared:  # it grows while it is read
                break
    if digest.hexdigest() != sha256:
        raise _changed(where, name, f"sha256 {digest.hexdigest()[:8]}..., expected {sha256[:8]}...")
    return size


def _changed(where: str, name: str, difference: str) -> BundleError:
    return BundleError(f"{where}: {name} does not match its manifest ({difference}).", REMEDY)
