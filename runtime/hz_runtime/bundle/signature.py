"""The signature of a bundle, `model.sig`: what is signed, and the form it is written in.

The form is that of OpenSSF model signing 1.0: a Sigstore bundle v0.3 around a DSSE envelope around an in-toto
statement v1, whose predicate lists every file with its sha256. The published `model-signing` package reads
what this writes, and the other way round. Nothing here computes with keys (`signing_keys`), touches a file,
or says whom to trust (`trust`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hz_runtime.bundle.fields import REMEDY, json_object, sha256
from hz_runtime.errors import BundleError

SIGNATURE = "model.sig"
MAX_SIGNATURE_BYTES = 4 << 20
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
T = TypeVar("T")


@dataclass(frozen=True)
class Signature:
    """One model.sig, read and not yet believed.

    files : of the statement, name -> sha256 hex.
    payload : the statement's bytes.  signature : over `signed_bytes(payload)`, ASN.1 DER.
    key : sha256 hex of the signer's public key as PEM; empty where the signature does not say.
    """

    files: Mapping[str, str]
    payload: bytes
    signature: bytes
    key: str


def statement(name: str, files: Mapping[str, str]) -> bytes:
    """The in-toto statement about the files of a bundle, name -> sha256 hex, without model.sig itself."""
    listed = sorted(files.items())
    value = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root([sha for _, sha in listed])}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": sha} for name, sha in listed],
        },
    }
    return json.dumps(value, indent=1, sort_keys=True).encode("ascii")


def signed_bytes(payload: bytes) -> bytes:
    """What the key signs: DSSE's pre-authentication encoding of a payload of type PAYLOAD_TYPE."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def envelope(payload: bytes, signature: bytes, key: str) -> bytes:
    """The bytes of model.sig; the arguments are those of `Signature`."""
    value = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse_signature(data: bytes, where: str) -> Signature:
    """Check the bytes of model.sig. `where` starts every message, e.g. "reference.hz".

    Raises BundleError where the form is not the one of this module: another version of it, one more
    signature, a file whose hash is of another kind.
    """
    raw = json_object(data, where, SIGNATURE)
    at = f"{where}: {SIGNATURE}"
    _expect(raw, "mediaType", MEDIA_TYPE, at)
    material = _get(raw, "verificationMaterial", dict, at)
    if "publicKey" not in material:
        raise _unknown(at, f"verified by {', '.join(sorted(material))[:80] or 'nothing'}, not by a key")
    signed = _get(raw, "dsseEnvelope", dict, at)
    _expect(signed, "payloadType", PAYLOAD_TYPE, at)
    signatures = _get(signed, "signatures", list, at)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise _unknown(at, f"{len(signatures)} signatures where there is to be one")
    payload = _decoded(_get(signed, "payload", str, at), at)
    return Signature(
        _listed(json_object(payload, where, f"the statement in {SIGNATURE}"), at),
        payload,
        _decoded(_get(signatures[0], "sig", str, at), at),
        _get(_get(material, "publicKey", dict, at), "hint", str, at, ""),
    )


def _listed(raw: Mapping[str, Any], at: str) -> dict[str, str]:
    """The files of a statement, whose own digest of them must be right."""
    _expect(raw, "_type", STATEMENT, at)
    _expect(raw, "predicateType", PREDICATE, at)
    predicate = _get(raw, "predicate", dict, at)
    serialization = _get(predicate, "serialization", dict, at)
    for key, expected in {"method": "files", "hash_type": "sha256", "allow_symlinks": False}.items():
        _expect(serialization, key, expected, at)
    files: dict[str, str] = {}
    for item in _get(predicate, "resources", list, at):
        if not isinstance(item, dict):
            raise BundleError(f"{at}: its list of files holds something else.", REMEDY)
        _expect(item, "algorithm", "sha256", at)
        name = _get(item, "name", str, at)
        if name in files:
            raise BundleError(f"{at} lists {name[:80]!r} twice.", REMEDY)
        files[name] = sha256(item.get("digest"), f"{at}: the hash of {name[:80]!r}")
    subjects = _get(raw, "subject", list, at)
    root = [s["digest"].get("sha256") for s in subjects if isinstance(s, dict) and _has_digest(s)]
    if root != [_root(list(files.values()))]:
        raise BundleError(f"{at}: the hash of its list of files is not that of the list.", REMEDY)
    return files


def _get(raw: Mapping[str, Any], key: str, kind: type[T], at: str, default: T | None = None) -> T:
    value = raw.get(key, default)
    if not isinstance(value, kind):
        raise _unknown(at, f"no {key!r} of the kind that belongs there")
    return value


def _has_digest(subject: Mapping[str, Any]) -> bool:
    return isinstance(subject.get("digest"), dict)


def _root(hashes: list[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(sha) for sha in hashes)).hexdigest()


def _expect(raw: Mapping[str, Any], key: str, expected: object, at: str) -> None:
    found = raw.get(key)
    if found != expected or type(found) is not type(expected):
        raise _unknown(at, f"{key} {json.dumps(found)[:80]}, expected {json.dumps(expected)}")


def _unknown(at: str, what: str) -> BundleError:
    return BundleError(
        f"{at} is of an unknown form ({what}).",
        "Ask for a bundle signed with a key in the form of model signing 1.0:  hz-bundle sign --help",
    )


def _decoded(text: str, at: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BundleError(f"{at} holds what is not base64.", REMEDY) from None
