#!/usr/bin/env bash
# dcm2niix 1.0.20260724: images of one SeriesInstanceUID whose StudyTime differs are two volumes to it, also with
# `-m y` (merge the slices of a series whatever else differs). Both get the same name; with `-w 1` (overwrite) one
# file of half the slices is left, and the exit code is 0.
#
# Guessed: one volume of all slices, or at least an exit code that says something was lost.
# Seen: exit 0; -w 1 leaves one NIfTI of 20 of 40 slices, -w 2 leaves two of 20.
# Why hz cares: `hz-dicom convert` runs dcm2niix with -w 2 and counts volumes and voxels before it believes one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  dcm2niix==1.0.20260724 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

work = Path(sys.argv[1])
ROOT, SLICES = "2.25.2026113001", 40
rng = np.random.default_rng(0)


def write(folder: Path, times: tuple[str, str]) -> None:
    folder.mkdir()
    for k in range(SLICES):
        d = Dataset()
        d.SOPClassUID, d.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"
        d.SOPInstanceUID, d.SeriesInstanceUID = f"{ROOT}.1.{k + 1}", f"{ROOT}.1"
        d.StudyInstanceUID, d.FrameOfReferenceUID = f"{ROOT}.0", f"{ROOT}.9"
        d.ImageType, d.SeriesNumber, d.InstanceNumber = ["ORIGINAL", "PRIMARY", "M"], 1, k + 1
        d.StudyDate = d.SeriesDate = "20200102"
        d.StudyTime, d.SeriesTime = times[k >= SLICES // 2], "101500"
        d.PatientName, d.PatientID, d.Manufacturer = "X^Y", "1", "SIEMENS"
        d.MRAcquisitionType, d.ScanningSequence = "3D", "GR"
        d.RepetitionTime, d.EchoTime, d.SliceThickness = "2300", "2.98", "2"
        d.Rows = d.Columns = 32
        d.PixelSpacing = ["2", "2"]
        d.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        d.ImagePositionPatient = ["0", "0", str(2 * k)]
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = rng.integers(0, 1000, (32, 32)).astype("<u2").tobytes()
        d["PixelData"].VR = "OW"
        d.file_meta = FileMetaDataset()
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def converted(source: Path, overwrite: str) -> tuple[int, list[int]]:
    """(exit code, slices of every volume)."""
    target = work / f"out_{source.name}_{overwrite}"
    target.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-m", "y", "-w", overwrite]
    done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True, check=False)
    return done.returncode, sorted(nib.load(p).shape[2] for p in target.glob("*.nii"))


write(work / "same", ("101112", "101112"))
write(work / "differs", ("101112", "101113"))
found = {
    "one StudyTime, -w 1": converted(work / "same", "1"),
    "two, -w 1": converted(work / "differs", "1"),
    "two, -w 2": converted(work / "differs", "2"),
}
for name, (code, slices) in found.items():
    print(f"dcm2niix {dcm2niix.__version__}: {name}: exit {code}, volumes of {slices} slices")
expected = {"one StudyTime, -w 1": (0, [40]), "two, -w 1": (0, [20]), "two, -w 2": (0, [20, 20])}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
