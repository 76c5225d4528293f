"""The parsers of hz that strangers' bytes reach, each as a function of bytes that must end well.

It ends well where the bytes are read, or refused with an HzError of one short line. Whatever else is raised
is a fault of hz. Property tests (tests/attacks/test_properties.py) and `make fuzz` (tests/attacks/fuzz.py)
run the same functions; the seeds are sound files, made here.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hz_runtime.batch.journal import read_journal
from hz_runtime.batch.status import folder_status
from hz_runtime.bundle.manifest import bundle_id, parse
from hz_runtime.dicom.intake import IntakeLimits, dicom_files
from hz_runtime.dicom.series import find_series
from hz_runtime.dicom.whole_files import find_whole
from hz_runtime.errors import HzError
from hz_runtime.hospital.contracts import read_job
from hz_runtime.io import hash_chain
from hz_runtime.io.participants import read_table
from hz_runtime.io.volume import ReadLimits, read_volume
from hz_runtime.model_space.recipe import Recipe

LONGEST = 600  # characters of a message: an attacker's text does not flood a log
Target = Callable[[bytes, Path], None]


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """Swallow a refusal, once it is one short line."""
    try:
        yield
    except HzError as error:
        if not error.message or "\n" in error.message or len(error.message) >= LONGEST:
            raise AssertionError(f"not one short line: {error.message}") from error


def nifti(data: bytes, folder: Path) -> None:
    """A scan, compressed where it begins like gzip."""
    path = folder / ("a.nii.gz" if data[:2] == b"\x1f\x8b" else "a.nii")
    path.write_bytes(data)
    with ending_well():
        read_volume(path, ReadLimits(max_voxels=1 << 16))


def manifest(data: bytes, _: Path) -> None:
    """bundle.json as it is, and under the id of its contents, as an attacker would write it; its recipe."""
    for text in (data, _resigned(data)):
        with ending_well():
            Recipe.from_dict(dict(parse(text, "a.hz").recipe))


def _resigned(data: bytes) -> bytes:
    with suppress(ValueError, RecursionError, TypeError):
        found = json.loads(data)
        if isinstance(found, dict):
            return json.dumps({**found, "id": bundle_id(found)}).encode()
    return data


def participants(data: bytes, folder: Path) -> None:
    """A table, and behind a NUL, where there is one, its data dictionary."""
    table, described, dictionary = data.partition(b"\0")
    path = folder / ("participants.tsv" if described else "table.tsv")
    path.write_bytes(table)
    if described:
        path.with_suffix(".json").write_bytes(dictionary)
    with ending_well():
        found = read_table(path)
        for row in found.rows:
            with ending_well():
                age = found.age(row)
                assert age is None or 0 <= age <= 120
        found.need("participant_id", "age")


def arrival(data: bytes, folder: Path) -> None:
    """What orchestrators hand over: task.json where it begins like JSON, else DICOM or an archive of it."""
    if data[:1] == b"{":
        (folder / "task.json").write_bytes(data)
        with ending_well():
            read_job(None, None, {"MERCURE_IN_DIR": str(folder), "MERCURE_OUT_DIR": str(folder)})
        return
    path = folder / "study"
    path.write_bytes(data)
    small = IntakeLimits(
        max_bytes=1 << 22, max_file_bytes=1 << 21, max_files=100, max_directory_bytes=1 << 16
    )
    with ending_well(), dicom_files(path, small) as files:
        find_whole(files)
        find_series(files)


def account(data: bytes, folder: Path) -> None:
    """One of hz's own files: run.json; a shard's journal, behind a NUL its plan; or an audit file, behind a
    NUL its head, verified and appended to."""
    body, two, behind = data.partition(b"\0")
    if not two:
        _run_json(body, folder / "run")
    elif behind[:1] == b"{":
        _journal(body, behind, folder / "out")
    else:
        _chain(body, behind, folder / "audit.jsonl")


def _run_json(data: bytes, out: Path) -> None:
    out.mkdir(exist_ok=True)
    (out / "run.json").write_bytes(data)
    with ending_well():
        folder_status(out).to_dict()


def _journal(data: bytes, plan: bytes, out: Path) -> None:
    shards = out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    (shards / "1-of-2.jsonl").write_bytes(data)
    (shards / "plan.json").write_bytes(plan)
    read_journal(shards / "1-of-2.jsonl")
    with ending_well():
        folder_status(out).to_dict()


def _chain(data: bytes, head: bytes, path: Path) -> None:
    path.write_bytes(data)
    path.with_name("audit.jsonl.head").write_bytes(head)
    with ending_well():
        hash_chain.verify(path)
        hash_chain.append(path, {"event": "start"})
        hash_chain.verify(path)  # what held and was appended to holds


TARGETS: dict[str, Target] = {one.__name__: one for one in (nifti, manifest, participants, arrival, account)}

# Sound files

_SCAN = {
    "input": "sub-1.nii.gz", "name": "sub-1", "status": "ok", "reason": "", "outputs": ["a.nii.gz"],
    "figure": None, "age_raw": 40.5, "age_corrected": None, "age_interval": [30.0, 50.0], "age": 41.0,
    "brain_pad": -0.5, "diagnosis_probability": None, "flags": [], "recorded": "", "sha256": "0" * 64,
    "seconds": {"read": 0.5}, "gates": [],
}  # fmt: skip
PLAN = json.dumps(
    {
        "schema": "1.0",
        "shards": 2,
        "command": ["in", "--out", "out"],
        "scans": [{"input": "sub-1.nii.gz", "name": "sub-1"}, {"input": "b", "name": "b"}],
    }
).encode()


def seeds(name: str, folder: Path) -> list[bytes]:
    """Sound inputs of a target, made in a folder."""
    return {
        "nifti": _scans,
        "manifest": lambda _: [_manifest()],
        "participants": lambda _: _tables(),
        "arrival": _arrivals,
        "account": _accounts,
    }[name](folder)


def _scans(_: Path) -> list[bytes]:
    voxels = np.arange(4 * 5 * 6, dtype="<i2")
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 4, 5, 6, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # int16
    struct.pack_into("<8f", header, 76, 1, 2, 2, 2, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *(2.0 * (row == column) for column in range(4)))
    header[344:348] = b"n+1\0"
    whole = bytes(header) + voxels.tobytes()
    return [whole, gzip.compress(whole, mtime=0)]


def _manifest() -> bytes:
    spec = [{"name": "volume", "shape": ["N", 1, 64, 64, 64], "dtype": "float32"}]
    sha = "ab" * 32
    model = {
        "role": "harmonizer", "file": "harmonizer.onnx", "sha256": sha, "bytes": 9, "precision": "fp32",
        "inputs": spec, "outputs": spec, "sources": ["a"], "target": "b", "parameters": 1, "parity": {},
        "provenance": {},
    }  # fmt: skip
    row = {"min": 1.0, "max": 3.0, "mean": 2.0, "sd": 0.5}
    whole: dict[str, Any] = {
        "schema": "1.0", "name": "a", "created": "2026-01-01T00:00:00Z", "models": [model],
        "recipe": Recipe().to_dict(), "cohort": {"n": 3, "age_range": [20.0, 60.0]},
        "statistics": {"brain_cm3": row}, "anatomy": {"fluid_share": row}, "metrics": {}, "licence": "CC0",
        "intended_use": "Tests.", "files": {"harmonizer.onnx": sha},
        "age_bias": {"slope": 0.5, "intercept": 18.25, "n": 61, "how": "folds"},
    }  # fmt: skip
    return json.dumps({**whole, "id": bundle_id(whole)}).encode()


def _tables() -> list[bytes]:
    rows = 'participant_id\tage\tsex\nsub-1\t31.5\tF\nsub-2\tn/a\tM\nsub-3\t"41"\t\n'
    return [rows.encode(), b"\xef\xbb\xbf" + rows.encode() + b'\0{"age": {"Units": "months"}}']


def _arrivals(folder: Path) -> list[bytes]:
    import tarfile
    import zipfile

    import small_dicom as small

    data = small.header(0)
    data.Rows = data.Columns = 4
    data.PixelData = bytes(32)
    data["PixelData"].VR = "OW"
    image = small.save(data, folder / "seed.dcm").read_bytes()
    packed, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", image)
    with tarfile.open(fileobj=tape, mode="w") as archive_of_tape:
        member = tarfile.TarInfo("1.dcm")
        member.size = len(image)
        archive_of_tape.addfile(member, io.BytesIO(image))
    short = tape.getvalue()[: 512 * (3 + (len(image) + 511) // 512)]  # the padding behind it is 7 kB
    task = {"process": [{"module_name": "hz", "settings": {"page": "pdf", "threads": 2}}]}
    return [
        image,
        packed.getvalue(),
        gzip.compress(short, mtime=0),
        short,
        json.dumps(task).encode(),
    ]


def _accounts(folder: Path) -> list[bytes]:
    path = folder / "seed.jsonl"
    for record in (
        {"event": "start", "run": "1"},
        {"event": "scan", "name": "sub-1"},
        {"event": "end", "run": "1"},
    ):
        hash_chain.append(path, record)
    chain = path.read_bytes() + b"\0" + path.with_name("seed.jsonl.head").read_bytes()
    path.unlink()
    path.with_name("seed.jsonl.head").unlink()
    run = {"started": "2026-01-01T00:00:00+00:00", "bundle": {"id": "a"}, "options": {"space": "native"}}
    lines = ({"run": run}, {"begun": "b"}, {"begun": "sub-1"}, {"scan": _SCAN}, {"end": {"seconds": 1.5}})
    journal = "".join(json.dumps(line) + "\n" for line in lines).encode() + b"\0" + PLAN
    return [chain, journal, json.dumps({**run, "scans": [_SCAN]}).encode()]
