"""Whom a run trusts: public keys, and whether a bundle without their signature is refused.

The check compares the signed list of files with the hashes that the bundle's files have just been verified
against, so it reads no file twice, and with what lies in the folder. It does not know the rest of a manifest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.bundle.signature import SIGNATURE, Signature, parse_signature, signed_bytes
from hz_runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import TrustedKey

TRUST = "HZ_TRUST"
_REMEDY = "Get the bundle again from who signed it, or run without --trust what you can vouch for yourself."


@dataclass(frozen=True)
class Trust:
    """Keys whose signatures count, and whether every bundle needs one.

    Raises UsageError where a signature is required and no key is trusted.
    """

    keys: tuple[TrustedKey, ...] = ()
    required: bool = False

    def __post_init__(self) -> None:
        if self.required and not self.keys:
            raise UsageError(
                "--require-signed without a key to trust would refuse every bundle.",
                f"Name the public key of who signs:  --trust KEY  (or ${TRUST})",
            )

    @classmethod
    def read(cls, paths: Sequence[Path] = (), required: bool = False) -> Trust:
        """The keys in the files `paths`; where there are none, in those that $HZ_TRUST names.

        Raises UsageError where a file holds no key, and where one is needed and cryptography is missing.
        """
        named = os.environ.get(TRUST, "")
        files = list(paths) or [Path(part) for part in named.split(os.pathsep) if part]
        if not files and not required:
            return cls()
        from hz_runtime.bundle.signing_keys import TrustedKey, require_cryptography

        if required:
            require_cryptography("--require-signed")
        return cls(tuple(TrustedKey.read(file) for file in files), required)

    def check(self, data: bytes | None, files: Mapping[str, str], held: Sequence[str], where: str) -> str:
        """The key that signed a bundle, as sha256 hex of its PEM; empty where it is not signed.

        data : of model.sig; None where there is none.  files : name -> sha256 hex of every verified file,
        bundle.json among them.  held : names of all that lies in the folder.  where : the bundle's name.
        Raises BundleError, naming the file, where a signature is required and missing, of an unknown form,
        of another key or an expired one, or where anything in the folder is not as it was signed.
        """
        if not self.keys:
            return ""
        if data is None:
            if self.required:
                raise BundleError(
                    f"{where} is not signed: it has no {SIGNATURE}.",
                    f"Get a signed one; or sign what you can vouch for:  hz-bundle sign {where} --key KEY",
                )
            return ""
        signature = parse_signature(data, where)
        signer = self._signer(signature, where)
        _check_files(signature.files, files, held, where)
        return signer.key

    def _signer(self, signature: Signature, where: str) -> TrustedKey:
        """The trusted key that made a signature."""
        named = [key for key in self.keys if signature.key in ("", key.key)]
        if not named:
            trusted = ", ".join(f"{key.file} {key.key[:12]}..." for key in self.keys)
            raise BundleError(
                f"{where}: {SIGNATURE} was made with another key, {signature.key[:12]}... "
                f"(trusted: {trusted}).",
                _REMEDY,
            )
        for key in named:
            if not key.made(signature.signature, signed_bytes(signature.payload)):
                continue
            if key.expired:
                raise BundleError(
                    f"{where}: {SIGNATURE} was made with the key of {key.file}, a certificate that expired "
                    f"on {key.expired}.",
                    "Ask who signed it for a new signature, or for their new certificate.",
                )
            return key
        raise BundleError(f"{where}: {SIGNATURE} does not hold: the statement in it was changed.", _REMEDY)


def _check_files(
    signed: Mapping[str, str], files: Mapping[str, str], held: Sequence[str], where: str
) -> None:
    """Raise BundleError for the first file that was not signed, is missing or differs."""
    for name in sorted(set(held) - set(signed) - {SIGNATURE}):
        raise BundleError(f"{where}: {name[:80]} is not among the files that were signed.", _REMEDY)
    for name in sorted(signed):
        if name not in files:
            raise BundleError(f"{where}: {name[:80]} was signed and is no file of this bundle.", _REMEDY)
        if files[name] != signed[name]:
            raise BundleError(
                f"{where}: {name[:80]} is not the file that was signed (sha256 {files[name][:8]}..., "
                f"signed {signed[name][:8]}...).",
                _REMEDY,
            )
