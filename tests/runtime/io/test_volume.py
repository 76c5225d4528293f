"""Scans in and out, with nibabel as the independent truth for values, affines and orientation."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hz_runtime.errors import GridMismatch, NoBrain, ScanError, UnreadableScan, UnsupportedScan, UsageError
from hz_runtime.io.volume import Geometry, ReadLimits, Volume, is_scan_name, read_volume, stem, write_volume

SHAPE = (9, 11, 13)
CODES = ["".join(c) for p in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*p)]
TURN = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.25, -0.3, 0.15), [12.5, -33.25, 7.75])


def voxels(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Every voxel different, so that no flip or permutation can hide."""
    return np.random.default_rng(3).permutation(np.prod(shape)).reshape(shape).astype(dtype)


def affine_of(codes: str, oblique: bool) -> np.ndarray:
    """Affine of an array stored in orientation `codes`, 1 x 1.5 x 2 mm, perhaps tilted."""
    ornt = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((4, 4))
    for stored, (axis, sign) in enumerate(ornt):
        matrix[int(axis), stored] = sign * (1.0, 1.5, 2.0)[stored]
    matrix[:, 3] = (-8.0, 20.0, -5.0, 1.0)
    return TURN @ matrix if oblique else matrix


def save(path: Path, data: np.ndarray, affine: np.ndarray, kind: Any = nib.Nifti1Image) -> Path:
    image = kind(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def assert_matches_nibabel(volume: Volume, path: Path, rtol: float = 3e-7) -> None:
    truth = nib.as_closest_canonical(nib.load(path))
    wanted = truth.get_fdata().reshape(truth.shape[:3])
    np.testing.assert_allclose(volume.data, wanted, rtol=rtol, atol=0)
    np.testing.assert_allclose(volume.affine, truth.affine, atol=1e-6)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("codes", CODES)
def test_all_orientations_read_and_write_back(codes: str, oblique: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "in.nii.gz", voxels(), affine_of(codes, oblique))
    volume = read_volume(path)
    assert_matches_nibabel(volume, path)
    assert volume.geometry.orientation == codes
    assert volume.data.dtype == np.float32
    assert volume.data.flags.f_contiguous
    assert volume.data.shape == volume.geometry.ras_shape == volume.shape
    np.testing.assert_allclose(volume.spacing, nib.affines.voxel_sizes(volume.affine))

    write_volume(tmp_path / "out.nii.gz", volume.data, volume.geometry)
    before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata(), atol=0.02)  # half a slope
    np.testing.assert_array_equal(after.affine, before.affine)
    for name in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
                 "qoffset_y", "qoffset_z", "qform_code", "sform_code", "xyzt_units"):  # fmt: skip
        assert after.header[name].tobytes() == before.header[name].tobytes(), name
    assert after.header["pixdim"][:4].tobytes() == before.header["pixdim"][:4].tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_any_affine_is_oriented_as_nibabel_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] @ np.diag(random.uniform(0.5, 3, 3))
    matrix[:3, :3] += random.normal(scale=0.1, size=(3, 3))  # shear
    matrix[:3, 3] = random.normal(scale=50, size=3)
    geometry = Geometry.from_affine(SHAPE, matrix)
    truth = nib.as_closest_canonical(nib.Nifti1Image(voxels(), matrix))
    np.testing.assert_array_equal(geometry.ornt, nib.io_orientation(matrix))
    np.testing.assert_array_equal(geometry.to_ras(voxels()), truth.get_fdata())
    np.testing.assert_allclose(geometry.ras_affine, truth.affine, atol=1e-9)
    np.testing.assert_array_equal(geometry.from_ras(geometry.to_ras(voxels())), voxels())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_order_and_version(dtype: str, order: str, kind: Any, suffix: str, tmp_path: Path) -> None:
    data = voxels(np.float64) % 200 - (90 if dtype[0] in "if" else 0)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    image = kind(data.astype(dtype), affine_of("LPI", True), header)
    path = tmp_path / f"a{suffix}"
    nib.save(image, path)
    assert nib.load(path).header.endianness == order
    volume = read_volume(path)
    assert_matches_nibabel(volume, path)
    assert volume.source_dtype == np.dtype(dtype).name
    assert volume.missing is None
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    write_volume(tmp_path / "b.nii", volume.data, volume.geometry, dtype="float32")
    again = nib.load(tmp_path / "b.nii")
    assert type(again) is kind
    np.testing.assert_array_equal(again.get_fdata(), nib.load(path).get_fdata())


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        ("u1", 0.37, 0.0), ("i2", -2.5, 0.0), ("i2", 0.01, -1e6), ("u2", 3.0, 1024.0), ("f4", 1e-3, 0.0),
        ("i4", 1e-6, -2000.0), ("i8", 1.0, -1e12), ("f8", 0.5, 3.0),
    ],
)  # fmt: skip
def test_scaling_is_applied_as_nibabel_does(dtype: str, slope: float, inter: float, tmp_path: Path) -> None:
    stored = (voxels(np.float64) * 0.1).astype(dtype)
    if dtype == "i8":
        stored += 10**12  # cancels with the intercept: float32 arithmetic would lose everything
    image = nib.Nifti1Image(stored, affine_of("RAS", False), dtype=stored.dtype)
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb") as out:  # by hand: nib.save would choose its own scaling
        image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
        out.write(image.header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    assert nib.load(path).dataobj.slope == pytest.approx(slope)
    assert_matches_nibabel(read_volume(path), path)


def test_a_four_dimensional_scan_of_one_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels().reshape(*SHAPE, 1), affine_of("LAS", False))
    volume = read_volume(path)
    assert volume.shape == SHAPE
    assert_matches_nibabel(volume, path)


