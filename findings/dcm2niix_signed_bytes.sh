#!/usr/bin/env bash
# A volume of signed bytes (8 bits, PixelRepresentation 1; values of -100 to 100, as of a difference or a statistical map) as
# Secondary Capture images with positions.
#
# Guessed: -100 stays -100; PixelRepresentation says that the pixels are two's complement (PS3.3 C.7.6.3.1).
# Seen (dcm2niix 1.0.20260724): the NIfTI file is uint8, and -100 is 156: every negative value comes out 256 too high, above
# all positive ones. Exit code 0, and no warning but those that 16-bit pixels get, too. 16-bit pixels of the same values
# are right; so are signed bytes in SimpleITK 2.5.7 and pydicom 3.0.2.
# Why hz cares: hz converts by dcm2niix. It takes MR image objects alone, of which the classic ones have 16 bits (PS3.3
# C.8.3.1.1.4), and refuses signed bytes. Tested in tests/runtime/dicom/test_series.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  SimpleITK==2.5.7 pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

ROWS, COLUMNS, SLICES = 32, 40, 6
VALUES = np.tile(np.linspace(-100, 100, COLUMNS).round().astype(int), (ROWS, 1))


def write_series(folder, bits):
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for n in range(SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        values = dict(
            SOPClassUID=SecondaryCaptureImageStorage, SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
            StudyInstanceUID=study, SeriesInstanceUID=series, FrameOfReferenceUID=frame, Modality="MR",
            ConversionType="WSD", Manufacturer="Made Up", BodyPartExamined="BRAIN", ImageType=["DERIVED", "SECONDARY"],
            SeriesNumber=1, InstanceNumber=n + 1, PatientName="X^Y", PatientID="1", PatientBirthDate="", PatientSex="",
            StudyDate="20200101", StudyTime="101010", StudyID="1", ReferringPhysicianName="", AccessionNumber="",
            PatientOrientation=["L", "P"], PositionReferenceIndicator="", SliceThickness="1", PixelSpacing=[1, 1],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, n], Rows=ROWS, Columns=COLUMNS,
            SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=bits, BitsStored=bits,
            HighBit=bits - 1, PixelRepresentation=1,
        )  # fmt: skip
        for keyword, value in values.items():
            setattr(data, keyword, value)
        data.PixelData = VALUES.astype(f"<i{bits // 8}").tobytes()
        data["PixelData"].VR = "OW" if bits == 16 else "OB"
        data.save_as(folder / f"{n}.dcm", enforce_file_format=True)


work, found, warned = Path(sys.argv[1]), {}, {}
for bits in (16, 8):
    folder, target = work / f"{bits}", work / f"{bits} nifti"
    write_series(folder, bits)
    target.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-o", str(target), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    volumes = {
        "dcm2niix": nib.load(next(target.glob("*.nii"))).get_fdata(),
        "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage(sorted(map(str, folder.iterdir())))),
        "pydicom": pydicom.dcmread(folder / "2.dcm").pixel_array,
    }
    found[bits] = {reader: (int(volume.min()), int(volume.max())) for reader, volume in volumes.items()}
    print(f"{bits} bits: least and greatest value {found[bits]}")
    warned[bits] = {line for line in done.stdout.splitlines() if line.startswith("Warning")}
right = dict.fromkeys(("dcm2niix", "SimpleITK", "pydicom"), (-100, 100))
expected = {16: right, 8: {**right, "dcm2niix": (3, 253)}}
assert warned[8] == warned[16], warned
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
