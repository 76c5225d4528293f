"""Signed bundles that somebody changed: each is refused with exit code 4 and the file's name.

The attacker can do all but sign with the trusted key: rewrite files and manifest consistently, take the
signature of another bundle, sign with a key of their own.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from hz_runtime.bundle.signing_keys import SigningKey, TrustedKey
from hz_runtime.bundle.store import load_bundle, sign_bundle, write_bundle
from hz_runtime.bundle.trust import Trust
from hz_runtime.errors import BundleError, UsageError
from small_keys import certificate, key_pair

pytestmark = pytest.mark.requirement("signed")

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with site.hz, signed with hz.key, whose public half is hz.pub; and other.key, other.pub."""
    folder = tmp_path_factory.mktemp("signed")
    secret, _ = key_pair(folder, "hz")
    key_pair(folder, "other")
    write_bundle(folder / "site.hz", tiny.tiny_manifest(), tiny.tiny_files(), key=SigningKey.read(secret))
    return folder


@pytest.fixture
def victim(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed / "site.hz", tmp_path / "site.hz"))


@pytest.fixture
def trust(signed: Path) -> Trust:
    return Trust.read([signed / "other.pub", signed / "hz.pub"], required=True)


def refused(path: Path, trust: Trust, says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        load_bundle(path, trust)
    assert caught.value.exit_code == 4 and caught.value.remedy
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of model.sig."""
    value = json.loads((path / "model.sig").read_text())
    change(value)
    (path / "model.sig").write_text(json.dumps(value))


def restated(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the statement inside of model.sig, as who cannot sign it again."""

    def inside(value: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
        change(statement)
        value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    edit(path, inside)


def test_as_it_was_signed(victim: Path, trust: Trust, signed: Path) -> None:
    assert load_bundle(victim, trust).signer == TrustedKey.read(signed / "hz.pub").key
    renamed = victim.rename(victim.with_name("renamed.hz"))
    assert load_bundle(renamed, trust).signer  # a name is no part of what is signed
    assert load_bundle(renamed).signer == ""  # nobody asked


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_other_curves(tmp_path: Path, curve: str) -> None:
    secret, public = key_pair(tmp_path, "key", curve)
    sign_bundle(tiny.make_tiny_bundle(tmp_path / "site.hz"), SigningKey.read(secret))
    assert load_bundle(tmp_path / "site.hz", Trust.read([public])).signer


# Files


def test_a_changed_byte(victim: Path, trust: Trust) -> None:
    data = bytearray((victim / "age.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (victim / "age.onnx").write_bytes(data)
    refused(victim, trust, "age.onnx does not match its manifest")


def test_a_file_changed_together_with_the_manifest(victim: Path, trust: Trust) -> None:
    """What hashes alone cannot see: a consistent bundle of another network, under the same name."""
    signature = (victim / "model.sig").read_bytes()
    files = {**tiny.tiny_files(), "age.onnx": tiny.age_onnx("fp16")}
    write_bundle(victim, tiny.tiny_manifest(), files, overwrite=True)
    (victim / "model.sig").write_bytes(signature)
    assert load_bundle(victim)
    refused(victim, trust, r"site.hz: age.onnx is not the file that was signed \(sha256 \w{8}")


def test_a_changed_manifest(victim: Path, trust: Trust) -> None:
    signature = (victim / "model.sig").read_bytes()
    manifest = {**tiny.tiny_manifest(), "intended_use": "Clinical diagnosis."}
    write_bundle(victim, manifest, tiny.tiny_files(), overwrite=True)
    (victim / "model.sig").write_bytes(signature)
    refused(victim, trust, "bundle.json is not the file that was signed")


@pytest.mark.parametrize("name", ["run-me.sh", ".gitattributes", "harmonizer.onnx.data"])
def test_one_file_more(victim: Path, trust: Trust, name: str) -> None:
    (victim / name).write_bytes(b"more")
    assert load_bundle(victim)  # never read, so no harm where nobody asks
    refused(victim, trust, re.escape(name) + " is not among the files that were signed")


def test_a_folder_more(victim: Path, trust: Trust) -> None:
    (victim / ".git").mkdir()
    refused(victim, trust, ".git is not among the files that were signed")


def test_one_file_less(victim: Path, trust: Trust) -> None:
    (victim / "MODEL_CARD.md").unlink()
    refused(victim, trust, "MODEL_CARD.md is missing")


def test_one_file_less_that_the_manifest_forgot(victim: Path, trust: Trust) -> None:
    signature = (victim / "model.sig").read_bytes()
    files = {name: data for name, data in tiny.tiny_files().items() if name != "MODEL_CARD.md"}
    write_bundle(victim, tiny.tiny_manifest(), files, overwrite=True)
    (victim / "model.sig").write_bytes(signature)
    refused(victim, trust, "MODEL_CARD.md was signed and is no file of this bundle")


@pytest.mark.parametrize("name", ["age.onnx", "model.sig", "more.onnx"])
def test_a_link(victim: Path, trust: Trust, name: str) -> None:
    target = victim.with_name("elsewhere")
    target.write_bytes((victim / name).read_bytes() if (victim / name).exists() else b"")
    (victim / name).unlink(missing_ok=True)
    (victim / name).symlink_to(target)
    refused(victim, trust, f"{name} is (a link|not among the files that were signed)")


# Signature


def test_no_signature(victim: Path, trust: Trust, signed: Path) -> None:
    (victim / "model.sig").unlink()
    refused(victim, trust, "site.hz is not signed: it has no model.sig")
    assert load_bundle(victim, Trust.read([signed / "hz.pub"])).signer == ""  # not required


def test_another_key(victim: Path, trust: Trust, tmp_path: Path, signed: Path) -> None:
    refused(victim, Trust.read([signed / "other.pub"]), r"made with another key, \w{12}.*other.pub")
    secret, _ = key_pair(tmp_path, "attacker")
    sign_bundle(victim, SigningKey.read(secret))
    refused(victim, trust, "made with another key")
    # An attacker names the trusted key as theirs.
    known = TrustedKey.read(signed / "hz.pub").key
    edit(victim, lambda value: value["verificationMaterial"]["publicKey"].update(hint=known))
    refused(victim, trust, "model.sig does not hold")
    edit(victim, lambda value: value["verificationMaterial"]["publicKey"].pop("hint"))
    refused(victim, trust, "model.sig does not hold")


def test_the_signature_of_another_bundle(victim: Path, trust: Trust, tmp_path: Path, signed: Path) -> None:
    files = {**tiny.tiny_files(), "MODEL_CARD.md": b"older"}
    key = SigningKey.read(signed / "hz.key")
    write_bundle(tmp_path / "older.hz", tiny.tiny_manifest(), files, key=key)
    shutil.copy(tmp_path / "older.hz" / "model.sig", victim / "model.sig")
    refused(victim, trust, "MODEL_CARD.md is not the file that was signed")


def test_an_expired_certificate(victim: Path, signed: Path, tmp_path: Path) -> None:
    secret = Path(shutil.copy(signed / "hz.key", tmp_path / "hz.key"))
    assert load_bundle(victim, Trust.read([certificate(secret, 5)])).signer
    refused(victim, Trust.read([certificate(secret, -5)]), r"hz.crt, a certificate that expired on \d{4}-")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.2"),
        lambda v: v.update(mediaType="application/vnd.dev.sigstore.bundle.v0.4+json"),
        lambda v: v.pop("dsseEnvelope"),
        lambda v: v["dsseEnvelope"].update(payloadType="text/plain"),
        lambda v: v["dsseEnvelope"].update(signatures=[]),
        lambda v: v["dsseEnvelope"].update(signatures=v["dsseEnvelope"]["signatures"] * 2),
        lambda v: v.update(verificationMaterial={"certificate": {"rawBytes": ""}}),
        lambda v: v.update(verificationMaterial=[]),
    ],
)
def test_an_unknown_form(victim: Path, trust: Trust, change: Callable[[dict[str, Any]], object]) -> None:
    edit(victim, change)
    refused(victim, trust, "site.hz: model.sig is of an unknown form")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "of an unknown form"),
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "of an unknown form"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "of an unknown form"),
        (lambda s: s["predicate"]["serialization"].update(allow_symlinks=True), "of an unknown form"),
        (lambda s: s["predicate"]["serialization"].update(allow_symlinks=0), "of an unknown form"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "twice"),
        (lambda s: s["predicate"]["resources"].pop(), "is not that of the list"),
        (lambda s: s["predicate"]["resources"][0].update(digest="a" * 64), "is not that of the list"),
        (lambda s: s["predicate"]["resources"][0].update(digest="abc"), "is not a sha256"),
        (lambda s: s["subject"][0].update(name="other"), "model.sig does not hold"),
        (lambda s: s.update(subject=[]), "is not that of the list"),
    ],
)
def test_a_changed_statement(
    victim: Path, trust: Trust, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    restated(victim, change)
    refused(victim, trust, says)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"a": 1, "a": 2}', b"[" * 100000, b" " * (5 << 20)])
