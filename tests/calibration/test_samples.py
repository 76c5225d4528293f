"""Choice of scans: the same on every machine, even over sites, and only real ones."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from closed_folders import close
from hz_calibration.samples import choose, smoothness
from hz_runtime.errors import UsageError
from hz_runtime.io.volume import Geometry, read_volume, write_volume
from hz_runtime.model_space.recipe import Recipe
from small_scans import SHAPE, small_head, write_scan


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of site a, two of site b, and a table that says so."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["file\tsite\tage"]
    for n in range(8):
        name = f"sub-{n:02}_T1w.nii.gz"
        write_scan(folder / name, n)
        lines.append(f"{name}\t{'a' if n < 6 else 'b'}\t30")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_noise(path: Path, data: np.ndarray) -> None:
    _, affine = small_head()
    write_volume(
        path, np.asfortranarray(data, np.float32), Geometry.from_affine(SHAPE, affine), dtype="float32"
    )


def test_sites_take_turns(cohort: Path) -> None:
    found = choose([cohort], Recipe(), count=4, participants=cohort / "participants.tsv")
    assert sorted(scan.site for scan in found.scans) == ["a", "a", "b", "b"]
    assert found.grids.shape == (4, 64, 64, 64)
    assert found.grids.dtype == np.float32


def test_sites_with_equal_file_names_are_told_apart(cohort: Path, tmp_path: Path) -> None:
    lines = ["file\tsite"]
    for n, site in enumerate(["oslo", "rome"] * 2):
        (tmp_path / site).mkdir(exist_ok=True)
        file = f"{site}/sub-{n // 2}_T1w.nii.gz"
        shutil.copy(cohort / f"sub-{n:02}_T1w.nii.gz", tmp_path / file)
        lines.append(f"{file}\t{site.upper()}")
    table = tmp_path / "participants.tsv"
    table.write_text("\n".join(lines) + "\n")
    found = choose([tmp_path], Recipe(), count=4, participants=table)
    assert sorted(scan.site for scan in found.scans) == ["OSLO", "OSLO", "ROME", "ROME"]


def test_a_folder_that_cannot_be_listed_is_said(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    shutil.copy(cohort / "sub-00_T1w.nii.gz", tmp_path / "a.nii.gz")
    close(monkeypatch, tmp_path / "closed")
    said: list[str] = []
    assert len(choose([tmp_path], Recipe(), count=2, say=said.append).scans) == 1
    assert said == ["closed: the folder cannot be listed (Permission denied)"]


def test_a_small_site_gives_what_it_has(cohort: Path) -> None:
    found = choose([cohort], Recipe(), count=7, participants=cohort / "participants.tsv")
    assert [scan.site for scan in found.scans].count("b") == 2
    assert len(found.scans) == 7


def test_the_choice_is_by_content_not_by_name_or_order(cohort: Path, tmp_path: Path) -> None:
    files = sorted(cohort.glob("*.nii.gz"))
    first = choose(files, Recipe(), count=3)
    for n, path in enumerate(reversed(files)):
        (tmp_path / cohort.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / cohort.name / f"{n}.nii.gz")
    again = choose([tmp_path / cohort.name], Recipe(), count=3)
    assert first.scans == again.scans
    np.testing.assert_array_equal(first.grids, again.grids)
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    assert [scan.sha256 for scan in first.scans] == hashes[:3]


def test_without_a_table_folders_are_sites(cohort: Path, tmp_path: Path) -> None:
    for n, site in enumerate(("x", "x", "x", "y")):
        (tmp_path / site).mkdir(exist_ok=True)
        shutil.copy(cohort / f"sub-{n:02}_T1w.nii.gz", tmp_path / site)
    found = choose([tmp_path], Recipe(), count=2)
    assert [scan.site for scan in found.scans] == ["x", "y"]


def test_links_into_a_store_named_by_content_are_of_the_folder_they_lie_in(
    cohort: Path, tmp_path: Path
) -> None:
    """As DataLad keeps scans."""
    lines = ["file\tsite"]
    for n, site in enumerate(("x", "x", "y", "y")):
        key = tmp_path / f"store/key-{n}"
        key.mkdir(parents=True)
        shutil.copy(cohort / f"sub-{n:02}_T1w.nii.gz", key / f"key-{n}.nii.gz")
        (tmp_path / site).mkdir(exist_ok=True)
        link = tmp_path / site / f"sub-{n}_T1w.nii.gz"
        link.symlink_to(key / f"key-{n}.nii.gz")
        lines.append(f"{site}/{link.name}\t{site.upper()}")
    found = choose([tmp_path / "x", tmp_path / "y"], Recipe(), count=4)
    assert [scan.site for scan in found.scans] == ["x", "y", "x", "y"]
    table = tmp_path / "participants.tsv"
    table.write_text("\n".join(lines) + "\n")
    moved = shutil.copytree(tmp_path / "x", tmp_path / "elsewhere")  # by name: the table has other paths
    found = choose([moved], Recipe(), count=4, participants=table)
    assert [scan.site for scan in found.scans] == ["X", "X"]


def test_one_scan_under_two_names_counts_once(cohort: Path, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        shutil.copy(cohort / "sub-00_T1w.nii.gz", tmp_path / name)
    assert len(choose([tmp_path], Recipe(), count=5).scans) == 1


@pytest.mark.parametrize(
    "data, why",
    [
        (np.random.default_rng(0).random(SHAPE), "cm3 of foreground"),
        (np.random.default_rng(0).normal(100, 20, SHAPE), "cm3 of foreground"),
        (np.full(SHAPE, 7.0), "same value (7)"),
        (np.zeros(SHAPE), "same value (0)"),
    ],
    ids=["uniform", "normal", "constant", "empty"],
)
def test_what_is_no_scan_is_passed_over_and_said(
    cohort: Path, tmp_path: Path, data: np.ndarray, why: str
) -> None:
    shutil.copy(cohort / "sub-00_T1w.nii.gz", tmp_path)
    write_noise(tmp_path / "fake.nii.gz", data)
    told: list[str] = []
    found = choose([tmp_path], Recipe(), count=2, say=told.append)
    assert len(found.scans) == 1
    assert told == list(found.refused)
    assert why in told[0] and told[0].startswith("fake.nii.gz: passed over")


def test_noise_within_a_head_is_noise(tmp_path: Path) -> None:
    data, _ = small_head()
    write_noise(tmp_path / "fake.nii.gz", (data > 0) * np.random.default_rng(1).uniform(100, 900, SHAPE))
    with pytest.raises(UsageError, match=r"none of 1 scans .* noise"):
        choose([tmp_path], Recipe())


def test_scans_unlike_the_training_cohort_are_passed_over(cohort: Path) -> None:
    statistics = {"brain_cm3": {"min": 3000.0, "max": 3100.0, "mean": 3050.0, "sd": 10.0}}
    with pytest.raises(UsageError, match="brain volume"):
        choose([cohort], Recipe(), count=2, statistics=statistics)


def test_smoothness_of_what_is_known() -> None:
    line = np.linspace(1, 2, 20)
    ramp = (line[:, None, None] + line[None, :, None] + line).astype(np.float32)
    ramp[0] = 0
    assert smoothness(ramp) > 0.9
    assert abs(smoothness(np.random.default_rng(0).random((20, 20, 20)).astype(np.float32))) < 0.05


def test_real_heads_are_far_from_the_noise_limit(scans: Path) -> None:
    folder = scans / "real_cohort_2mm"
    found = choose([folder], Recipe(), count=4, participants=folder / "participants.tsv")
    assert len({scan.site for scan in found.scans}) == 4
    assert found.refused == ()
    for path in sorted(folder.glob("*.nii.gz"))[::40]:
        assert smoothness(read_volume(path).data) > 0.6


def test_a_quote_in_the_table_costs_no_site(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    rows = [f'sub-{n:02}_T1w.nii.gz\t{"ab"[n % 2]}\t"note' for n in range(8)]
    table.write_text("file\tsite\tcomment\n" + "\n".join(rows) + "\n")
    found = choose([cohort], Recipe(), count=8, participants=table)
    assert sorted(scan.site for scan in found.scans) == ["a"] * 4 + ["b"] * 4


@pytest.mark.parametrize(
    ("text", "missing"), [("", "columns file and site"), ("file\tage\nx\t3\n", "column site")]
)
def test_a_table_without_sites_is_refused(cohort: Path, tmp_path: Path, text: str, missing: str) -> None:
    table = tmp_path / "participants.tsv"
    table.write_text(text)
    with pytest.raises(UsageError, match=f"lacks the {missing}"):
        choose([cohort], Recipe(), participants=table)


def test_no_scans_and_no_count_are_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no scans"):
        choose([tmp_path], Recipe())
    with pytest.raises(UsageError, match="does not exist"):
        choose([tmp_path / "x.nii"], Recipe())
    with pytest.raises(UsageError, match="0 scans"):
        choose([cohort], Recipe(), count=0)