def test_header_extensions_are_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), affine_of("RAS", False))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment " * 400))
    nib.save(image, tmp_path / "a.nii.gz")
    assert_matches_nibabel(read_volume(tmp_path / "a.nii.gz"), tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_mgz_becomes_nifti_with_its_affine(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "orig.mgz"
    nib.save(nib.MGHImage((voxels() % 120).astype(dtype), affine_of("LIA", True)), path)
    volume = read_volume(path)
    assert_matches_nibabel(volume, path)
    assert volume.geometry.orientation == "LIA"
    write_volume(tmp_path / "out.nii.gz", volume.data, volume.geometry)
    out = nib.load(tmp_path / "out.nii.gz")
    assert type(out) is nib.Nifti1Image
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(out.affine, nib.load(path).affine, atol=1e-5)
    np.testing.assert_allclose(out.get_fdata(), nib.load(path).get_fdata(), atol=0.01)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), affine_of("RAS", False))
    np.testing.assert_array_equal(read_volume(path.rename(tmp_path / "b.nii")).data, voxels())
    nib.save(nib.MGHImage(voxels(), affine_of("RAS", False)), tmp_path / "a.mgz")
    (tmp_path / "a.mgh").write_bytes(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mgh").data, voxels())


@pytest.mark.parametrize("axes", ["LPS", "SRA"])
def test_voxels_without_a_number_become_zero_and_are_known(axes: str, tmp_path: Path) -> None:
    data = voxels(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(save(tmp_path / "a.nii.gz", data, affine_of(axes, False)))
    assert volume.missing is not None
    assert np.isfinite(volume.data).all()
    np.testing.assert_array_equal(volume.geometry.from_ras(volume.missing), ~np.isfinite(data))
    stored = volume.geometry.from_ras(volume.data)
    assert (stored[0, 0, :3] == 0).all()
    np.testing.assert_array_equal(stored.ravel()[3:], data.ravel()[3:])


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_constant_volume_has_no_brain(value: float, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.float32), np.eye(4))
    with pytest.raises(NoBrain):
        read_volume(path)


def test_limits_are_stated_by_the_caller(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), np.eye(4))
    for limits in (ReadLimits(max_dim=12), ReadLimits(max_voxels=1000), ReadLimits(max_file_bytes=100)):
        with pytest.raises(UnreadableScan, match="limit"):
            read_volume(path, limits)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_written_bytes_are_reproducible_and_hashed(name: str, dtype: Any, tmp_path: Path) -> None:
    geometry = Geometry.from_affine(SHAPE, affine_of("PSR", True))
    data = np.random.default_rng(0).random(geometry.ras_shape, dtype=np.float32)
    (tmp_path / "other").mkdir()
    digest = write_volume(tmp_path / name, data, geometry, dtype=dtype)
    assert write_volume(tmp_path / "other" / name, np.asfortranarray(data), geometry, dtype=dtype) == digest
    content = (tmp_path / name).read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    if name.endswith(".gz"):
        assert content[3:8] == bytes(5)  # no flags (no file name), time 0
    assert read_volume(tmp_path / name).geometry.sform_code == 2


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 255.0, 30000.0, 3e38])
def test_int16_keeps_zero_and_errs_by_half_a_slope(scale: float, tmp_path: Path) -> None:
    geometry = Geometry.from_affine((32, 32, 32), np.eye(4))
    data = (np.random.default_rng(1).uniform(-1, 1, (32, 32, 32)) * scale).astype(np.float32)
    data[data < 0.1 * scale] *= np.float32(0.5)
    data[:4] = 0
    write_volume(tmp_path / "a.nii.gz", data, geometry)
    image = nib.load(tmp_path / "a.nii.gz")
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    assert inter == 0.0
    assert slope == pytest.approx(np.abs(data).max() / 32767, rel=1e-6)
    got = image.get_fdata()
    assert (got[:4] == 0).all()
    assert np.abs(got - data).max() <= slope * 0.505


