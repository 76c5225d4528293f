"""Datasets as the bytes of DICOM files (PS3.10), explicit little endian; not what is in them."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

_LAST = 1 << 32  # behind every tag


def encoded(data: Any) -> bytes:
    """A Dataset with file_meta as the bytes of a DICOM file."""
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def filed(data: Any) -> Any:
    """`data`, a Dataset, with the file meta information of an explicit little endian file."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


class EncodedAlike:
    """Files whose elements are mostly the same: those are encoded once, which is most of the work.

    common : Dataset of the elements of all files, SOPClassUID among them. `encoded` of the whole Datasets
    gives the same bytes.
    """

    def __init__(self, common: Any) -> None:
        self._common = common
        self._between: dict[tuple[int, ...], list[bytes]] = {}

    def encoded(self, own: Any) -> bytes:
        """The file of `common` and `own`, a Dataset of other elements, SOPInstanceUID among them."""
        from pydicom.dataset import Dataset
        from pydicom.filebase import DicomBytesIO
        from pydicom.filewriter import write_file_meta_info

        tags = tuple(sorted(own.keys()))
        if tags not in self._between:
            limits = pairwise((-1, *tags, _LAST))
            self._between[tags] = [self._written(self._common, low, high) for low, high in limits]
        named = Dataset()
        named.SOPClassUID, named.SOPInstanceUID = self._common.SOPClassUID, own.SOPInstanceUID
        file = DicomBytesIO()
        file.write(bytes(128) + b"DICM")
        write_file_meta_info(file, filed(named).file_meta, enforce_standard=True)
        first, *others = self._between[tags]
        file.write(first)
        for tag, after in zip(tags, others, strict=True):
            file.write(self._written(own, tag - 1, tag + 1) + after)
        return bytes(file.getvalue())

    def _written(self, data: Any, low: int, high: int) -> bytes:
        """The elements of `data` between two tags, without both, in the character set of all."""
        from pydicom.charset import default_encoding
        from pydicom.dataset import Dataset
        from pydicom.filebase import DicomBytesIO
        from pydicom.filewriter import write_dataset

        part = Dataset()
        part.update({tag: data[tag] for tag in data.keys() if low < tag < high})  # noqa: SIM118
        file = DicomBytesIO()
        file.is_little_endian, file.is_implicit_VR = True, False
        write_dataset(file, part, self._common.get("SpecificCharacterSet", default_encoding))
        return bytes(file.getvalue())
