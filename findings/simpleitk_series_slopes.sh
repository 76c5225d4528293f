#!/usr/bin/env bash
# A PET series of 6 slices, each with a RescaleSlope of its own as PET has them (PS3.3 C.8.9.4; type 1), stored values 1,001
# throughout. That of the first slice is 1; the others' are .25, or .0004, or 100.
#
# Guessed: each slice is scaled by its own slope, into a type that holds them all.
# Seen (SimpleITK 2.5.7, ImageSeriesReader and ReadImage of the files): each by its own slope, but the first slice alone says
# what type the volume has. With 1 that is uint16: 1,001 * .25 becomes 250, all of .0004 become 0, and 1,001 * 100 becomes
# 34,564, what is left of it modulo 65,536. No error, no warning. If the first slope is .5, all is float64 and right.
# pydicom 3.0.2 by hand and dcm2niix 1.0.20260724 give 250.25, .4 and 100,100. (SimpleITK's issue 1636, closed, has the zeros.)
# Why hz cares: scanners give MR images slopes of their own, too, and one whole number among them decides for all. hz
# converts by dcm2niix, and applies the slopes of the slices by itself where that left integers.
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
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PET, SLICES, STORED = "1.2.840.10008.5.1.4.1.1.128", 6, 1001
EMPTY = [
    "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "CollimatorType", "PositionReferenceIndicator",
]
NONE = [
    "RadiopharmaceuticalInformationSequence", "PatientOrientationCodeSequence",
    "PatientGantryRelationshipCodeSequence",
]


def write_series(folder, slopes):
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for n, slope in enumerate(slopes):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = PET, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        values = dict(
            SOPClassUID=PET, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, StudyInstanceUID=study,
            SeriesInstanceUID=series, FrameOfReferenceUID=frame, Modality="PT", Manufacturer="Made Up",
            ImageType=["ORIGINAL", "PRIMARY"], SeriesType=["STATIC", "IMAGE"], Units="BQML", CountsSource="EMISSION",
            CorrectedImage=["DECY"], DecayCorrection="START", NumberOfSlices=SLICES, ImageIndex=n + 1,
            StudyDate="20200101", StudyTime="101010", SeriesDate="20200101", SeriesTime="101010",
            AcquisitionDate="20200101", AcquisitionTime="101010", SeriesNumber=1, InstanceNumber=n + 1,
            PatientName="X^Y", PatientID="1", BodyPartExamined="BRAIN", SliceThickness="1", PixelSpacing=[1, 1],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[0, 0, n], Rows=32, Columns=40,
            SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
            PixelRepresentation=0, RescaleIntercept="0", RescaleSlope=str(slope), FrameReferenceTime=0,
            ActualFrameDuration=1000, DecayFactor=1, **dict.fromkeys(EMPTY, ""),
        )  # fmt: skip
        for keyword, value in values.items():
            setattr(data, keyword, value)
        for keyword in NONE:
            setattr(data, keyword, [])
        data.PixelData = np.full((32, 40), STORED, "<u2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"{n}.dcm", enforce_file_format=True)


work, found = Path(sys.argv[1]), {}
for first, others in ((1, 0.25), (1, 0.0004), (1, 100), (0.5, 0.0004)):
    folder = work / f"{first} {others}"
    write_series(folder, [first] + [others] * (SLICES - 1))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    volume = sitk.ReadImage(files)
    target = work / f"{first} {others} nifti"
    target.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-o", str(target), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    one = pydicom.dcmread(files[3])
    values = {
        "pydicom": float(one.pixel_array[0, 0] * one.RescaleSlope + one.RescaleIntercept),
        "dcm2niix": float(nib.load(target / "scan.nii").get_fdata()[0, 0, 3]),
        "SimpleITK": float(sitk.GetArrayFromImage(volume)[3, 0, 0]),
    }
    found[first, others] = {reader: float(f"{value:.5g}") for reader, value in values.items()}
    print(f"first slope {first}, the others {others}: {found[first, others]}, {volume.GetPixelIDTypeAsString()}")
wrong = {(1, 0.25): 250, (1, 0.0004): 0, (1, 100): STORED * 100 % 65536}
expected = {}
for first, others in found:
    truth = float(f"{STORED * others:.5g}")
    expected[first, others] = {"pydicom": truth, "dcm2niix": truth, "SimpleITK": wrong.get((first, others), truth)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
