"""Keys that sign bundles and that are trusted: elliptic curves, in PEM files (extra `sign`).

The package cryptography is imported where a key is read: without it hz runs, and says what is missing where
it is asked to sign or to verify. Nothing here knows what is signed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import shown

PASSWORD = "HZ_SIGN_PASSWORD"
MAX_KEY_BYTES = 1 << 20
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # P-256, P-384, P-521
_MAKE = "Make one:  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY"
_PUBLIC = "Give the public half:  openssl pkey -in KEY -pubout -out KEY.pub"


def require_cryptography(purpose: str) -> None:
    """Raise UsageError, with the package to install, where there is no cryptography."""
    if find_spec("cryptography") is None:
        raise UsageError(
            f"{purpose} needs cryptography, which this environment does not have.",
            "pip install 'hz-mri[sign]'",
        )


@dataclass(frozen=True)
class SigningKey:
    """A private key.  key : sha256 hex of its public half as PEM."""

    key: str
    _private: Any = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """From a PEM file; the password of an encrypted one is in $HZ_SIGN_PASSWORD.

        Raises UsageError where the file is not there or holds no private key of CURVES.
        """
        require_cryptography("Signing")
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(path)
        password = os.environ.get(PASSWORD, "").encode() or None
        try:
            private = load_pem_private_key(data, password if b"ENCRYPTED" in data else None)
        except TypeError:
            raise UsageError(f"{shown(path)} is encrypted.", f"Put its password into ${PASSWORD}.") from None
        except Exception:  # ValueError, UnsupportedAlgorithm, and whatever a newer version raises
            raise UsageError(
                f"{shown(path)} holds no private key, or ${PASSWORD} is not its password.", _MAKE
            ) from None
        _algorithm(private, path, _MAKE)
        return cls(_fingerprint(private.public_key()), private)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, ASN.1 DER."""
        from cryptography.hazmat.primitives.asymmetric import ec

        signature: bytes = self._private.sign(data, ec.ECDSA(_algorithm(self._private)))
        return signature


@dataclass(frozen=True)
class TrustedKey:
    """A public key that somebody here trusts.

    file : the name it was read from.  key : sha256 hex of the key as PEM.
    expired : the day on which the certificate ended that the key was in, e.g. "2026-03-01"; else empty.
    """

    file: str
    key: str
    expired: str
    _public: Any = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> TrustedKey:
        """From a PEM file: a public key, or a certificate, of which only key and last day count.

        Raises UsageError where the file is not there or holds neither.
        """
        require_cryptography("Verifying a signature")
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        data, expired = _read(path), ""
        try:
            if b"BEGIN CERTIFICATE" in data:
                public, expired = _certified(data)
            else:
                public = load_pem_public_key(data)
        except Exception:  # as for private keys
            raise UsageError(f"{shown(path)} holds no public key.", _PUBLIC) from None
        _algorithm(public, path, _PUBLIC)
        return cls(shown(path), _fingerprint(public), expired, public)

    def made(self, signature: bytes, data: bytes) -> bool:
        """Whether this key signed `data`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._public.verify(signature, data, ec.ECDSA(_algorithm(self._public)))
        except InvalidSignature:
            return False
        return True


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(
            f"key {shown(path)}: {error.strerror}.", "Check the name of the key's file."
        ) from None


def _certified(data: bytes) -> tuple[Any, str]:
    from cryptography.x509 import load_pem_x509_certificate

    certificate = load_pem_x509_certificate(data)
    end = certificate.not_valid_after_utc
    return certificate.public_key(), f"{end:%Y-%m-%d}" if end < datetime.now(UTC) else ""


def _algorithm(key: Any, path: Path | None = None, remedy: str = "") -> Any:
    """The hash that goes with a key's curve. Raises UsageError for other kinds of keys."""
    from cryptography.hazmat.primitives import hashes

    name = CURVES.get(getattr(getattr(key, "curve", None), "name", ""))
    if name is None:
        raise UsageError(f"{shown(path or '')}: not a key of P-256, P-384 or P-521.", remedy)
    return getattr(hashes, name)()


def _fingerprint(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
