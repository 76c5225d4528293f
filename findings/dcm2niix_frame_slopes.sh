#!/usr/bin/env bash
# One Enhanced MR file of 6 frames, each with a RescaleSlope of its own (1, 1.5, 2 ...), as PS3.3 C.7.6.16.2.9 allows; the
# stored values are 1000 throughout. Once it says Philips made it, once Siemens.
#
# Guessed: dcm2niix scales each frame by its own slope, as it does with single-frame files of every maker.
# Seen (dcm2niix 1.0.20260724): of Philips (and Canon) 1000, 1500, 2000 ... as floats, and a line that says so. Of Siemens
# (and GE) the stored integers with one slope for the whole volume, and no word: a ramp of brightness through the head.
# Why hz cares: nothing in the result shows it. hz reads every frame's slope and applies them where dcm2niix left integers.
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
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

FRAMES, ENHANCED_MR = 6, "1.2.840.10008.5.1.4.1.1.4.1"


def item(**values):
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def write(path, manufacturer):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ENHANCED_MR, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    organization = generate_uid()
    values = dict(
        SOPClassUID=ENHANCED_MR, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid(), Modality="MR", Manufacturer=manufacturer,
        StudyDate="20200101", StudyTime="101010", AcquisitionDateTime="20200101101010", SeriesNumber=1, InstanceNumber=1,
        AcquisitionNumber=1, PatientPosition="HFS", ImageType=["ORIGINAL", "PRIMARY", "T1", "NONE"], Rows=32, Columns=40,
        NumberOfFrames=FRAMES, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0,
        DimensionOrganizationSequence=[item(DimensionOrganizationUID=organization)],
        DimensionIndexSequence=[
            item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)
        ],
        SharedFunctionalGroupsSequence=[
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
                PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=1, SpacingBetweenSlices=1)],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(
                FrameContentSequence=[item(StackID="1", InStackPositionNumber=n + 1, DimensionIndexValues=[n + 1])],
                PlanePositionSequence=[item(ImagePositionPatient=[0, 0, n])],
                PixelValueTransformationSequence=[item(RescaleIntercept=0, RescaleSlope=1 + n / 2, RescaleType="US")],
            )
            for n in range(FRAMES)
        ],
    )
    for keyword, value in values.items():
        setattr(data, keyword, value)
    data.PixelData = np.full((FRAMES, 32, 40), 1000, "<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


work, found = Path(sys.argv[1]), {}
for manufacturer in ("Philips", "SIEMENS"):
    source, target = work / manufacturer, work / f"{manufacturer}-nifti"
    source.mkdir()
    target.mkdir()
    write(source / "frames.dcm", manufacturer)
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-o", str(target), str(source)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    volume = nib.load(target / "scan.nii")
    slices = [round(float(v)) for v in volume.get_fdata().mean(axis=(0, 1))]
    found[manufacturer] = (str(volume.get_data_dtype()), len(set(slices)) > 1, "varies" in said)
    print(f"{manufacturer}: {volume.get_data_dtype()}, slices of {slices}; a word about slopes: {'varies' in said}")
expected = {"Philips": ("float32", True, True), "SIEMENS": ("uint16", False, False)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