def test_all_zero_output_can_be_written(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.float32), Geometry.from_affine(SHAPE, np.eye(4)))
    assert not nib.load(tmp_path / "a.nii.gz").get_fdata().any()


def test_write_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    geometry = Geometry.from_affine(SHAPE, affine_of("PSR", False))
    good = np.ones(geometry.ras_shape, np.float32)
    with pytest.raises(GridMismatch):
        write_volume(tmp_path / "a.nii.gz", good.transpose(1, 2, 0), geometry)
    with pytest.raises(UsageError, match="hz writes"):
        write_volume(tmp_path / "a.mgz", good, geometry)
    for bad in (np.nan, np.inf):
        holed = good.copy()
        holed[3, 4, 5] = bad
        with pytest.raises(ValueError, match="NaN"):
            write_volume(tmp_path / "a.nii.gz", holed, geometry)
    with pytest.raises(ValueError, match="dtype"):
        write_volume(tmp_path / "a.nii.gz", good, geometry, dtype="int8")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "bare"),
    [("/d/sub-01_T1w.nii.gz", "sub-01_T1w"), ("a.b.nii", "a.b"), ("X.MGZ", "X"), ("a.nii.nii.gz", "a.nii")],
)
def test_scan_names(name: str, bare: str) -> None:
    assert is_scan_name(name)
    assert stem(name) == bare


@pytest.mark.parametrize("name", ["a.txt", "a.nii.gz.part", ".a.nii.gz", ".nii", "anii", "a.json", "a.hdr"])
def test_other_names(name: str) -> None:
    assert not is_scan_name(name)


@pytest.mark.parametrize(
    "name", ["a.hdr", "a.img.gz", "A.MNC", "a.dcm", "a.nrrd", "a.mif", "a+orig.BRIK.gz", "a+orig.HEAD"]
)
def test_other_formats_are_named_with_a_command(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(UnsupportedScan, match=r"hz reads \.nii, \.nii\.gz and \.mgz") as caught:
        read_volume(tmp_path / name)
    assert name in caught.value.remedy or "FOLDER" in caught.value.remedy


NASTY_READABLE = {
    "nibabel__anatomical.nii",
    "nibabel__reoriented_anat_moved.nii",
    "niftirs__f32.nii.gz",
    "niivue__FLAIR.nii.gz",
    "niivue__labels256.nii.gz",
    "niivue__mean_func.nii.gz",
    "niivue__minimal.nii.gz",
    "niivue__shear.nii.gz",
}


@pytest.mark.parametrize("folder", ["nasty", "hostile"])
def test_nasty_files_give_a_volume_or_one_line(folder: str, scans: Path) -> None:
    readable = NASTY_READABLE if folder == "nasty" else {"prisma_2D_sag_T1_thick.nii.gz"}
    names = {path.name for path in (scans / folder).iterdir()}
    assert readable <= names
    for path in sorted((scans / folder).iterdir()):
        if path.name in readable:
            assert_matches_nibabel(read_volume(path), path)
            continue
        with pytest.raises(ScanError) as caught:  # and no other kind
            read_volume(path)
        assert caught.value.message.startswith(f"{path.name}: ")
        assert "\n" not in caught.value.message + caught.value.remedy
        assert caught.value.remedy
        assert str(scans) not in str(caught.value)


@pytest.mark.parametrize("folder", ["skullstripped", "wholehead"])
def test_real_scans_agree_with_nibabel(folder: str, scans: Path) -> None:
    paths = sorted((scans / folder).iterdir())
    assert paths
    for number, path in enumerate(paths):
        volume = read_volume(path)
        assert volume.data.flags.f_contiguous
        if number % 4 == 0:  # nibabel takes most of the time
            assert_matches_nibabel(volume, path, rtol=1e-6)
