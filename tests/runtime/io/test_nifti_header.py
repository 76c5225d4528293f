"""The reader contract, with nibabel writing the headers and struct damaging them."""

from __future__ import annotations

import struct
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHHeader

from hz_runtime.errors import HzError, UnreadableScan, UnsupportedScan
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.nifti_header import HEAD_BYTES, ReadLimits, ScanHeader, encode_header, parse_header

LIMITS = ReadLimits()
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.9, 1.1, 2.0]), [80.25, -110.5, -60.75]
)


def nifti(
    shape: tuple[int, ...] = (20, 24, 16), dtype: Any = np.int16, version: int = 1, order: str = "<"
) -> Any:
    """A sound nibabel header with an oblique sform and qform."""
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = kind(endianness=order)
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(OBLIQUE, 1)
    header.set_qform(OBLIQUE, 2, strip_shears=True)
    header.set_xyzt_units("mm", "sec")
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 2.0, -3.0
    return header


def raw(header: Any) -> bytes:
    return (header.binaryblock + bytes(HEAD_BYTES))[:HEAD_BYTES]


def parse(header: Any) -> ScanHeader:
    return parse_header(header if isinstance(header, bytes) else raw(header), "scan.nii.gz", LIMITS)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_sound_headers_agree_with_nibabel(version: int, order: str, dtype: str) -> None:
    header = nifti(dtype=np.dtype(dtype), version=version, order=order)
    parsed = parse(header)
    assert parsed.geometry.shape == header.get_data_shape()
    assert parsed.dtype == header.get_data_dtype()
    assert (parsed.slope, parsed.inter) == (2.0, -3.0)
    assert parsed.offset == header["vox_offset"]
    assert (parsed.geometry.sform_code, parsed.geometry.qform_code) == (1, 2)
    np.testing.assert_array_equal(parsed.geometry.affine, header.get_best_affine())
    assert parsed.geometry.qform is not None
    np.testing.assert_allclose(parsed.geometry.qform, header.get_qform(), atol=1e-6)
    assert parsed.geometry.xyzt_units == header["xyzt_units"]
    assert parsed.geometry.version == version
    assert parsed.data_bytes == 20 * 24 * 16 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("flip", [1, -1])
def test_qform_alone_and_voxel_sizes_alone_follow_nibabel(flip: int) -> None:
    header = nifti()
    header.set_qform(OBLIQUE @ np.diag([1, 1, flip, 1]), 1)
    header["sform_code"] = 0
    np.testing.assert_allclose(parse(header).geometry.affine, header.get_best_affine(), atol=1e-5)
    header["qform_code"] = 0
    parsed = parse(header).geometry
    np.testing.assert_allclose(parsed.affine, header.get_best_affine())
    assert not parsed.placed
    assert parsed.orientation == "LAS"


def test_half_turn_quaternions_follow_nibabel() -> None:
    header = nifti()
    header["sform_code"] = 0
    for quaternion in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [np.sqrt(0.5), 0, np.sqrt(0.5)]):
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion
        np.testing.assert_allclose(parse(header).geometry.affine, header.get_best_affine(), atol=2e-4)


def test_a_single_frame_fourth_axis_is_dropped() -> None:
    for shape in ((20, 24, 16, 1), (20, 24, 16, 1, 1), (20, 24, 16, 1, 1, 1, 1)):
        assert parse(nifti(shape)).geometry.shape == (20, 24, 16)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((20, 24, 16, 176), "176 frames; hz takes one T1-weighted volume at a time"),
        ((20, 24, 16, 1, 3), "5 axes"),
        ((20, 24, 16, 2, 1, 1, 2), "7 axes"),
        ((200, 240), "2-D image of 200x240"),
        ((200, 240, 7), "200x240x7 voxels; a head needs 8"),
        ((200, 240, 1), "200x240x1 voxels; a head needs 8"),
    ],
)
def test_what_is_not_one_volume_is_unsupported(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UnsupportedScan, match=says) as caught:
        parse(nifti(shape))
    assert caught.value.remedy


