"""Records and the cache of built engines: whole or absent, never another's, never changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hz_runtime.bundle.engine_cache import EngineCache, EngineRecord, Profile, default_cache, engine_key
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.errors import BackendError, BundleError
from hz_runtime.io.atomic import sha256_bytes
from tiny import tiny_files, tiny_manifest

DATA = b"machine code" * 100


def record(data: bytes = DATA, **changes: object) -> EngineRecord:
    base = EngineRecord(
        role="age",
        model_sha256="a" * 64,
        flavour="tensorrt",
        version="11.4.0.106",
        capability=("9.0",),
        profile=Profile(1, 4, 16),
        flags=("version_compatible",),
        precision="fp16",
        layers={"fp16": 12, "fp32": 8},
        sha256=sha256_bytes(data),
        bytes=len(data),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


# --- records ------------------------------------------------------------------------------------------------


def test_a_record_survives_json() -> None:
    assert EngineRecord.from_dict(json.loads(json.dumps(record().to_dict()))) == record()


@pytest.mark.parametrize(
    "change",
    [
        {"record": 2}, {"flavour": "tensorflow"}, {"profile": {"least": 1}}, {"layers": [1]},
        {"bytes": "many"}, {"profile": {"least": 4, "tuned": 1, "most": 2}}, {"capability": None},
    ],
)  # fmt: skip
def test_a_record_of_another_kind_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BackendError, match="not readable"):
        EngineRecord.from_dict({**record().to_dict(), **change})
    missing = record().to_dict()
    del missing["sha256"]
    with pytest.raises(BackendError, match="not readable"):
        EngineRecord.from_dict(missing)


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "b" * 64}, {"flavour": "tensorrt_rtx"}, {"version": "11.5.0.1"},
        {"capability": ("8.9",)}, {"profile": Profile(1, 4, 8)}, {"flags": ()},
    ],
)  # fmt: skip
def test_whatever_decides_the_use_of_an_engine_is_in_its_key(change: dict[str, object]) -> None:
    assert record(**change).key != record().key
    assert record(precision="fp32", role="harmonizer").key == record().key  # follow from the model


def test_keys_do_not_depend_on_order() -> None:
    parts = ("a" * 64, Profile(), ("refit", "stripped"), "tensorrt", "11", ("8.0", "9.0"))
    turned = (*parts[:2], ("stripped", "refit"), *parts[3:5], ("9.0", "8.0"))
    assert engine_key(*parts) == engine_key(*turned)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 4), (1, 5, 4)])
def test_batch_sizes_are_in_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not in order"):
        Profile(*sizes)


# --- the cache ----------------------------------------------------------------------------------------------


def test_an_engine_kept_is_found_and_others_are_not(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "deep" / "engines")
    assert cache.find(record().key) is None
    cache.store(record(), DATA)
    assert cache.find(record().key) == (record(), DATA)
    assert cache.find(record(version="11.5.0.1").key) is None
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".engine", ".json"]  # no temporaries


def test_an_engine_without_its_record_is_not_there(tmp_path: Path) -> None:
    """A process killed between the two files: what is left is built again, not trusted."""
    cache = EngineCache(tmp_path)
    cache.store(record(), DATA)
    (tmp_path / f"{record().key}.json").unlink()
    assert cache.find(record().key) is None
    cache.store(record(), DATA)
    assert cache.find(record().key) is not None


def test_changed_engines_are_refused_with_the_command_that_rebuilds_them(tmp_path: Path) -> None:
    cache, key = EngineCache(tmp_path), record().key
    engine, text = tmp_path / f"{key}.engine", tmp_path / f"{key}.json"
    other = record(version="10.0")

    def damaged(path: Path, data: bytes) -> str:
        cache.store(record(), DATA)
        path.write_bytes(data)
        with pytest.raises(BackendError) as caught:
            cache.find(key)
        assert caught.value.remedy.endswith(f"rm {tmp_path}/{key[:12]}*")
        return caught.value.message

    assert "does not match its sha256" in damaged(engine, DATA[:-1])
    assert "does not match its sha256" in damaged(engine, DATA[:-1] + b"E")
    assert "not readable" in damaged(text, b"{")
    assert "not readable" in damaged(text, b"[]")
    assert "built for something else" in damaged(text, json.dumps(other.to_dict()).encode())
    changed = {**record().to_dict(), "sha256": "0" * 64}
    assert "does not match its sha256" in damaged(text, json.dumps(changed).encode())


def test_a_record_of_other_bytes_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other bytes"):
        EngineCache(tmp_path).store(record(), b"something else")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EngineCache(tmp_path)
    cache.store(record(), DATA)
    newer = b"newer" * 100

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(Exception, match="No space left"):
        cache.store(record(newer), newer)
    monkeypatch.undo()
    assert cache.find(record().key) == (record(), DATA)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_at_a_time_inside_and_the_others_are_told(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    waiting, inside, order = threading.Event(), threading.Event(), []

    def second() -> None:
        inside.wait(10)
        with cache.lock("k", waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with cache.lock("k", lambda: pytest.fail("nobody was inside")):
        inside.set()
        assert waiting.wait(10)
        with cache.lock("another key", lambda: pytest.fail("nobody was inside")):
            order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def build_in(folder: str, start: object) -> None:
    cache, key = EngineCache(Path(folder)), record().key
    start.wait(20)  # type: ignore[attr-defined]
    with cache.lock(key):
        if cache.find(key) is None:
            with (Path(folder) / "builds").open("a") as log:
                log.write("x")
            cache.store(record(), DATA)
    assert EngineCache(Path(folder)).find(key) == (record(), DATA)


def test_racing_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    racers = [context.Process(target=build_in, args=(str(tmp_path), start)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
        racer.close()
    assert (tmp_path / "builds").read_text() == "x"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holds = context.Event()
    racer = context.Process(target=hold, args=(str(tmp_path), holds))
    racer.start()
    assert holds.wait(20)
    racer.kill()
    racer.join(20)
    racer.close()
    with EngineCache(tmp_path).lock("k"):
        pass


def hold(folder: str, holds: object) -> None:
    with EngineCache(Path(folder)).lock("k"):
        holds.set()  # type: ignore[attr-defined]
        threading.Event().wait(60)


def test_a_folder_that_is_a_file_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("not a folder")
    with pytest.raises(BackendError, match="HZ_ENGINES"), EngineCache(tmp_path / "engines").lock("k"):
        pass


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HZ_ENGINES", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("HZ_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/hz/engines")


# --- engines in a bundle ------------------------------------------------------------------------------------


def of_age(files: dict[str, bytes], **changes: object) -> dict[str, object]:
    built = record(model_sha256=sha256_bytes(files["age.fp16.onnx"]))
    return {**built.to_dict(), "file": "age.fp16.tensorrt.engine", "parity": {}, **changes}


def bundle_with(folder: Path, engines: list[dict[str, object]]) -> Bundle:
    files = {**tiny_files(), "age.fp16.tensorrt.engine": DATA}
    return write_bundle(folder / "tiny.hz", {**tiny_manifest(), "engines": engines}, files)


def test_a_bundle_gives_its_engines_back(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [of_age(tiny_files(), note="keys that nobody knows are ignored")])
    (entry,) = bundle.engines_of(bundle.model("age", precision="fp16"))
    assert bundle.engines_of(bundle.model("age", precision="fp32")) == ()
    assert (entry.record.precision, entry.record.layers) == ("fp16", {"fp16": 12, "fp32": 8})
    assert bundle.read(entry) == DATA


def test_a_bundle_without_engines_has_none(tiny_bundle: Path) -> None:
    assert load_bundle(tiny_bundle).engines == ()


def test_engines_of_a_newer_kind_are_left_out(tmp_path: Path) -> None:
    files = tiny_files()
    bundle = bundle_with(tmp_path, [of_age(files, record=2), of_age(files, flavour="tensorrt_next")])
    assert bundle.engines == ()


def test_a_changed_engine_refuses_the_bundle(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, [of_age(tiny_files())])
    (bundle.path / "age.fp16.tensorrt.engine").write_bytes(DATA[:-1] + b"!")
    with pytest.raises(BundleError, match=r"age\.fp16\.tensorrt\.engine does not match its manifest"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "not among the bundle's files under that sha256"),
        ({"file": "absent.engine"}, "not among the bundle's files under that sha256"),
        ({"file": "../age.engine"}, "not the name of a file inside the bundle"),
        ({"model_sha256": "0" * 64}, "built from no age model of this bundle"),
        ({"role": "harmonizer"}, "built from no harmonizer model of this bundle"),
        ({"layers": None}, "is not readable"),
        ({"bytes": 5}, "does not match its manifest"),
        ({"parity": {"sha256": "0" * 64}}, "was measured on another file"),
    ],
)
def test_an_engine_that_is_not_what_it_says_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        bundle_with(tmp_path, [of_age(tiny_files(), **change)])
    assert not (tmp_path / "tiny.hz").exists()
