"""The demo: its scanners, its two numbers against closed form, and one pass over a small head."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hz_cli.agreement import correlation, disagreement
from hz_cli.demo import measure, run_demo, summary
from hz_cli.demo_picture import before_after
from hz_cli.demo_scans import (
    DEMO_SCANNERS,
    Head,
    mni152_head,
    on_head_grid,
    random_scanner,
    receive_field,
    scan,
    stored,
    tone,
    write_scans,
)
from hz_runtime.report.png import png_size

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small(head) -> Head:
    data, affine = head(shape=(48, 56, 47), spacing=4.0)
    data = np.clip(data / data.max(), 0, 1)
    return Head(data, affine, data > 0)


def test_disagreement_has_a_closed_form() -> None:
    brain = np.array([[[True, True, False]]])
    a = np.array([[[1.0, 3.0, 99.0]]], np.float32)  # over its mean 2: 0.5, 1.5
    b = np.array([[[2.0, 2.0, -7.0]]], np.float32)  # 1, 1
    c = np.array([[[30.0, 10.0, 0.0]]], np.float32)  # 1.5, 0.5
    assert disagreement([a, b], brain) == pytest.approx(0.5)
    assert disagreement([a, b, c], brain) == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert disagreement([a, 7 * a], brain) == 0


def test_disagreement_refuses_what_has_no_answer() -> None:
    brain = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="two scans"):
        disagreement([np.ones((2, 2, 2), np.float32)], brain)
    with pytest.raises(ValueError, match="mean inside"):
        disagreement([np.zeros((2, 2, 2), np.float32)] * 2, brain)


def test_correlation_has_a_closed_form() -> None:
    brain = np.array([True, True, True, False])
    x = np.array([1.0, 2.0, 3.0, 50.0], np.float32)
    y = np.array([1.0, 3.0, 2.0, -50.0], np.float32)
    assert correlation(x, 5 + 2 * x, brain) == pytest.approx(1)
    assert correlation(x, y, brain) == pytest.approx(0.5)


def test_tone_curves_are_monotone_and_keep_the_ends() -> None:
    ramp = np.linspace(0, 1, 500, dtype=np.float32)
    for scanner in (*DEMO_SCANNERS, *(random_scanner(k) for k in range(20))):
        curve = tone(ramp, scanner.gamma, scanner.shoulder)
        assert curve[0] == 0
        assert curve[-1] == pytest.approx(1, abs=1e-6)
        assert (np.diff(curve) > 0).all()


def test_the_field_spans_what_was_asked(small: Head) -> None:
    field = receive_field(small.data.shape, small.brain, 0.25, np.random.default_rng(0))
    assert field[small.brain].max() == pytest.approx(1.25, rel=1e-4)
    assert field[small.brain].min() == pytest.approx(1 / 1.25, rel=1e-4)


def test_noise_is_what_was_asked(small: Head) -> None:
    flat = Head(np.where(small.brain, 0.5, 0).astype(np.float32), small.affine, small.brain)
    from dataclasses import replace

    seen = scan(flat, replace(DEMO_SCANNERS[1], field=0.0001, noise=0.02))
    inside = seen[small.brain]
    assert inside.std() / inside.mean() == pytest.approx(0.02, rel=0.05)
    assert not seen[~small.brain].any()


@pytest.mark.parametrize(
    "scanner", [*DEMO_SCANNERS, *(random_scanner(k) for k in range(8))], ids=lambda s: s.name
)
def test_a_stored_scan_comes_back_onto_the_head(small: Head, scanner) -> None:
    seen = scan(small, scanner)
    image = stored(seen, small.affine, scanner)
    assert "".join(nib.aff2axcodes(image.affine)) == scanner.orientation
    assert image.get_data_dtype() == scanner.dtype
    back = on_head_grid(image, small)
    if scanner.margin >= 0:
        reached = np.ones(back.shape, bool)
    else:
        reached = np.zeros(back.shape, bool)
        reached[(slice(-scanner.margin, scanner.margin),) * 3] = True
        assert not back[~reached].any()
    step = 0.5 if scanner.dtype != "float32" else 0
    np.testing.assert_allclose(back[reached], seen[reached], atol=step + 1e-6)


def test_a_scan_between_voxels_is_refused(small: Head) -> None:
    affine = small.affine.copy()
    affine[0, 3] += 1.0
    with pytest.raises(ValueError, match="between"):
        on_head_grid(nib.Nifti1Image(small.data, affine), small)
    affine = small.affine.copy()
    affine[0, 0] *= 1.5
    with pytest.raises(ValueError, match="voxels are not"):
        on_head_grid(nib.Nifti1Image(small.data, affine), small)


def test_scans_are_the_same_every_time(small: Head, tmp_path: Path) -> None:
    first, second = write_scans(tmp_path / "a", small), write_scans(tmp_path / "b", small)
    assert [p.name for p in first] == [p.name for p in second]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(nib.load(a).dataobj, nib.load(b).dataobj)


def test_the_picture_is_a_png_of_the_expected_size(small: Head) -> None:
    volumes = [small.data] * 3
    width, height = png_size(before_after(["scanner-a"] * 3, volumes, volumes, small.brain))
    assert width > height > 100 or width > 200


def test_summary_says_what_was_measured(small: Head) -> None:
    found = measure([small.data, small.data**2, small.data], [small.data, 2 * small.data, small.data], small)
    assert found.harmonized == pytest.approx(0, abs=1e-6)
    assert found.raw > 0
    assert f"raw {found.raw:.1%} -> harmonized 0.0%" in "\n".join(summary(found))


@pytest.fixture
def rooms_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo starts hz-run in a new interpreter, which must see the rooms too."""
    rooms = [str(ROOT / "runtime"), str(ROOT / "cli"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, rooms)))


@pytest.mark.usefixtures("rooms_on_path")
def test_the_demo_end_to_end(small: Head, tiny_bundle: Path, tmp_path: Path, capfd) -> None:
    assert run_demo(tmp_path / "demo", small, tiny_bundle) == 0
    printed = capfd.readouterr().out
    assert "scanners disagreed: raw " in printed
    assert "correlation with the clean head" in printed
    assert len(json.loads((tmp_path / "demo/harmonized/run.json").read_text())["scans"]) == 3
    assert len(list((tmp_path / "demo/harmonized").glob("*_desc-harmonized_T1w.nii.gz"))) == 3
    assert (tmp_path / "demo/harmonized/report.html").is_file()
    assert (tmp_path / "demo/before-after.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("rooms_on_path")
def test_a_failed_run_fails_the_demo(small: Head, tmp_path: Path, capfd) -> None:
    assert run_demo(tmp_path / "demo", small, tmp_path / "none.hz") == 4
    assert "exit code 4" in capfd.readouterr().err


@pytest.mark.slow
def test_the_real_head() -> None:
    head = mni152_head()
    assert head.data.shape == head.brain.shape
    np.testing.assert_allclose(np.linalg.norm(head.affine[:3, :3], axis=0), 1)
    assert 1700 < head.brain.sum() / 1000 < 2000  # cm3; the template is larger than most heads
    assert not head.data[~head.brain].max() > 0.2
    raw = [scan(head, scanner) for scanner in DEMO_SCANNERS]
    # Severe enough to matter and no caricature.
    assert 0.10 < disagreement(raw, head.brain) < 0.30
