"""Files that hz wrote once, or that come with a bundle, with any value in them replaced or gone.

Each is read, refused with an HzError of one short line, or taken for no file of hz. Scans, manifests, tables,
journals and audit files have tests of their own.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import tiny
from hz_export.self_test import add_self_test
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bids.record import made_by, read_run
from hz_runtime.bundle.engine_cache import RECORD, EngineCache
from hz_runtime.bundle.store import load_bundle
from hz_runtime.dicom.convert import referenced
from hz_runtime.dicom.result import read_result
from hz_runtime.hospital.outcome import read_outcome
from hz_runtime.inference.expected_answers import expected_answers
from hz_runtime.io.contrast_agent import contrast_flags
from hz_runtime.report.figure import Figure
from hz_runtime.results.affected import results_of
from hz_runtime.results.record import intact, read_record
from parsers_under_attack import ending_well
from small_scans import write_scans

pytestmark = [pytest.mark.requirement("answers"), pytest.mark.made_up_results]
ODD: tuple[Any, ...] = (None, True, -1, 10**30, 1e400, "x", "\ud800", [], [[]], {}, {"a": []})
NESTED = b"[" * 100_000
MOST = 150  # of the ways to spoil a file that are tried


def spoilt(sound: bytes) -> Iterator[bytes]:
    """The file with one value replaced, or gone; no JSON; JSON that is nested without end."""
    whole = json.loads(sound)
    ways = [(path, value) for path in _paths(whole) for value in (*ODD, _spoil)]
    for path, value in random.Random(19).sample(ways, min(MOST, len(ways))):
        changed = deepcopy(whole)
        inside = changed
        for key in path[:-1]:
            inside = inside[key]
        if value is _spoil:
            del inside[path[-1]]
        else:
            inside[path[-1]] = value
        yield json.dumps(changed).encode()
    yield from (b"", b"3", b"null", b"[]", b"\xff", sound[:-9], NESTED, b'{"hz": ' + NESTED)


def _spoil() -> None:
    """Stands for: taken out."""


def _paths(inside: Any, behind: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = inside.items() if isinstance(inside, dict) else enumerate(inside[:3])
    for key, value in items:
        yield (*behind, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*behind, key))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_scans(folder / "in", 1)
    run_batch([folder / "in"], load_bundle(tiny_bundle), folder / "out", RunOptions(report=True))
    return folder / "out"


def attack(sound: bytes, path: Path, read: Callable[[Path], object]) -> None:
    read_whole = False
    for data in (sound, *spoilt(sound)):
        path.write_bytes(data)
        try:
            with ending_well():
                read(path)
                read_whole = True
        except Exception as error:
            raise AssertionError(f"read from {data[:3000]!r}") from error
        assert read_whole, "the sound one was refused"


SIDECARS: dict[str, Callable[[Path], object]] = {
    "whether a scan is done": lambda path: (record := read_record(path)) and intact(path.parent, record),
    "results that a fix affects": lambda path: list(results_of(path.parent)),
    "writing back to an archive": lambda path: read_result(path.with_suffix(".nii.gz"), path),
    "a contrast agent": lambda path: contrast_flags(path.with_suffix(".nii.gz")),
}


@pytest.mark.parametrize("reader", SIDECARS)
def test_a_sidecar(reader: str, out: Path, tmp_path: Path) -> None:
    (sidecar,) = out.glob("sub-*.json")
    for name in ("run.json", f"{sidecar.stem}.nii.gz"):
        shutil.copy(out / name, tmp_path)
    attack(sidecar.read_bytes(), tmp_path / sidecar.name, SIDECARS[reader])


def test_the_record_of_a_participant(out: Path, tmp_path: Path) -> None:
    def read(path: Path) -> None:
        run = read_run(path)
        for scan in run["scans"]:
            made_by(run, scan)

    attack((out / "run.json").read_bytes(), tmp_path / "sub-01_run.json", read)


def test_a_figure(out: Path, tmp_path: Path) -> None:
    (figure,) = (out / "figures").iterdir()
    attack(figure.read_bytes(), tmp_path / "figure", lambda path: Figure.from_bytes(path.read_bytes()))


def test_the_answers_in_a_bundle(tmp_path: Path) -> None:
    bundle = add_self_test(tiny.make_tiny_bundle(tmp_path / "a.hz"))
    files = {name: bundle.read_listed(name) for name in bundle.files}

    class Changed:
        """A bundle that is signed and whole, and whose maker means harm."""

        path, raw, files = bundle.path, bundle.raw, bundle.files

        def read_listed(self, name: str) -> bytes:
            return answers.read_bytes() if name == "self-test.json" else files[name]

    answers = tmp_path / "answers.json"
    attack(files["self-test.json"], answers, lambda _: expected_answers(Changed()))  # type: ignore[arg-type]


def test_what_became_of_a_study(tmp_path: Path) -> None:
    whole = json.dumps({"files": [{"name": "a.txt", "sha256": "0" * 64}], "status": "ok"}).encode()
    attack(whole, tmp_path / "result.json", lambda path: read_outcome(path.parent))


def test_the_reference_of_a_series(tmp_path: Path) -> None:
    whole = json.dumps({"SeriesInstanceUID": "1.2", "Part": 1, "SOPInstanceUIDs": []}).encode()

    def read(path: Path) -> None:
        with ending_well():
            referenced([], path)

    attack(whole, tmp_path / "a_source.json", read)


def test_the_record_of_a_kept_engine(tmp_path: Path) -> None:
    whole = {
        "record": RECORD, "role": "age", "model_sha256": "0" * 64, "flavour": "tensorrt", "version": "1",
        "capability": ["8.9"], "profile": {"least": 1, "tuned": 1, "most": 1}, "flags": [],
        "precision": "fp32", "layers": {"a": 1}, "sha256": "0" * 64, "bytes": 3,
    }  # fmt: skip
    (tmp_path / "key.engine").write_bytes(b"abc")

    def read(path: Path) -> None:
        with ending_well():
            EngineCache(path.parent).find("key")

    attack(json.dumps(whole).encode(), tmp_path / "key.json", read)
