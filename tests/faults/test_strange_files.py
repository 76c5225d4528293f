"""Files of other tools' test suites, through both commands: every one is explained in a line, or done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from processes import finished

# What a name begins with -> words of the reason; the first that fits counts.
REASONS = {
    "nibabel__analyze.hdr": "one half of an Analyze",
    "nibabel__example": "2 frames",
    "nibabel__functional": "20 frames",
    "nibabel__minc2": "a MINC volume",
    "nibabel__tiny.mnc": "a MINC volume",
    "nibabel__nifti": "one half of an Analyze",
    "nibabel__resampled": "17x21x3 voxels; a head needs 8 or more",
    "nibabel__row_major": "a CIFTI-2 file",
    "nibabel__standard": "4x5x7 voxels",
    "nibabel__test.mgz": "2 frames",
    "niftirs__27": "3x3x3 voxels",
    "niftirs__complex": "hz needs magnitudes",
    "niftirs__fuzz": "the header is damaged",
    "niftirs__minimal_extended": "a 2-D image of 8x8",
    "niftirs__minimal": "one half of an Analyze",
    "niftirs__rgb": "colours, not intensities",
    "niivue__complex": "hz needs magnitudes",
    "niivue__ct_perfusion": "colours, not intensities",
    "niivue__low_res": "7x5x3 voxels",
    "niivue__ras": "one half of an Analyze",
}
REFUSED = {  # well-formed files, by a gate of hz-prepare
    "nibabel__anatomical": "field of view",
    "nibabel__reoriented": "slice thickness",
    "niftirs__f32": "field of view",
    "niivue__FLAIR": "another contrast",
    "niivue__labels256": "a mask or a label map",
    "niivue__mean_func": "slice thickness",
    "niivue__minimal": "field of view",
    "niivue__shear": "a CT in Hounsfield units",
    "prisma_2D_sag_T1_thick": "slice thickness: 4.8 mm",
}
RUN_REFUSED = {  # of these, what hz-run refuses too; else it takes what it is given as a stripped brain
    "niivue__labels256": "a mask or a label map",
    "prisma_2D_sag_T1_thick": "4007 cm3 of foreground",
}


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_every_file_is_explained(scans: Path, tmp_path: Path, tiny_bundle: Path, command: str) -> None:
    if command == "prepare":
        pytest.importorskip("niimath", reason="needs the extra prep")
    given = sorted([*(scans / "nasty").iterdir(), *(scans / "hostile").iterdir()])
    more = ("--model", tiny_bundle, "--no-report") if command == "run" else ("--workers", 2)
    code, said, told = finished(command, *given, "--out", tmp_path / "out", "--plain", *more)
    assert code == 3
    assert not re.search("Traceback|internal|Error:", said + told)
    rows = dict(re.findall(r"^\[ *\d+/\d+\] (\S+)  (.*)$", said, re.MULTILINE))
    assert set(rows) == {path.name for path in given}
    for name, row in rows.items():
        reasons = REASONS | RUN_REFUSED if command == "run" else REASONS
        wanted = next((words for start, words in reasons.items() if name.startswith(start)), None)
        if wanted is not None or command == "prepare":
            wanted = wanted or next(words for start, words in REFUSED.items() if name.startswith(start))
            assert row.startswith("failed  ") and wanted in row, row
            # What was found ends in a sentence; what to do is another, or follows in it.
            assert re.search(r"\. [A-Z].+|; .+|: .+", row), row
        else:
            assert name.startswith(tuple(REFUSED))
            assert row.startswith(("ok", "flagged", "failed  only 0.267 cm3 of foreground")), row
    assert str(scans) not in said + told