def test_no_signature_at_all(victim: Path, trust: Trust, data: bytes) -> None:
    (victim / "model.sig").write_bytes(data)
    refused(victim, trust, "site.hz: model.sig")


def test_a_manifest_cannot_list_the_signature(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'model.sig' is not the name of a file inside"):
        write_bundle(tmp_path / "x.hz", tiny.tiny_manifest(), {**tiny.tiny_files(), "model.sig": b"{}"})


# Keys


def test_keys_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, public = key_pair(tmp_path, "locked", password="horse")
    with pytest.raises(UsageError, match=r"locked.key is encrypted[^/]*HZ_SIGN_PASSWORD"):
        SigningKey.read(secret)
    monkeypatch.setenv("HZ_SIGN_PASSWORD", "horse")
    assert SigningKey.read(secret).key == TrustedKey.read(public).key
    with pytest.raises(UsageError, match=r"locked.pub holds no private key"):
        SigningKey.read(public)
    with pytest.raises(UsageError, match=r"locked.key holds no public key"):
        TrustedKey.read(secret)
    with pytest.raises(UsageError, match=r"none.pub: No such file"):
        TrustedKey.read(tmp_path / "none.pub")
    _, bitcoin = key_pair(tmp_path, "bitcoin", "SECP256K1")
    with pytest.raises(UsageError, match="not a key of P-256"):
        TrustedKey.read(bitcoin)


def test_nothing_is_signed_that_does_not_match(tmp_path: Path, signed: Path) -> None:
    key = SigningKey.read(signed / "hz.key")
    path = tiny.make_tiny_bundle(tmp_path / "site.hz")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes.txt is no file of this bundle"):
        sign_bundle(path, key)
    (path / "notes.txt").unlink()
    (path / "age.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"age.onnx does not match"):
        sign_bundle(path, key)
    assert not (path / "model.sig").exists()