def test_four_dimensional_scans_come_with_the_command_to_extract_a_frame() -> None:
    with pytest.raises(UnsupportedScan) as caught:
        parse_header(raw(nifti((20, 24, 16, 9))), "sub-07_bold.nii.gz", LIMITS)
    assert caught.value.remedy.endswith("fslroi sub-07_bold frame 0 1")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (128, "RGB colours"), (2304, "RGBA colours"), (32, "complex64"), (1792, "complex128"),
        (2048, "complex256"), (1536, "float128"), (1, "1-bit"), (0, "no data type"),
    ],
)  # fmt: skip
def test_other_data_types_are_unsupported_by_name(code: int, says: str) -> None:
    header = nifti()
    header["datatype"] = code
    with pytest.raises(UnsupportedScan, match=says):
        parse(header)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("datatype", 2826, "data type code 2826 does not exist"),
        ("datatype", -9510, "data type code -9510 does not exist"),
        ("scl_inter", np.inf, "scaling is not finite"),
        ("scl_inter", np.nan, "scaling is not finite"),
        ("scl_inter", -np.inf, "scaling is not finite"),
        ("vox_offset", 100, "start at byte 100"),
        ("vox_offset", -352, "start at byte -352"),
        ("vox_offset", 1 << 30, "start at byte"),
        ("dim", [0, 1, 1, 1, 1, 1, 1, 1], "claims 0 axes"),
        ("dim", [9, 9, 9, 9, 1, 1, 1, 1], "claims 9 axes"),
        ("dim", [3, 0, 24, 16, 1, 1, 1, 1], "claims 0x24x16"),
        ("dim", [3, 20, -24, 16, 1, 1, 1, 1], "claims 20x-24x16"),
        ("dim", [4, 20, 24, 16, 0, 1, 1, 1], "claims 20x24x16x0"),
        ("dim", [3, 1025, 24, 16, 1, 1, 1, 1], "limit is 1024 along an axis"),
        ("dim", [3, 1024, 1024, 1024, 1, 1, 1, 1], "limit is 1024 along an axis and 268435456 in all"),
        ("srow_x", [0, 0, 0, 0], "singular"),
        ("srow_x", [np.nan, 0, 0, 0], "not finite"),
        ("srow_x", [1, 0, 0, np.inf], "not finite"),
        ("srow_x", [1e30, 0, 0, 0], "far beyond any head"),
        ("magic", b"n+9", "magic"),
    ],
)
def test_damaged_headers_are_unreadable(version: int, field: str, value: Any, says: str) -> None:
    header = nifti(version=version)
    header[field] = value
    with pytest.raises(UnreadableScan, match=says) as caught:
        parse(header)
    assert caught.value.remedy
    assert "\n" not in caught.value.one_line


@pytest.mark.parametrize(("unit", "to_unit"), [("micron", 1000.0), ("meter", 0.001)])
@pytest.mark.parametrize("code", ["sform_code", "qform_code", ""])
def test_lengths_in_metres_or_micrometres_become_mm(unit: str, to_unit: float, code: str) -> None:
    """As nifti1.h says and SimpleITK 2.5.7 does; nibabel 5.4.2 gives the bare numbers."""
    header, plain = nifti(), nifti()
    scaled = np.diag([to_unit, to_unit, to_unit, 1.0]) @ OBLIQUE
    header.set_sform(scaled, 1)
    header.set_qform(scaled, 1, strip_shears=True)
    header.set_xyzt_units(unit, "sec")
    for each in (header, plain):
        for name in ("sform_code", "qform_code"):
            each[name] = int(name == code)
    found, expected = parse(header).geometry, parse(plain).geometry
    np.testing.assert_allclose(found.affine, expected.affine, rtol=1e-6, atol=1e-4)
    assert found.pixdim == pytest.approx(expected.pixdim, rel=1e-6)
    assert found.xyzt_units == expected.xyzt_units  # what is written is in mm, and says so
    written = nib.Nifti1Header(encode_header(found, np.float32, 1.0)[:348])
    np.testing.assert_allclose(written.get_best_affine(), expected.affine, rtol=1e-6, atol=1e-4)


def test_a_unit_that_makes_no_head_of_sound_voxels_is_not_believed() -> None:
    header = nifti()
    header.set_xyzt_units("micron", "sec")
    np.testing.assert_array_equal(parse(header).geometry.affine, header.get_best_affine())


@pytest.mark.parametrize("sizes", [(1e-3, 1e-3, 1e-3), (900, 900, 900), (1.0, 1.0, 0.0)])
def test_voxels_of_another_unit_or_none_are_refused(sizes: tuple[float, ...]) -> None:
    header = nifti()
    header.set_sform(np.diag([*sizes, 1.0]), 1)
    with pytest.raises(UnreadableScan, match="voxel"):
        parse(header)


