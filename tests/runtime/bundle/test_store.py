"""Bundles that are in order: what is written is what is read, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from hz_runtime.bundle import store as bundles
from hz_runtime.bundle.age_calibration import AgeBias
from hz_runtime.bundle.manifest import TensorSpec
from hz_runtime.bundle.store import default_bundle, load_bundle, write_bundle
from hz_runtime.errors import BundleError, HzError, UsageError


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    return tiny.make_tiny_bundle(tmp_path / "tiny.hz")


def test_round_trip(tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path)
    assert (bundle.name, bundle.schema, bundle.licence) == ("tiny", "1.0", "Apache-2.0")
    assert bundle.age_bias == AgeBias(0.8, 9.0, 20, "made up for tests")
    assert bundle.cohort["sites"] == ["site-a", "site-b"]
    assert bundle.files == {
        name: hashlib.sha256(data).hexdigest() for name, data in tiny.tiny_files().items()
    }
    entry = bundle.model("harmonizer")
    assert entry.inputs == (TensorSpec("volume", ("N", 1, 64, 64, 64), "float32"),)
    assert bundle.read(entry) == tiny.harmonizer_onnx("fp32")
    assert bundle.entry(entry.sha256) is entry


def test_id_is_of_the_contents_not_of_the_day(tmp_path: Path) -> None:
    manifest = tiny.tiny_manifest()
    first = write_bundle(
        tmp_path / "a.hz", {**manifest, "created": "2001-01-01T00:00:00Z"}, tiny.tiny_files()
    )
    second = write_bundle(
        tmp_path / "b.hz", {**manifest, "created": "2002-02-02T00:00:00Z"}, tiny.tiny_files()
    )
    other = write_bundle(tmp_path / "c.hz", {**manifest, "licence": "CC0"}, tiny.tiny_files())
    assert first.id == second.id != other.id
    kept = {k: v for k, v in first.raw.items() if k not in ("id", "created")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    assert first.id == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_model_picks_by_precision_and_site(tmp_path: Path, tiny_path: Path) -> None:
    bundle = load_bundle(tiny_path)
    assert bundle.model("age").precision == "fp32"
    assert bundle.model("age", precision="fp16").file == "age.fp16.onnx"
    assert bundle.model("harmonizer", to="site-b").target == "site-b"
    with pytest.raises(UsageError, match="site-z"):
        bundle.model("harmonizer", to="site-z")
    with pytest.raises(BundleError, match="no diagnosis model"):
        bundle.model("diagnosis")
    with pytest.raises(BundleError, match="int8"):
        bundle.model("age", precision="int8")
    manifest = tiny.tiny_manifest()
    manifest["models"].append({**manifest["models"][0], "target": "site-c"})
    several = write_bundle(tmp_path / "several.hz", manifest, tiny.tiny_files())
    with pytest.raises(UsageError, match="site-b, site-c"):
        several.model("harmonizer")
    assert several.model("harmonizer", to="site-c").target == "site-c"


def test_age_bias_takes_the_line_out() -> None:
    bias = AgeBias(0.8, 9.0, 20, "")
    assert bias.corrected(0.8 * 50 + 9.0) == pytest.approx(50)


def test_unknown_keys_and_extra_files_are_ignored(tmp_path: Path) -> None:
    manifest = {**tiny.tiny_manifest(), "schema": "1.7", "from_the_future": {"x": [1]}}
    manifest["models"][0]["novelty"] = True
    written = write_bundle(tmp_path / "new.hz", manifest, tiny.tiny_files())
    (written.path / "evil.onnx").symlink_to("/etc/passwd")
    (written.path / ".DS_Store").write_bytes(b"noise")
    bundle = load_bundle(written.path)
    assert bundle.raw["from_the_future"] == {"x": [1]}
    assert "evil.onnx" not in bundle.files


def test_an_existing_bundle_is_kept_unless_asked(tiny_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny\.hz exists"):
        tiny.make_tiny_bundle(tiny_path)
    replaced = write_bundle(
        tiny_path, {**tiny.tiny_manifest(), "licence": "CC0"}, tiny.tiny_files(), overwrite=True
    )
    assert load_bundle(tiny_path).licence == replaced.licence == "CC0"
    assert os.listdir(tiny_path.parent) == ["tiny.hz"]


def test_overwrite_never_removes_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "thesis.hz"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a bundle"):
        write_bundle(folder, tiny.tiny_manifest(), tiny.tiny_files(), overwrite=True)
    assert (folder / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("fails", ["atomic_write_bytes", "_publish", "load_bundle"])
def test_a_failed_write_leaves_the_old_bundle(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    before = load_bundle(tiny_path).id

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundles, fails, full)
        with pytest.raises(HzError, match="No space left"):
            write_bundle(
                tiny_path, {**tiny.tiny_manifest(), "licence": "CC0"}, tiny.tiny_files(), overwrite=True
            )
    assert load_bundle(tiny_path).id == before
    assert os.listdir(tiny_path.parent) == ["tiny.hz"]


def test_what_killed_writers_left_is_swept_and_nothing_else(tiny_path: Path) -> None:
    gone, here = 2**22 + 7, os.getpid()  # Linux gives no process a number past 2**22
    kept = [f".other.hz.{gone}.tmp", f".tiny.hz.{here}.keep", f".tiny.hz.{os.getppid()}.tmp"]
    for name in [f".tiny.hz.{gone}.tmp", f".tiny.hz.{gone}.old", *kept]:
        (tiny_path.parent / name).mkdir()
    write_bundle(tiny_path, tiny.tiny_manifest(), tiny.tiny_files(), overwrite=True)
    assert sorted(os.listdir(tiny_path.parent)) == sorted([*kept, "tiny.hz"])


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt("Ctrl-C")])
def test_the_old_bundle_returns_when_the_swap_fails(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = load_bundle(tiny_path).id
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp") and Path(source).is_dir():
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((HzError, KeyboardInterrupt), match=str(error.args[-1])):
        write_bundle(tiny_path, {**tiny.tiny_manifest(), "licence": "CC0"}, tiny.tiny_files(), overwrite=True)
    assert load_bundle(tiny_path).id == before
    assert os.listdir(tiny_path.parent) == ["tiny.hz"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"age_bias": {"slope": 0.01, "intercept": 1.0, "n": 3, "how": "x"}}, "too flat"),
        ({"recipe": None}, "'recipe' should be a JSON object, found null"),
        ({"models": []}, "no models"),
        ({"metrics": {"mae": float("nan")}}, "not plain JSON"),
        ({"statistics": {"x": {"min": 0}}}, "min, max, mean and sd"),
        ({"schema": "2.0"}, "2.0 is newer"),
    ],
)
def test_what_would_not_load_is_not_written(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        write_bundle(tmp_path / "bad.hz", {**tiny.tiny_manifest(), **change}, tiny.tiny_files())
    assert os.listdir(tmp_path) == []


def test_evidence_of_another_file_is_not_written(tmp_path: Path) -> None:
    for key in ("sha256", "parity"):
        manifest = tiny.tiny_manifest()
        manifest["models"][0][key] = "0" * 64 if key == "sha256" else {"sha256": "0" * 64}
        with pytest.raises(BundleError, match=r"harmonizer\.onnx"):
            write_bundle(tmp_path / "bad.hz", manifest, tiny.tiny_files())


def test_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.hz"):
        write_bundle(tmp_path / "bundle", tiny.tiny_manifest(), tiny.tiny_files())
    with pytest.raises(BundleError, match="not the name of a file"):
        write_bundle(tmp_path / "b.hz", tiny.tiny_manifest(), {**tiny.tiny_files(), "../x": b""})


def test_default_bundle(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HZ_BUNDLE", str(tiny_path))
    assert load_bundle().name == "tiny"
    monkeypatch.setenv("HZ_BUNDLE", str(tmp_path / "gone.hz"))
    with pytest.raises(BundleError, match=r"\$HZ_BUNDLE names gone\.hz"):
        default_bundle()
    monkeypatch.delenv("HZ_BUNDLE")
    tiny.make_tiny_bundle(tmp_path / "models" / "reference.hz")  # of whoever owns the working directory
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert default_bundle() == Path(bundles.__file__).parents[1] / "models" / "reference.hz"
    assert load_bundle().name == "reference"
    monkeypatch.setattr(bundles, "REFERENCE", "models/nonesuch.hz")
    with pytest.raises(BundleError, match="without its reference bundle"):
        default_bundle()


def test_a_hubs_cache_of_links_is_told_how_to_be_copied(tiny_path: Path, tmp_path: Path) -> None:
    """As huggingface_hub lays it out: every file of a snapshot is a link to ../../blobs."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc" / "tiny.hz"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, file in enumerate(sorted(tiny_path.iterdir())):
        (blobs / str(n)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(n), snapshot))
    with pytest.raises(BundleError, match=r"bundle\.json is a link") as caught:
        load_bundle(snapshot)
    assert "cp -rL PATH/tiny.hz ./tiny.hz" in caught.value.remedy and "damaged" not in str(caught.value)
    shutil.copytree(snapshot, tmp_path / "copy.hz", symlinks=False)  # what cp -rL does
    assert load_bundle(tmp_path / "copy.hz").name == "tiny"
    shutil.rmtree(blobs)
    with pytest.raises(BundleError, match="a file that is not here") as absent:
        load_bundle(snapshot)
    assert "datalad get PATH" in absent.value.remedy
