"""Working exploits against bundles. Each must end in BundleError: exit code 4, one line, and a remedy."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import tiny
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.ort import quiet_onnxruntime
from hz_runtime.backends.registry import installed
from hz_runtime.bundle import store as bundles
from hz_runtime.bundle.manifest import MAX_MANIFEST_BYTES, bundle_id
from hz_runtime.bundle.store import load_bundle, write_bundle
from hz_runtime.errors import BundleError

pytestmark = pytest.mark.requirement("unchanged")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A good bundle to spoil; beside it lies secret.bin, which no bundle may reach."""
    (tmp_path / "secret.bin").write_bytes(b"not yours")
    return tiny.make_tiny_bundle(tmp_path / "victim.hz")


def refused(path: Path, says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        load_bundle(path)
    check(caught.value)


def check(error: BundleError) -> None:
    assert error.exit_code == 4
    assert error.remedy
    assert "\n" not in error.message
    assert len(error.message) < 400  # an attacker's text does not flood the log


def edit(path: Path, change: Callable[[dict[str, Any]], object], resign: bool = False) -> None:
    """Change bundle.json; with `resign` give it the id of its new contents, as an attacker would."""
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    if resign:
        manifest["id"] = bundle_id(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))


# Changed files


@pytest.mark.parametrize("name", sorted(tiny.tiny_files()))
def test_one_flipped_bit(victim: Path, name: str) -> None:
    data = bytearray((victim / name).read_bytes())
    data[len(data) // 2] ^= 1
    (victim / name).write_bytes(data)
    refused(victim, f"{name} does not match its manifest")


@pytest.mark.parametrize("keep", [0, 100])
def test_truncated(victim: Path, keep: int) -> None:
    (victim / "age.onnx").write_bytes((victim / "age.onnx").read_bytes()[:keep])
    refused(victim, "age.onnx does not match")


def test_appended(victim: Path) -> None:
    with open(victim / "age.onnx", "ab") as handle:
        handle.write(b"\0")
    refused(victim, "age.onnx does not match")


@pytest.mark.parametrize("name", ["age.onnx", "MODEL_CARD.md", "bundle.json"])
def test_missing_file(victim: Path, name: str) -> None:
    (victim / name).unlink()
    refused(victim, f"{name} is missing")


def test_no_bundle_at_all(tmp_path: Path, victim: Path) -> None:
    refused(tmp_path / "gone.hz", "does not exist")
    refused(victim / "age.onnx", "is not a directory")


def test_nothing_is_parsed_before_everything_matched(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is the last file of the manifest and no engine reads it; still it stops the load."""
    (victim / "MODEL_CARD.md").write_text("Fit for clinical use.")
    monkeypatch.setattr(bundles.Bundle, "read", lambda *_: pytest.fail("a model was read"))
    refused(victim, "MODEL_CARD.md")


# Changed manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(intended_use="Clinical diagnosis."),
        lambda m: m["age_bias"].update(slope=0.5),
        lambda m: m["models"][0].update(target="site-a"),
        lambda m: m.update(added=1),
        lambda m: m.pop("metrics"),
    ],
)
def test_edited_manifest(victim: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(victim, change)
    refused(victim, "does not match its own id")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["models"][0].update(bytes=7), "harmonizer.onnx does not match"),
        (lambda m: m["models"][0].update(bytes=-1), "harmonizer.onnx does not match"),
        (lambda m: m["models"][0].update(bytes=True), "'bytes' should be a JSON integer, found boolean"),
        (lambda m: m["models"][0].update(sha256="0" * 64), "not among the bundle's files"),
        (lambda m: m["models"][0].update(file="other.onnx"), "not among the bundle's files"),
        (lambda m: m["models"][0].update(parity={"sha256": "0" * 64}), "measured on another file"),
        (lambda m: m["models"][0].update(inputs=[]), "is empty"),
        (lambda m: m["models"][0]["inputs"][0].update(shape=[-1, 1]), "not one of a tensor"),
        (lambda m: m["models"].append("x" * 9999), "is not an object"),
        (lambda m: m["models"].append(m["models"][2]), "are both the fp32 age"),
        (lambda m: m["models"][3].update(precision="fp32"), "age.onnx and age.fp16.onnx are both the fp32"),
        (lambda m: m.update(models={}), "'models' should be a JSON array"),
        (lambda m: m["files"].update({"age.onnx": "A" * 64}), "not a sha256"),
        (lambda m: m["cohort"].update(age_range=5), "age_range should hold two numbers"),
        (lambda m: m["cohort"].update(age_range=[18.0, None]), "not a finite number"),
        (lambda m: m["cohort"].update(age_range=[80.0, 18.0]), "not one of people"),
        (lambda m: m["age_bias"].update(slope=0), "too flat"),
        (lambda m: m["age_bias"].update(slope=10**400), "not a finite number"),
        (
            lambda m: m["statistics"].update(volume={"min": 0, "max": 1, "mean": "x", "sd": 1}),
            "finite number",
        ),
        (lambda m: m.pop("id"), "has no 'id'"),
    ],
)
def test_inconsistent_manifest_with_a_fresh_id(
    victim: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit(victim, change, resign="id" not in says)
    refused(victim, says)


@pytest.mark.parametrize("schema", ["2.0", "10.3"])
def test_newer_major_schema_is_refused_by_name(victim: Path, schema: str) -> None:
    """Even where nothing else of it can be read: a newer schema may have no field that we know."""
    (victim / "bundle.json").write_text(json.dumps({"schema": schema}))
    refused(victim, f"schema {schema} is newer")


@pytest.mark.parametrize("schema", ["0.9", "one", "1", "", 1.0, None])
def test_other_schemas(victim: Path, schema: object) -> None:
    edit(victim, lambda m: m.update(schema=schema), resign=True)
    refused(victim, "schema")


def test_duplicate_keys(victim: Path) -> None:
    """Two readers could each believe another licence."""
    text = (victim / "bundle.json").read_text()
    (victim / "bundle.json").write_text(text.replace('"licence"', '"licence": "None", "licence"', 1))
    refused(victim, "the key 'licence' twice")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"schema": "1.0", "x": NaN}',
        b'{"schema": "1.0", "x": 1e999}',
        b'{"schema": "1.0", "x": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
    ids=["empty", "cut", "array", "null", "utf16", "nan", "inf", "digits", "deep-array", "deep-object"],
)
def test_json_that_is_not(victim: Path, data: bytes) -> None:
    (victim / "bundle.json").write_bytes(data)
    refused(victim, "bundle.json")


def test_huge_manifest(victim: Path) -> None:
    """A sparse terabyte costs the attacker nothing; it must cost the reader nothing either."""
    with open(victim / "bundle.json", "r+b") as handle:
        handle.truncate(MAX_MANIFEST_BYTES + 1)
    refused(victim, "more than 4194304 is refused")
    os.truncate(victim / "bundle.json", 1 << 40)
    refused(victim, "larger than 2 GiB")


# Paths that lead out


@pytest.mark.parametrize(
    "name",
    [
        "../secret.bin",
        "x/../../secret.bin",
        "./age.onnx",
        "sub/age.onnx",
        "..",
        ".",
        "",
        "..\\secret.bin",
        "C:secret.bin",
        "age.onnx\0.md",
        "bundle.json",
        "BUNDLE.JSON",
        ".hidden",
        "a" * 300,
        "age\n.onnx",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_path_escape(victim: Path, name: str, absolute: bool) -> None:
    hostile = str(victim.parent / name).replace("\0", "") if absolute else name

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][hostile] = manifest["files"]["age.onnx"]
        manifest["models"][0]["file"] = hostile

    edit(victim, change, resign=True)
    refused(victim, "not the name of a file inside the bundle")


@pytest.mark.parametrize("name", ["age.onnx", "bundle.json"])
def test_symlink(victim: Path, name: str) -> None:
    """Same bytes, but lying elsewhere: somebody else can change them after the check."""
    (victim / name).rename(victim.parent / "outside")
    (victim / name).symlink_to("../outside")
    refused(victim, f"{name} is a link")


def test_symlink_that_slips_past_the_first_look(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is put in place between `is_symlink` and `open`."""
    (victim / "age.onnx").rename(victim.parent / "outside")
    (victim / "age.onnx").symlink_to("../outside")
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    refused(victim, r"age\.onnx cannot be opened")


def test_hard_link_cannot_bring_other_bytes(victim: Path) -> None:
    """Installers hard-link files, so a link count says nothing; the hash does."""
    (victim / "age.onnx").unlink()
    os.link(victim.parent / "secret.bin", victim / "age.onnx")
    refused(victim, "age.onnx does not match")


def test_hard_link_changed_after_the_load(victim: Path) -> None:
    os.link(victim / "age.onnx", victim.parent / "handle")
    bundle = load_bundle(victim)
    (victim.parent / "handle").write_bytes(tiny.age_onnx("fp16"))  # same inode as age.onnx
    with pytest.raises(BundleError, match="does not match") as caught:
        bundle.read(bundle.model("age"))
    check(caught.value)


def test_directory_pipe_socket_for_a_file(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block the reader for ever; pytest's clock is the judge."""
    place = victim / "age.onnx"
    place.unlink()
    place.mkdir()
    refused(victim, "not a plain file")
    place.rmdir()
    os.mkfifo(place)
    refused(victim, "not a plain file")
    place.unlink()
    monkeypatch.chdir(victim)  # socket paths are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("age.onnx")
        refused(victim, r"age\.onnx")


# Check and use


def test_file_swapped_between_load_and_use(victim: Path) -> None:
    bundle = load_bundle(victim)
    evil = tiny.harmonizer_onnx("fp32").replace(np.float32(0.8).tobytes(), np.float32(0.2).tobytes())
    assert len(evil) == bundle.model("harmonizer").bytes  # the size does not give it away
    (victim / "harmonizer.onnx").write_bytes(evil)
    with pytest.raises(BundleError, match=r"harmonizer\.onnx does not match") as caught:
        choose(bundle, "harmonizer", precision="fp32")
    check(caught.value)


def test_file_swapped_between_hash_and_engine(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gets the hashed bytes themselves: swapping the file after the hash changes nothing."""
    bundle = load_bundle(victim)
    evil = tiny.harmonizer_onnx("fp32").replace(np.float32(0.8).tobytes(), np.float32(0.2).tobytes())
    real = bundles.sha256_bytes

    def hash_then_swap(data: bytes) -> str:
        found = real(data)
        (victim / "harmonizer.onnx").write_bytes(evil)
        return found

    monkeypatch.setattr(bundles, "sha256_bytes", hash_then_swap)
    backend, _ = choose(bundle, "harmonizer", precision="fp32")
    assert (victim / "harmonizer.onnx").read_bytes() == evil
    assert backend.sha256 == bundle.model("harmonizer").sha256
    volume = tiny.random_volumes(1)
    np.testing.assert_allclose(
        backend.run(volume)["harmonized"], tiny.expected_harmonized(volume), rtol=0, atol=1e-5
    )


# ONNX that reads other files


def external(location: str, hide: str = "initializer") -> bytes:
    """The tiny harmonizer with its weights in another file, declared in one of the places ONNX has."""
    model = onnx.load_from_string(tiny.harmonizer_onnx("fp32"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "108")):
        weight.external_data.add(key=key, value=value)
    if hide == "attribute":
        node = onnx.helper.make_node("Constant", [], ["weight"], value=weight)
        model.graph.node.insert(0, node)
        model.graph.initializer.remove(weight)
    elif hide == "unmarked":  # some readers go by the location alone
        weight.ClearField("data_location")
    elif hide == "function":
        node = onnx.helper.make_node("Constant", [], ["y"], value=weight)
        opsets = [onnx.helper.make_opsetid("", 18)]
        model.functions.append(onnx.helper.make_function("f", "g", [], ["y"], [node], opsets))
        model.graph.initializer.remove(weight)
    data: bytes = model.SerializeToString()
    return data


def hostile_bundle(path: Path, model: bytes) -> Path:
    """A bundle that is consistent in itself: its author is the attacker."""
    return write_bundle(path, tiny.tiny_manifest(), {**tiny.tiny_files(), "harmonizer.onnx": model}).path


def test_external_data_would_work_on_a_bare_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exploit is real: given bytes, onnxruntime reads weights.bin from the working directory."""
    if "onnxruntime" not in dict(installed()):
        pytest.skip("onnxruntime is not installed here")
    onnxruntime = quiet_onnxruntime()
    np.zeros(27, np.float32).tofile(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession(external("weights.bin"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"volume": tiny.random_volumes(1)})
    np.testing.assert_allclose(found, 0.1, atol=1e-6)  # 0 * volume + 0.1: the planted weights


@pytest.mark.parametrize("location", ["weights.bin", "linked.bin", "../secret.bin", "/etc/passwd"])
@pytest.mark.parametrize("hide", ["initializer", "attribute", "unmarked", "function"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, hide: str, engine: str
) -> None:
    if engine not in dict(installed()):
        pytest.skip(f"{engine} is not installed here")
    folder = hostile_bundle(tmp_path / "hostile.hz", external(location, hide))
    np.zeros(27, np.float32).tofile(folder / "weights.bin")
    np.zeros(27, np.float32).tofile(tmp_path / "secret.bin")
    os.link(tmp_path / "secret.bin", folder / "linked.bin")
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError, match="another, unverified file") as caught:
        choose(load_bundle(folder), "harmonizer", engine, precision="fp32")
    check(caught.value)


@pytest.mark.parametrize(
    "model",
    [b"\xff" * 40, b"\x3a\x7f\x00", b"\x0f", b"\x3a" + b"\xff" * 9 + b"\x7f", b"GIF89a" * 100],
    ids=["ones", "cut", "group", "long-varint", "gif"],
)
def test_bytes_that_are_no_model(tmp_path: Path, model: bytes) -> None:
    folder = hostile_bundle(tmp_path / "hostile.hz", model)
    with pytest.raises(BundleError, match="not a readable ONNX model") as caught:
        choose(load_bundle(folder), "harmonizer", precision="fp32")
    check(caught.value)


def test_deeply_nested_graph(tmp_path: Path) -> None:
    """A graph in a node in a graph ...: the walk is a loop with a bound, not a recursion."""

    def wrap(field: int, inner: bytes) -> bytes:
        size, length = b"", len(inner)
        while length > 0x7F:
            size += bytes([length & 0x7F | 0x80])
            length >>= 7
        return bytes([field << 3 | 2]) + size + bytes([length]) + inner

    graph = b""
    for _ in range(5000):
        graph = wrap(1, wrap(5, wrap(6, graph)))  # node, attribute, graph
    folder = hostile_bundle(tmp_path / "hostile.hz", wrap(7, graph))
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        choose(load_bundle(folder), "harmonizer", precision="fp32")
