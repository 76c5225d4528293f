"""Which images make a volume: what scanners let vary within one series splits none; halves are no head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom")

from pydicom.valuerep import format_number_as_ds

from hz_runtime.dicom.selection import choose, judge
from hz_runtime.dicom.series import find_series
from hz_runtime.errors import UnsupportedScan
from small_dicom import SERIES_UID, SHAPE, header, pixels, position, rotation, save

SLICES = SHAPE[2]
ORIENTATION = rotation()[:, :2].T.ravel()


def series(folder: Path, change: Callable[[int], dict[str, Any]]) -> list[Path]:
    """The small series with `change(index)` in the header of each slice."""
    stack = pixels()
    written = []
    for index in range(SLICES):
        data = header(index, **change(index))
        data.PixelData = stack[index].astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        written.append(save(data, folder / f"IM{(index * 7) % SLICES:04}"))
    return written


def turned(index: int) -> dict[str, Any]:
    """A cosine that lies, by turns, just above and just below the border between two cells of 3 decimals."""
    values = ORIENTATION.copy()
    values[0] = round(values[0], 3) + 0.0005 + (1e-6 if index % 2 else -1e-6)
    return {"ImageOrientationPatient": [format_number_as_ds(float(v)) for v in values]}


VARYING: dict[str, Callable[[int], dict[str, Any]]] = {
    "a direction cosine in its sixth decimal": turned,
    "the echo time in its third decimal": lambda i: {"EchoTime": "2.98" if i % 2 else "2.984"},
    "the inversion time is missing in some": lambda i: {"InversionTime": None if i % 10 == 0 else "900"},
    "NORM in all but the first": lambda i: {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", *(["NORM"] if i else [])]
    },
    "NORM in every other one": lambda i: {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", *(["NORM"] if i % 2 else [])]
    },
    "the acquisition's number": lambda i: {"AcquisitionNumber": i + 1},
}


@pytest.mark.parametrize("name", VARYING)
def test_what_scanners_let_vary_leaves_one_whole_stack(tmp_path: Path, name: str) -> None:
    (found,) = find_series(series(tmp_path, VARYING[name]))
    assert found.shape == SHAPE and not found.fault
    assert found.spacing[2] == pytest.approx(2.9, abs=1e-3)
    assert judge(found).eligible


def test_the_head_is_that_of_the_many(tmp_path: Path) -> None:
    """The first image names no inversion time; the series has one all the same."""
    (found,) = find_series(series(tmp_path, lambda i: {"InversionTime": None if i == 0 else "900"}))
    assert float(found.get("InversionTime")) == 900


def test_two_whole_stacks_of_one_series_stay_two(tmp_path: Path) -> None:
    """With the scanner's filter and without it: every place twice, each ImageType whole."""
    files = series(tmp_path / "a", lambda i: {})
    files += series(
        tmp_path / "b",
        lambda i: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "SOPInstanceUID": f"{SERIES_UID}.9.{i}"},
    )
    assert [(s.part, s.shape, s.fault) for s in find_series(files)] == [(1, SHAPE, ""), (2, SHAPE, "")]


def test_two_echoes_stay_two(tmp_path: Path) -> None:
    files = series(tmp_path / "a", lambda i: {})
    files += series(tmp_path / "b", lambda i: {"EchoTime": "4.74", "SOPInstanceUID": f"{SERIES_UID}.9.{i}"})
    assert [(float(s.get("EchoTime")), s.shape, s.fault) for s in find_series(files)] == [
        (2.98, SHAPE, ""),
        (4.74, SHAPE, ""),
    ]


def test_repeats_that_nothing_tells_apart_are_no_volume(tmp_path: Path) -> None:
    files = series(tmp_path / "a", lambda i: {})
    files += series(tmp_path / "b", lambda i: {"SOPInstanceUID": f"{SERIES_UID}.9.{i}"})
    (found,) = find_series(files)
    assert "several images lie at one place" in found.fault


def test_halves_of_a_head_that_interleave_are_never_taken(tmp_path: Path) -> None:
    """Every other slice says another echo: each half is even, and neither is the head."""
    found = find_series(series(tmp_path, lambda i: {"EchoTime": "2.98" if i % 2 else "9.0"}))
    assert [s.shape[2] for s in found] == [SLICES // 2, SLICES // 2]
    for half in found:
        assert "between those of another part" in half.fault
        assert half.affine is None and not judge(half).eligible
    with pytest.raises(UnsupportedScan, match="another part of the same series"):
        choose(found, found[0].number)


def test_every_other_slice_of_a_head_is_refused(tmp_path: Path) -> None:
    """The other half never arrived: spacing 5.8 mm of slices that are 2.9 mm thick; 1 mm of 2 mm likewise."""
    files = series(tmp_path, lambda i: {"SliceThickness": "1.4"})
    (found,) = find_series(files)
    assert not found.fault
    assert judge(found).refused == "slices of 1.4 mm lie 2.9 mm apart: some are missing, or there are gaps"


@pytest.mark.parametrize("thickness", ["2.9", "2.7", "5.8", None])
def test_slices_that_touch_or_overlap_are_taken(tmp_path: Path, thickness: str | None) -> None:
    (found,) = find_series(series(tmp_path, lambda i: {"SliceThickness": thickness}))
    assert judge(found).refused == ("" if thickness != "5.8" else "thick slices (5.8 mm)")


GE = {
    "Manufacturer": "GE MEDICAL SYSTEMS",
    "ScanningSequence": ["RM"],
    "SequenceVariant": ["NONE"],
    "RepetitionTime": "8.2",
    "EchoTime": "3.2",
}


@pytest.mark.parametrize(
    "described, protocol, taken",
    [
        ("Sag 3D T1 BRAVO", "BRAIN T1/T2/FLAIR", True),  # the exam's name says nothing of a series
        ("Sag 3D T1 BRAVO", "EPILEPSY W DTI", True),
        ("Sag CUBE", "BRAIN T1 STUDY", False),
        (None, "T1 BRAVO", True),  # where it is all there is, it counts
        (None, "T2 FLAIR", False),
    ],
)
def test_a_protocol_name_counts_only_without_a_description(
    tmp_path: Path, described: str | None, protocol: str, taken: bool
) -> None:
    change = {**GE, "SeriesDescription": described, "ProtocolName": protocol}
    (found,) = find_series(series(tmp_path, lambda i: change))
    assert bool(judge(found).weighting) is taken


def test_positions_are_those_of_the_slices(tmp_path: Path) -> None:
    (found,) = find_series(series(tmp_path, VARYING["NORM in every other one"]))
    np.testing.assert_allclose(
        [s.position for s in found.slices], [position(i) for i in range(SLICES)], atol=1e-6
    )
