"""N4 against a field that is known."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from hz_runtime.batch.failures import blames_the_scan
from hz_runtime.errors import HzError, NoBrain, ProgramDied, UnpreparedScan, UsageError
from hz_runtime.preparation import n4
from hz_runtime.preparation.exchange import hand_over, take_back
from hz_runtime.preparation.n4 import corrected
from hz_runtime.preparation.registration import affine_pose


@pytest.fixture
def phantom():
    """Two tissues in a ball of 60 mm, 3 mm voxels, and a tilted field of +-25 %."""
    size = 48
    i, j, k = np.indices((size,) * 3, np.float32) - (size - 1) / 2
    radius = np.sqrt(i**2 + j**2 + k**2)
    folds = np.sin(i / 2) * np.sin(j / 2) * np.sin(k / 2) > 0
    clean = np.where(radius < 20, np.where(folds, 1000, 700), 0).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape).astype(np.float32)
    field = np.exp(0.25 * (i + 0.5 * j) / 25).astype(np.float32)
    return (clean + noise * (clean > 0)) * field, clean, field, np.diag([3.0, 3, 3, 1])


def test_takes_a_known_field_out(phantom):
    pytest.importorskip("niimath")
    seen, clean, field, affine = phantom
    out = corrected(seen, affine)
    assert out.dtype == np.float32
    assert out.shape == seen.shape
    inside = clean > 0
    left = np.log(out[inside] / clean[inside])
    assert np.std(left - left.mean()) < 0.35 * np.std(np.log(field[inside]))
    assert not out[~inside].any()


def test_an_empty_scan_is_refused():
    with pytest.raises(NoBrain):
        corrected(np.zeros((8, 8, 8), np.float32), np.eye(4))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for niimath: a script that a test writes."""
    path = tmp_path / "niimath"
    path.write_text("#!/bin/sh\necho no such thing as a field >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setattr(n4, "niimath_program", lambda _: str(path))
    return path


def test_a_scan_without_a_field_is_to_blame(phantom, program):
    """Not the command: an earlier result of the scan goes, and the batch goes on."""
    with pytest.raises(UnpreparedScan, match=r"no receive field \(no such thing as a field\)") as error:
        corrected(phantom[0], phantom[3])
    assert blames_the_scan(error.value) and not isinstance(error.value, UsageError)
    program.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(UnpreparedScan, match="it wrote nothing"):
        corrected(phantom[0], phantom[3])
    program.write_text("#!/bin/sh\ncp scan.nii field.nii\n")  # 0 outside the ball
    with pytest.raises(UnpreparedScan, match="not positive everywhere"):
        corrected(phantom[0], phantom[3])


def test_a_scan_without_a_map_is_to_blame(phantom, program):
    template = SimpleNamespace(data=phantom[0], affine=phantom[3])
    for script in (
        "exit 1",
        "exit 0",
        "echo {} > map.json",
        "echo '{\"moving_to_fixed\": 1}' > map.json",
        "echo > map.json",
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(UnpreparedScan, match="map") as error:
            affine_pose(phantom[0], phantom[3], template)
        assert blames_the_scan(error.value)


@pytest.mark.usefixtures("program")
def test_a_full_disk_is_not_the_scans_fault(phantom, monkeypatch):
    monkeypatch.setattr(n4.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(HzError, match="disk for temporary files is full") as error:
        corrected(phantom[0], phantom[3])
    assert not blames_the_scan(error.value) and "TMPDIR" in error.value.remedy


@pytest.mark.requirement("bounded-programs")
@pytest.mark.parametrize(
    ("script", "says", "kind"),
    [
        ("kill -SEGV $$", r"crashed \(niimath, signal 11\)", ProgramDied),
        ("kill -KILL $$", r"ended from outside \(niimath, signal 9\)", HzError),
        ("sleep 60", r"took more than 0\.3 s", ProgramDied),
    ],
)
def test_its_death_is_one_scans(phantom, program, monkeypatch, script, says, kind):
    """A crash and a hang are a row of the scan; a kill, by the kernel or by somebody, says nothing of it.
    None takes an earlier result away: memory that is short makes programs crash, too."""
    monkeypatch.setattr(n4, "MAX_SECONDS", 0.3)
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(HzError, match=says) as error:
        corrected(phantom[0], phantom[3])
    assert type(error.value) is kind and not blames_the_scan(error.value)


def test_it_works_in_a_folder_that_nobody_else_reads(phantom, program):
    program.write_text("#!/bin/sh\nstat -c '%a %n' . >&2; exit 1\n")
    with pytest.raises(UnpreparedScan, match=r"\(700 \.\)"):
        corrected(phantom[0], phantom[3])


def test_without_niimath_it_says_what_to_install(phantom, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "niimath":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError) as error:
        corrected(phantom[0], phantom[3])
    assert "hz-mri[prep]" in error.value.remedy


def test_what_a_program_is_handed_is_what_nibabel_reads(tmp_path: Path):
    """And what it leaves comes back, or is refused where it is another volume."""
    affine = np.array([[0.9, 0.1, 0, -80], [-0.1, 1.1, 0.2, -90], [0, 0.05, 1, -70], [0, 0, 0, 1.0]])
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    hand_over(tmp_path / "scan.nii", data, affine)
    image = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    hand_over(tmp_path / "mask.nii", (data > 0.5).view(np.uint8), affine)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), data > 0.5)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "field.nii")
    np.testing.assert_array_equal(take_back(tmp_path / "field.nii", data.shape), data)
    with pytest.raises(HzError, match="another volume"):
        take_back(tmp_path / "field.nii", (5, 6, 8))
    (tmp_path / "field.nii").write_bytes((tmp_path / "field.nii").read_bytes()[:-1])
    with pytest.raises(HzError, match="bytes of"):
        take_back(tmp_path / "field.nii", data.shape)
