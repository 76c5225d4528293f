"""Files of a series that share most elements: the bytes that pydicom gives of each whole Dataset."""

from __future__ import annotations

from io import BytesIO

import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

import pydicom
from pydicom.dataset import Dataset

import small_dicom as small
from hz_runtime.dicom.encoding import EncodedAlike, encoded, filed


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller"),
        ("ISO_IR 192", "Żółtowska"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_the_same_bytes_as_of_the_whole(charset: str | list[str] | None, name: str) -> None:
    common = small.header(0)
    name = (
        "山田^太郎"
        if charset and not isinstance(charset, str)
        else "Żółtowska"
        if charset == "ISO_IR 192"
        else "Müller"
    )
    common.SpecificCharacterSet, common.PatientName = charset, name if charset else "Doe^Jane"
    nested = Dataset()
    nested.PatientName = common.PatientName
    common.ReferencedPatientSequence = [nested]
    common.SmallestImagePixelValue = 3  # US or SS, by PixelRepresentation
    own_tags = ("SOPInstanceUID", "InstanceNumber", "ImagePositionPatient", "PixelData")
    for keyword in own_tags:
        if keyword in common:
            del common[keyword]
    alike = EncodedAlike(common)
    for number in range(3):
        own = Dataset()
        own.SOPInstanceUID, own.InstanceNumber = f"2.25.{10**number}", number
        own.ImagePositionPatient = [0, 1.5, number]
        if number == 2:  # of other elements than those before
            own.ImageComments = name
        own.PixelData = bytes([number] * (7 + number))
        own["PixelData"].VR = "OB"
        whole = Dataset()
        whole.update(common)
        whole.update(own)
        made = alike.encoded(own)
        assert made == encoded(filed(whole))
        assert pydicom.dcmread(BytesIO(made)).PatientName == common.PatientName
