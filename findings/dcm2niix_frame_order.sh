#!/usr/bin/env bash
# One Enhanced MR file of 6 frames, stored from the last slice to the first; frame n holds the value 100 * (n + 1), n
# counted from the lowest slice. Its one dimension is the echo, which all frames share, so that every
# DimensionIndexValues is 1; InStackPositionNumber counts upwards.
#
# Guessed: frames are sorted by where they lie, whoever made the file and however its pixels are coded.
# Seen (dcm2niix 1.0.20260724): the affine is always that of the sorted places. The frames are sorted so where Siemens (or
# GE, UIH) made the file and its pixels are plain. In RLE (JPEG-LS and JPEG 2000, too) they stay as stored; of Philips (and
# Canon) they are sorted by their dimension indices, here not at all. The head is mirrored along its slices, left for right
# where those are sagittal; of RLE a warning speaks of fragments, "if conversion fails"; exit 0.
# Why hz cares: archives compress, and nothing in the result shows it. hz hands dcm2niix a copy with frames, numbers and
# places in one order.
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
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

FRAMES, ENHANCED_MR = 6, "1.2.840.10008.5.1.4.1.1.4.1"


def item(**values):
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def stored_downwards(manufacturer):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ENHANCED_MR, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    organization, order = generate_uid(), range(FRAMES)[::-1]
    values = dict(
        SOPClassUID=ENHANCED_MR, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(), FrameOfReferenceUID=generate_uid(), Modality="MR", Manufacturer=manufacturer,
        StudyDate="20200101", StudyTime="101010", AcquisitionDateTime="20200101101010", SeriesNumber=1, InstanceNumber=1,
        AcquisitionNumber=1, PatientPosition="HFS", ImageType=["ORIGINAL", "PRIMARY", "T1", "NONE"], Rows=32, Columns=40,
        NumberOfFrames=FRAMES, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=16,
        BitsStored=16, HighBit=15, PixelRepresentation=0,
        DimensionOrganizationSequence=[item(DimensionOrganizationUID=organization)],
        DimensionIndexSequence=[
            item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00189082, FunctionalGroupPointer=0x00189114)
        ],
        SharedFunctionalGroupsSequence=[
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
                PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=1, SpacingBetweenSlices=1)],
                MREchoSequence=[item(EffectiveEchoTime=3.0)],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(
                FrameContentSequence=[item(StackID="1", InStackPositionNumber=n + 1, DimensionIndexValues=[1])],
                PlanePositionSequence=[item(ImagePositionPatient=[0, 0, n])],
            )
            for n in order
        ],
    )
    for keyword, value in values.items():
        setattr(data, keyword, value)
    data.PixelData = np.stack([np.full((32, 40), 100 * (n + 1), "<u2") for n in order]).tobytes()
    data["PixelData"].VR = "OW"
    return data


work, found = Path(sys.argv[1]), {}
for kind in ("SIEMENS", "SIEMENS, RLE", "Philips"):
    source, target = work / kind, work / f"{kind}-nifti"
    source.mkdir()
    target.mkdir()
    data = stored_downwards(kind.partition(",")[0])
    if kind.endswith("RLE"):
        data.compress(RLELossless)
    data.save_as(source / "frames.dcm", enforce_file_format=True)
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "scan", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    volume = nib.load(target / "scan.nii")
    values = volume.get_fdata()
    lowest = min(range(FRAMES), key=lambda k: (volume.affine @ [0, 0, k, 1])[2])
    highest = max(range(FRAMES), key=lambda k: (volume.affine @ [0, 0, k, 1])[2])
    found[kind] = (int(values[..., lowest].mean()), int(values[..., highest].mean()))
    print(f"{kind}: the lowest slice holds {found[kind][0]}, the highest {found[kind][1]}")
expected = {"SIEMENS": (100, 600), "SIEMENS, RLE": (600, 100), "Philips": (600, 100)}
sys.exit(0 if found == expected else f"changed: expected {expected}, found {found}")
PY
