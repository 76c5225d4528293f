#!/usr/bin/env bash
# A series of MR images in MONOCHROME1 (the least value is shown white) with 12 bits stored, values 100 to 600.
#
# PS3.3 C.7.6.3.1.2: how values are to be shown. Guessed: readers give the values, and pictures are turned round by viewers.
# Seen: pydicom 3.0.2 and dcm2niix 1.0.20260724 give 100 to 600. SimpleITK 2.5.7 and highdicom 0.28.2 (get_volume_from_series)
# give 3995 to 3495, and of 16 bits 65435 to 64935: the values taken from the largest that could be stored, without a
# word. Air becomes the brightest thing there is.
# Why hz cares: one series, two heads of opposite contrast, both of plausible values. hz refuses MONOCHROME1 by name
# ("inverted greys") before anything is converted.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  pydicom==3.0.2 dcm2niix==1.0.20260724 SimpleITK==2.5.7 highdicom==0.28.2 nibabel==5.4.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import subprocess, sys
from pathlib import Path

import dcm2niix
import highdicom
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
STORED = np.array([100, 300, 600])  # of slice 0, 1 and 2


def write_series(folder, bits):
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for n, value in enumerate(STORED):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MR_IMAGE, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        values = dict(
            SOPClassUID=MR_IMAGE, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, StudyInstanceUID=study,
            SeriesInstanceUID=series, FrameOfReferenceUID=frame, Modality="MR", Manufacturer="SIEMENS", StudyDate="20200101",
            StudyTime="101010", SeriesNumber=1, InstanceNumber=n + 1, AcquisitionNumber=1, PatientPosition="HFS",
            PatientName="", PatientID="", ImageType=["ORIGINAL", "PRIMARY", "M"], Rows=16, Columns=16, SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME1", BitsAllocated=16, BitsStored=bits, HighBit=bits - 1,
            PixelRepresentation=0, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, 2 * n],
            PixelSpacing=[1, 1], SliceThickness=2, SpacingBetweenSlices=2, EchoTime=3, RepetitionTime=10,
        )
        for keyword, given in values.items():
            setattr(data, keyword, given)
        data.PixelData = np.full((16, 16), value, "<u2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"{n}.dcm", enforce_file_format=True)


work, found = Path(sys.argv[1]), {}
for bits in (12, 16):
    folder, nifti = work / f"dicom{bits}", work / f"nifti{bits}"
    folder.mkdir()
    nifti.mkdir()
    write_series(folder, bits)
    files = sorted(folder.iterdir())
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-o", str(nifti), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    volumes = {
        "pydicom": np.stack([pydicom.dcmread(file).pixel_array for file in files]),
        "dcm2niix": nib.load(nifti / "scan.nii").get_fdata(),
        "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage([str(file) for file in files])),
        "highdicom": highdicom.get_volume_from_series([pydicom.dcmread(file) for file in files]).array,
    }
    for reader, values in volumes.items():
        found[bits, reader] = sorted(int(value) for value in np.unique(values))
        print(f"{bits} bits stored, {reader}: {found[bits, reader]}")
inverted = {bits: sorted(int(2**bits - 1 - value) for value in STORED) for bits in (12, 16)}
expected = {key: inverted[key[0]] if key[1] in ("SimpleITK", "highdicom") else [100, 300, 600] for key in found}
sys.exit(0 if found == expected else f"changed: expected {expected}")
PY
