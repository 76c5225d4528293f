"""Keys for tests, made by cryptography itself and not by hz: pairs on any curve, and certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


def key_pair(folder: Path, name: str, curve: str = "SECP256R1", password: str = "") -> tuple[Path, Path]:
    """NAME.key and NAME.pub in `folder`, PEM: the paths of the private and the public half."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    private = ec.generate_private_key(getattr(ec, curve)())
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public


def certificate(secret: Path, days: int) -> Path:
    """A certificate of a private key beside it, that ends so many days from now (negative: ended)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509.oid import NameOID

    private: Any = load_pem_private_key(secret.read_bytes(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=400))
        .not_valid_after(end)
        .sign(private, hashes.SHA256())
    )
    path = secret.with_suffix(".crt")
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return path
