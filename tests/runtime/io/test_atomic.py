"""Atomic writes: all of a file or none of it, and hashes that hashlib agrees with."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.errors import HzError
from hz_runtime.io.atomic import (
    atomic_write_bytes,
    gzipped,
    holds,
    sha256_bytes,
    sha256_file,
    shown,
    sweep_temporaries,
    temporary_name,
    write_changed,
    write_synced,
)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(memoryview(data)) == hashlib.sha256(data).hexdigest()


def test_gzipped_is_one_member_without_name_or_time_that_the_standard_library_reads() -> None:
    pieces = [b"header", bytes(100_000), memoryview(os.urandom(50_000))]
    packed = gzipped(pieces)
    assert gzip.decompress(packed) == b"".join(pieces)
    assert packed[:4] == b"\x1f\x8b\x08\x00"  # gzip, deflate, no flags: neither name nor comment
    assert packed[4:8] == bytes(4)
    assert packed == gzipped(iter(pieces))
    assert len(packed) < 80_000


def test_a_scan_takes_under_four_fifths_of_igzips_fastest_level() -> None:
    from isal import isal_zlib

    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in (50, 60, 50))]
    head = np.where(
        sum(a**2 for a in axes) < 0.8, 0.6 + 0.05 * np.random.default_rng(0).random((50, 60, 50)), 0
    )
    data = np.rint(head * 32767).astype("<i2").tobytes("F")
    fastest = isal_zlib.compressobj(0, isal_zlib.DEFLATED, 31)
    assert len(gzipped([data])) < 0.8 * len(fastest.compress(data) + fastest.flush())


def test_writes_replaces_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    atomic_write_bytes(target, b"one")
    atomic_write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_file_that_has_the_bytes_already_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a"
    assert holds(target, None) and write_changed(target, b"one") and not holds(target, None)
    before = target.stat()
    assert not write_changed(target, b"one")
    after = target.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write_changed(target, b"two") and holds(target, b"two") and not holds(target, b"one")


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_missing_folder_is_a_clear_error_without_the_path(tmp_path: Path) -> None:
    with pytest.raises(HzError, match=r"^a: cannot be written \(No such file") as caught:
        atomic_write_bytes(tmp_path / "nowhere" / "a", b"x")
    assert caught.value.remedy
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(HzError, match=r"^a: cannot be written \(No such file"):
        write_synced(tmp_path / "nowhere" / "a", b"x")


def test_a_file_of_a_private_folder_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    write_synced(tmp_path / "a", b"xyz")
    assert (tmp_path / "a").read_bytes() == b"xyz" and synced == [3]


def test_a_symbolic_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a"
    victim.write_bytes(b"precious")
    temporary_name(target).symlink_to(victim)
    atomic_write_bytes(target, b"x")
    assert victim.read_bytes() == b"precious"
    assert target.read_bytes() == b"x"
    assert not target.is_symlink()


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    atomic_write_bytes(target, b"x")
    assert target.read_bytes() == b"x"


def test_sweep_removes_only_temporaries_of_dead_processes(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead = tmp_path / f".scan.nii.gz.{int(child.stdout)}.tmp"
    mine = temporary_name(tmp_path / "scan.nii.gz")
    keep = tmp_path / ".notes.tmp"
    for path in (dead, mine, keep):
        path.write_bytes(b"half")
    assert sweep_temporaries(tmp_path) == 1
    assert not dead.exists()
    assert mine.exists()
    assert keep.exists()
    assert sweep_temporaries(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(
    ("path", "text"),
    [("/data/ward 7/sub-01.nii.gz", "sub-01.nii.gz"), ("a\nb\x1b[31m.nii", "a?b?[31m.nii"), ("/x/y/", "y")],
)
def test_shown_is_one_printable_line_without_folder(path: str, text: str) -> None:
    assert shown(path) == text