def test_planar_axes_and_a_distant_origin_are_refused() -> None:
    header = nifti()
    flat = OBLIQUE.copy()
    flat[:3, 2] = flat[:3, 0] + flat[:3, 1]
    header.set_sform(flat, 1)
    with pytest.raises(UnreadableScan, match="lie in one plane"):
        parse(header)
    far = OBLIQUE.copy()
    far[0, 3] = 1e8
    header.set_sform(far, 1)
    with pytest.raises(UnreadableScan, match="from the origin"):
        parse(header)


def test_a_broken_qform_matters_only_where_it_is_used() -> None:
    header = nifti()
    header["quatern_b"] = np.nan
    assert parse(header).geometry.qform_code == 0  # not passed on
    header["sform_code"] = 0
    with pytest.raises(UnreadableScan, match="qform"):
        parse(header)
    header["quatern_b"] = 5.0
    with pytest.raises(UnreadableScan, match="qform"):
        parse(header)


def test_a_qform_without_a_code_is_passed_on_where_it_is_sound() -> None:
    """As nibabel writes any image that is made of an affine: some readers do not look at the code."""
    header = nifti()
    header["qform_code"] = 0
    again = type(header)(encode_header(parse(header).geometry, np.int16, 1.0)[: header.sizeof_hdr])
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert again[field].tobytes() == header[field].tobytes() != bytes(4)
    assert again["pixdim"][:4].tobytes() == header["pixdim"][:4].tobytes()
    assert (int(again["qform_code"]), parse(header).geometry.qform) == (0, None)
    for field, value in (("quatern_c", np.nan), ("quatern_d", 5.0), ("qoffset_x", np.inf)):
        broken = header.copy()
        broken[field] = value
        assert parse(broken).geometry.quaternion == (1.0,) + (0.0,) * 6
    header["pixdim"][1] = np.inf
    assert parse(header).geometry.quaternion == (1.0,) + (0.0,) * 6


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inter", [0.0, 7.0, np.nan, np.inf])
def test_a_slope_that_says_nothing_means_unscaled(slope: float, inter: float) -> None:
    """As nibabel 5.4 reads them; with a slope of 0, SimpleITK 2.5 and niimath add the intercept."""
    header = nifti()
    header["scl_slope"], header["scl_inter"] = slope, inter
    assert (parse(header).slope, parse(header).inter) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "MINC-2 or HDF5"),
        (b"CDF\x01" + bytes(500), "MINC-1 or netCDF"),
        (bytes(128) + b"DICM" + bytes(400), "it is DICOM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(500), "compressed twice"),
        (b"hello", "not a NIfTI or MGZ volume"),
        (b"\0", "not a NIfTI or MGZ volume"),
        (bytes(540), "not a NIfTI or MGZ volume"),
        (struct.pack("<i", 348) + bytes(100), "ends inside its NIfTI-1 header"),
        (struct.pack(">i", 540) + bytes(100), "ends inside its NIfTI-2 header"),
        (b"\0\0\0\1" + bytes(100), "ends inside its MGH header"),
    ],
)
def test_other_content_is_named(head: bytes, says: str) -> None:
    with pytest.raises(UnreadableScan, match=says):
        parse(head)


def test_pairs_analyze_and_cifti_are_explained() -> None:
    header = nifti()
    header["magic"] = header.pair_magic
    with pytest.raises(UnsupportedScan, match="pair"):
        parse(header)
    header["magic"] = b""
    with pytest.raises(UnsupportedScan, match="Analyze"):
        parse(header)
    cifti = nifti((1, 1, 1, 1, 10, 10), version=2)
    cifti["intent_code"] = 3001
    with pytest.raises(UnsupportedScan, match="CIFTI"):
        parse(cifti)


def mgh(good: bool = True, **fields: Any) -> bytes:
    header = MGHHeader()
    header.set_data_shape((20, 24, 16))
    header.set_data_dtype(np.float32)
    header["Mdc"] = (OBLIQUE[:3, :3] / [0.9, 1.1, 2.0]).T
    header["delta"], header["Pxyz_c"] = (0.9, 1.1, 2.0), (4.0, -5.0, 6.0)
    for field, value in fields.items():
        header[field] = value
    block = bytearray(header.binaryblock[:90].ljust(284, b"\0"))
    block[28:30] = struct.pack(">h", int(good))
    return bytes(block)


