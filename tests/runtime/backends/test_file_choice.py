"""Which file runs for a precision: `fast` goes by evidence of this engine and processor, or is float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from hz_runtime.backends import file_choice
from hz_runtime.backends.fallback import choose
from hz_runtime.backends.file_choice import FileChoice, file_choices
from hz_runtime.backends.instruction_set import instruction_set, multiplies
from hz_runtime.backends.registry import ENGINES, missing
from hz_runtime.bundle.store import Bundle, write_bundle
from hz_runtime.errors import BackendError, BundleError, UsageError
from hz_runtime.inference.open import NetworkOptions, open_networks

ENGINE = {engine.name: engine for engine in ENGINES}
OPENVINO, ONNXRUNTIME = ENGINE["openvino"], ENGINE["onnxruntime-cpu"]


def row(engine: str = "openvino", hint: str = "fp32", precision: str = "int8+fp32", **more: Any) -> Any:
    backend = {"name": engine, "instructions": "amx", "precision": precision, **more.pop("backend", {})}
    return {"backend": backend | ({} if hint == "fp32" else {"hint": hint}), "not_fast": [], **more}


def bundle_with(folder: Path, fp32: list[Any], int8: list[Any]) -> Bundle:
    """The tiny bundle with a harmonizer that is called int8 (its bytes compute in float32)."""
    manifest, files = tiny.tiny_manifest(), tiny.tiny_files()
    made = {**manifest["models"][0], "file": "harmonizer.int8.onnx", "precision": "int8"}
    manifest["models"] = [*manifest["models"], made]
    # An empty doc_string: other bytes of the same graph.
    files["harmonizer.int8.onnx"] = files["harmonizer.fp16.onnx"] + b"\x32\x00"
    manifest["models"][0]["parity"] = {"measured": fp32}
    made["parity"] = {"measured": int8}
    return write_bundle(folder / "proven.hz", manifest, files)


@pytest.fixture(autouse=True)
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_choice, "instruction_set", lambda: "amx")


def taken(bundle: Bundle, engine: Any = OPENVINO, precision: str | None = "fast") -> list[tuple[str, str]]:
    return [(c.entry.precision, c.hint) for c in file_choices(bundle, "harmonizer", engine, precision)]


def test_fast_takes_the_quickest_that_is_proven_and_then_float32(tmp_path: Path) -> None:
    int8 = [row(), row(hint="bf16", precision="int8+bf16")]
    bundle = bundle_with(tmp_path, [row(hint="bf16", precision="bf16")], int8)
    assert taken(bundle) == [("int8", "bf16"), ("int8", "fp32"), ("fp32", "bf16"), ("fp32", "fp32")]
    assert [c.proven for c in file_choices(bundle, "harmonizer", OPENVINO, "fast")] == [
        "int8+bf16", "int8+fp32", "bf16", "",
    ]  # fmt: skip
    assert taken(bundle, ONNXRUNTIME) == [("fp32", "fp32")]  # nothing is known of it there
    assert taken(bundle, precision=None) == [("fp32", "fp32")]
    assert [c.hint for c in file_choices(bundle, "age", OPENVINO, "fast")] == ["fp32"]


@pytest.mark.parametrize(
    "evidence",
    [
        row(not_fast=["worst volume 0.012 (at most 0.01)"]),
        row(backend={"instructions": "avx512_vnni"}),
        row(backend={"instructions": None}),
        row(not_fast="no"),
        {"backend": {"name": "openvino", "precision": "int8+fp32"}},  # an older hz measured it
        {"backend": "openvino", "not_fast": []},
        "row",
    ],
)
def test_evidence_of_another_machine_or_that_falls_short_is_none(tmp_path: Path, evidence: Any) -> None:
    assert taken(bundle_with(tmp_path, [], [evidence])) == [("fp32", "fp32")]


def test_what_runs_otherwise_than_its_evidence_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_choice, "instruction_set", lambda: "amx")
    bundle = bundle_with(tmp_path, [], [row("onnxruntime")])
    backend, attempts = choose(bundle, "harmonizer", require="onnxruntime-cpu", precision="fast", threads=1)
    backend.close()
    assert backend.sha256 == bundle.model("harmonizer", precision="fp32").sha256
    assert [attempt.outcome for attempt in attempts] == ["failed", "ran"]
    assert "it computes in fp32, its evidence is of int8+fp32" in str(attempts[0])
    assert "(fp32, the quickest that the bundle has evidence for here)" in str(attempts[1])


def test_fast_runs_what_its_evidence_is_of(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [], [row("onnxruntime", precision="fp32")])
    backend, (attempt,) = choose(bundle, "harmonizer", require="onnxruntime-cpu", precision="fast", threads=1)
    backend.close()
    assert attempt.file == "harmonizer.int8.onnx"


def test_a_precision_asked_for_by_name_says_what_is_not_known_or_fell_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with(tmp_path, [], [row("onnxruntime", not_fast=["worst volume 0.012"])])
    monkeypatch.setattr(file_choice, "instruction_set", lambda: "avx2")
    how: Any = {"require": "onnxruntime-cpu", "precision": "int8", "threads": 1}
    backend, (attempt,) = choose(bundle, "harmonizer", **how)
    backend.close()
    assert "no evidence of int8 on onnxruntime with avx2, which does not multiply int8" in str(attempt)
    with open_networks(bundle, NetworkOptions(**how)) as networks:
        assert str(networks.attempts["harmonizer"][-1]) == str(attempt)
    monkeypatch.setattr(file_choice, "instruction_set", lambda: "amx")
    (choice,) = file_choices(bundle, "harmonizer", ONNXRUNTIME, "int8")
    assert choice.caveat == "held to float32 here it fell short: worst volume 0.012"
    (choice,) = file_choices(bundle, "harmonizer", ONNXRUNTIME, "fp32")
    assert choice.caveat == ""


def test_bf16_is_the_float32_file_where_the_engine_takes_the_hint(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [], [])
    assert taken(bundle, precision="bf16") == [("fp32", "bf16")]
    with pytest.raises(BundleError, match="no harmonizer model in bf16"):
        file_choices(bundle, "harmonizer", ONNXRUNTIME, "bf16")
    with pytest.raises(UsageError, match="holds no bf16 file"):
        open_networks(bundle, NetworkOptions(require="onnxruntime-cpu", precision="bf16"))


def test_bf16_runs_in_bf16_or_not_at_all(tmp_path: Path) -> None:
    if problem := missing(OPENVINO)[0]:
        pytest.skip(f"{problem} here")
    bundle = bundle_with(tmp_path, [], [])
    options = NetworkOptions(require="openvino", precision="bf16", threads=1)
    if multiplies("bf16", instruction_set()):
        with open_networks(bundle, options) as networks:
            assert "bf16" in networks.harmonizer.backend.precision
        return
    with pytest.raises(BackendError, match=r"does not compute in bf16 \("):
        open_networks(bundle, options)


def test_a_very_file_is_opened_whatever_is_known_of_it(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [], [])
    entry = bundle.model("harmonizer", precision="int8")
    backend, _ = choose(
        bundle, "harmonizer", require="onnxruntime-cpu", precision=FileChoice(entry), threads=1
    )
    backend.close()
    assert backend.sha256 == entry.sha256
