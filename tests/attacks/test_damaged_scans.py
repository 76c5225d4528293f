"""Damaged and hostile scan files: each is refused in one line, before it costs memory."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hz_runtime.errors import ScanError, UnreadableScan
from hz_runtime.io.volume import ReadLimits, read_volume

pytestmark = pytest.mark.requirement("damaged-scan")

SHAPE = (20, 24, 28)


def content(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> bytes:
    """The uncompressed bytes of a sound NIfTI-1 file."""
    data = np.random.default_rng(0).integers(0, 60, SHAPE).astype(dtype)
    blob = bytearray(nib.Nifti1Image(data, np.eye(4)).to_bytes())
    struct.pack_into("<8h", blob, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(blob)


def put(path: Path, blob: bytes) -> Path:
    path.write_bytes(blob)
    return path


@pytest.fixture(scope="module")
def whole() -> bytes:
    return gzip.compress(content(), mtime=0)


def test_the_sound_file_is_read(whole: bytes, tmp_path: Path) -> None:
    assert read_volume(put(tmp_path / "a.nii.gz", whole)).shape == SHAPE


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda z: z[: len(z) // 2], id="half file"),
        pytest.param(lambda z: z[:-1], id="one byte cut"),
        pytest.param(lambda z: z[:-4], id="length cut"),
        pytest.param(lambda z: z[:-8], id="trailer cut"),
        pytest.param(lambda z: z[:-9], id="trailer and last block cut"),
        pytest.param(lambda z: z[:20], id="gzip header only"),
        pytest.param(lambda z: z[:2], id="gzip magic only"),
        pytest.param(lambda z: z[:-8] + bytes(4) + z[-4:], id="wrong CRC"),
        pytest.param(lambda z: z[:-4] + struct.pack("<I", 7), id="wrong length"),
        pytest.param(lambda z: z + b"j", id="one byte of junk"),
        pytest.param(lambda z: z + b"junk" * 1000, id="junk"),
        pytest.param(lambda z: z + bytes(100) + b"junk", id="zeros and junk"),
        pytest.param(lambda z: z + z, id="the file twice"),
        pytest.param(lambda z: z + z[:100], id="a started second member"),
        pytest.param(lambda z: z[:1000] + z[1001:], id="a byte lost"),
        pytest.param(lambda z: z[:1000] + b"\0" + z[1000:], id="a byte gained"),
        pytest.param(lambda z: z[:1000] + bytes(512) + z[1512:], id="a sector zeroed"),
        pytest.param(lambda z: gzip.compress(z), id="compressed twice"),
        pytest.param(lambda z: gzip.compress(content() + b"x"), id="one byte too many inside"),
        pytest.param(lambda z: gzip.compress(content()[:-1]), id="one byte too few inside"),
        pytest.param(lambda z: gzip.compress(content()[:200]), id="header cut inside"),
        pytest.param(lambda z: gzip.compress(b""), id="nothing inside"),
        pytest.param(lambda z: zlib.compress(content()), id="zlib, not gzip"),
    ],
)
def test_a_damaged_gzip_stream_is_refused(
    damage: Callable[[bytes], bytes], whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableScan) as caught:
        read_volume(put(tmp_path / "a.nii.gz", damage(whole)))
    assert caught.value.message.startswith("a.nii.gz: ")
    assert caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy


def test_bit_flips_never_change_a_voxel(whole: bytes, tmp_path: Path) -> None:
    """A flipped bit is refused, or hit the gzip header's time or system fields, which mean nothing."""
    truth = read_volume(put(tmp_path / "a.nii.gz", whole)).data
    random = np.random.default_rng(5)
    flips = [*range(80), *random.integers(80, len(whole) * 8, 400)]
    survived = []
    for bit in map(int, flips):
        blob = bytearray(whole)
        blob[bit // 8] ^= 1 << (bit % 8)
        try:
            np.testing.assert_array_equal(read_volume(put(tmp_path / "b.nii.gz", bytes(blob))).data, truth)
            survived.append(bit)
        except UnreadableScan:
            pass
    assert all(24 <= bit < 80 for bit in survived)


def test_members_may_follow_one_another(tmp_path: Path) -> None:
    """bgzip and pigz -i write one stream as many members, and an empty one at the end: same content."""
    blob = content()
    parts = [gzip.compress(blob[i : i + 5000]) for i in range(0, len(blob), 5000)]
    path = put(tmp_path / "a.nii.gz", b"".join([*parts, gzip.compress(b"")]))
    plain = put(tmp_path / "b.nii", blob)
    np.testing.assert_array_equal(read_volume(path).data, read_volume(plain).data)
    parts[3] = parts[3][:-8] + bytes(8)
    with pytest.raises(UnreadableScan, match="damaged"):
        read_volume(put(path, b"".join(parts)))


def test_zero_padding_after_the_stream_is_allowed(whole: bytes, tmp_path: Path) -> None:
    assert read_volume(put(tmp_path / "a.nii.gz", whole + bytes(512))).shape == SHAPE  # as gzip(1) does


@pytest.mark.parametrize("extra", [b"", b"x", b"x" * 5000])
def test_a_plain_file_holds_exactly_what_it_declares(extra: bytes, tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii", content() + extra)
    if extra:
        with pytest.raises(UnreadableScan, match="more bytes than its header declares"):
            read_volume(path)
    else:
        assert read_volume(path).shape == SHAPE
    with pytest.raises(UnreadableScan, match="truncated"):
        read_volume(put(path, content()[:-1]))


def peak_bytes(path: Path, limits: ReadLimits | None = None) -> tuple[int, ScanError]:
    tracemalloc.start()
    try:
        with pytest.raises(ScanError) as caught:
            read_volume(path, limits)
        return tracemalloc.get_traced_memory()[1], caught.value
    finally:
        tracemalloc.stop()


def test_a_bomb_behind_a_small_header_is_not_inflated(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(content() + bytes(200_000_000), compresslevel=1))
    peak, error = peak_bytes(path)
    assert isinstance(error, UnreadableScan)
    assert "more bytes than its header declares" in error.message
    assert peak < 8_000_000


@pytest.mark.parametrize("shape", [(1024, 1024, 256), (1024, 512, 512)])
def test_a_small_file_cannot_declare_a_large_volume(shape: tuple[int, ...], tmp_path: Path) -> None:
    for name, pack in (("a.nii.gz", gzip.compress), ("a.nii", bytes)):
        peak, error = peak_bytes(put(tmp_path / name, pack(content(shape))))
        assert "truncated" in error.message
        assert peak < 4_000_000


@pytest.mark.parametrize("shape", [(1025, 8, 8), (32767, 32767, 32767), (1024, 1024, 1024)])
def test_absurd_dimensions_are_refused_before_allocation(shape: tuple[int, ...], tmp_path: Path) -> None:
    peak, error = peak_bytes(put(tmp_path / "a.nii.gz", gzip.compress(content(shape) + bytes(10_000_000))))
    assert "limit" in error.message
    assert peak < 4_000_000


def test_a_huge_header_extension_is_refused(tmp_path: Path) -> None:
    blob = bytearray(content())
    struct.pack_into("<f", blob, 108, 2.0e9)
    with pytest.raises(UnreadableScan, match="start at byte 2e"):
        read_volume(put(tmp_path / "a.nii.gz", gzip.compress(bytes(blob))))


def test_an_mgz_footer_is_bounded(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 60, SHAPE).astype(np.uint8)
    nib.save(nib.MGHImage(data, np.eye(4)), tmp_path / "a.mgh")
    blob = (tmp_path / "a.mgh").read_bytes()
    tags = put(tmp_path / "a.mgz", gzip.compress(blob + b"recon-all history" * 100))
    assert read_volume(tags).shape == SHAPE
    peak, error = peak_bytes(put(tmp_path / "a.mgz", gzip.compress(blob + bytes(200_000_000), 1)))
    assert "more bytes" in error.message
    assert peak < 16_000_000


@pytest.mark.parametrize(
    ("offset", "fmt", "values", "says"),
    [
        (112, "<2f", (1.0, np.nan), "not finite"),
        (112, "<2f", (2.0, -np.inf), "not finite"),
        (280, "<4f", (0, 0, 0, 0), "singular"),
        (40, "<8h", (3, 0, 24, 28, 1, 1, 1, 1), "claims 0x24x28"),
        (40, "<8h", (3, -20, 24, 28, 1, 1, 1, 1), "claims -20x24x28"),
        (40, "<8h", (0, 20, 24, 28, 1, 1, 1, 1), "claims 0 axes"),
        (70, "<h", (-9510,), "data type code -9510"),
    ],
)
def test_headers_that_usual_readers_accept(
    offset: int, fmt: str, values: tuple[float, ...], says: str, tmp_path: Path
) -> None:
    blob = bytearray(content())
    struct.pack_into(fmt, blob, offset, *values)
    with pytest.raises(UnreadableScan, match=says):
        read_volume(put(tmp_path / "a.nii.gz", gzip.compress(bytes(blob))))


def test_a_slope_that_overflows_is_counted_not_warned_about(tmp_path: Path) -> None:
    blob = bytearray(content())
    struct.pack_into("<f", blob, 112, 3e38)
    volume = read_volume(put(tmp_path / "a.nii.gz", gzip.compress(bytes(blob))))
    assert volume.missing is not None and volume.missing.any()
    assert np.isfinite(volume.data).all()


def test_random_bytes_under_every_name(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    magics = (b"", b"\x1f\x8b\x08\0", struct.pack("<i", 348), b"\0\0\0\1", struct.pack(">i", 540))
    for size in (1, 2, 3, 4, 100, 348, 352, 540, 5000):
        for name in ("a.nii", "a.nii.gz", "a.mgz"):
            for prefix in magics:
                with pytest.raises(ScanError) as caught:
                    read_volume(put(tmp_path / name, (prefix + random.bytes(size))[:size]))
                assert "\n" not in caught.value.one_line


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableScan, match=r"a\.nii\.gz: cannot be opened"):
        read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableScan, match="a folder"):
        read_volume(tmp_path)
    with pytest.raises(UnreadableScan, match=r"empty \(0 bytes\)"):
        read_volume(put(tmp_path / "empty.nii.gz", b""))
    with pytest.raises(UnreadableScan, match="cannot be opened"):
        read_volume("a\0b.nii.gz")
    with pytest.raises(UnreadableScan, match="cannot be opened"):
        read_volume(tmp_path / ("x" * 5000 + ".nii"))
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    with pytest.raises(UnreadableScan, match="cannot be opened"):
        read_volume(tmp_path / "loop.nii")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(UnreadableScan, match="not a regular file"):
        read_volume(tmp_path / "a.nii")


def test_permission_denied(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.nii.gz", whole)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # chmod would not stop root

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(UnreadableScan, match=r"cannot be opened \(Permission denied\)") as caught:
        read_volume(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_name_cannot_forge_a_line_or_colour_a_terminal(tmp_path: Path) -> None:
    path = put(tmp_path / "a\n\x1b[2Kok.nii", b"not a scan")
    with pytest.raises(UnreadableScan) as caught:
        read_volume(path)
    assert caught.value.message.startswith("a??[2Kok.nii: ")