def test_mgh_agrees_with_nibabel() -> None:
    parsed = parse(mgh())
    truth = MGHHeader(mgh())
    np.testing.assert_allclose(parsed.geometry.affine, truth.get_affine(), atol=1e-5)
    assert parsed.geometry.placed
    assert (parsed.dtype, parsed.offset) == (np.dtype(">f4"), 284)
    assert (parsed.geometry.sform_code, parsed.geometry.qform_code) == (1, 0)


def test_an_mgh_without_a_pose_lies_as_freesurfer_lays_it_and_not_as_nibabel_does() -> None:
    """FreeSurfer's utils/mriio.cpp, setDirectionCosine(MRI_CORONAL): x_r = y_s = -1, z_a = 1, 1 mm, centred.

    nibabel 5.4.2 holds the second axis for upwards and the third for backwards: the head would be upside down
    (findings/mgh_no_pose.sh).
    """
    geometry = parse(mgh(good=False)).geometry
    left, down, front = (-1, 0, 0), (0, 0, -1), (0, 1, 0)
    np.testing.assert_array_equal(geometry.affine[:3, :3], np.transpose([left, down, front]))
    np.testing.assert_array_equal(geometry.affine @ [10, 12, 8, 1], (0, 0, 0, 1))  # of 20 x 24 x 16
    assert geometry.orientation == "LIA" and not geometry.placed


@pytest.mark.parametrize(
    ("fields", "says", "kind"),
    [
        ({"type": 5}, "data type 5", UnsupportedScan),
        ({"dims": (20, 24, 16, 3)}, "3 frames", UnsupportedScan),
        ({"dims": (20, 0, 16, 1)}, "claims", UnreadableScan),
        ({"dims": (20, 2**30, 16, 1)}, "limit", UnreadableScan),
        ({"delta": (0, 1, 1)}, "singular", UnreadableScan),
        ({"Pxyz_c": (np.nan, 1, 1)}, "not finite", UnreadableScan),
    ],
)
def test_damaged_mgh_headers_are_refused(fields: dict[str, Any], says: str, kind: type[HzError]) -> None:
    with pytest.raises(kind, match=says):
        parse(mgh(**fields))


@pytest.mark.parametrize("version", [1, 2])
def test_encoded_headers_carry_the_geometry_bit_for_bit(version: int) -> None:
    header = nifti(version=version)
    block = encode_header(parse(header).geometry, np.int16, 0.5, (0.25, 0.75))
    again = type(header)(block[: header.sizeof_hdr])  # nibabel's own checks run here
    for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
                  "qoffset_y", "qoffset_z", "qform_code", "sform_code", "xyzt_units"):  # fmt: skip
        assert again[field].tobytes() == header[field].tobytes(), field
    assert again["pixdim"][:4].tobytes() == header["pixdim"][:4].tobytes()
    assert again.get_data_shape() == (20, 24, 16)
    assert again.get_data_dtype() == np.int16
    assert again.get_slope_inter() == (0.5, 0.0)
    assert (again["cal_min"], again["cal_max"]) == (0.25, 0.75)
    assert len(block) == again["vox_offset"]


def test_random_headers_never_raise_anything_else() -> None:
    """Bytes of a sound header overwritten at random: a header that parses is usable, or a ScanError."""
    random = np.random.default_rng(7)
    sound = [raw(nifti()), raw(nifti(version=2, order=">")), mgh()]
    for trial in range(1500):
        head = bytearray(sound[trial % 3])
        for _ in range(int(random.integers(1, 12))):
            head[int(random.integers(4, min(len(head), 348)))] = int(random.integers(256))
        try:
            parsed = parse(bytes(head))
        except (UnreadableScan, UnsupportedScan):
            continue
        geometry = parsed.geometry
        assert 512 <= parsed.voxels <= LIMITS.max_voxels
        assert sorted(geometry.ornt[:, 0]) == [0, 1, 2]
        assert np.isfinite(geometry.ras_affine).all()
        parse(encode_header(geometry, np.float32, 1.0))


def test_from_affine_refuses_what_cannot_be_a_volume() -> None:
    for shape, affine in (((4, 4), np.eye(4)), ((4, 4, 4), np.zeros((4, 4))), ((4, 4, 4), np.eye(3))):
        with pytest.raises(HzError):
            Geometry.from_affine(shape, affine)
