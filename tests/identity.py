"""Identity planted in DICOM so that every leak names where it came from, and the search for it.

A mark is "ZQXP" and eight hexadecimal digits: of the element's tag, or of a place outside of the data set.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import small_dicom as small

MARK = re.compile(rb"Z\0?Q\0?X\0?P\0?(?:[0-9A-F]\0?){8}|zqxp[0-9a-f]{8}")  # also in UTF-16
FOLDER, FILE, PREAMBLE, META, NESTED, PRIVATE, PADDING = (f"ZQXPFFFF000{n}" for n in range(7))
DATE, TIME, NUMBER, FOREIGN = "19471103", "031415.926535", "76543.21987", "Żółtowska"
_TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_OTHER = {"AS": "083Y", "DA": DATE, "TM": TIME, "DT": f"{DATE}{TIME}", "DS": NUMBER, "IS": "765432198"}
# What conversion and the rules read as more than text; their true values stay, with a mark behind.
_ACTED_ON = ("ImageType", "ScanningSequence", "SequenceVariant", "Manufacturer", "ManufacturerModelName",
             "SeriesDescription")  # fmt: skip
_KEPT = frozenset(
    (
        "BurnedInAnnotation",
        "ContrastBolusAgent",
        "TimezoneOffsetFromUTC",
        "LossyImageCompression",
        "ScanOptions",
    )
)
# Groups of files' meta information, of commands, of directories and of pixels.
_GROUPS_LEFT = (0x0000, 0x0002, 0x0004, 0x0028, 0x5400, 0x7FE0, 0xFFFA, 0xFFFC, 0xFFFE)


def mark(tag: int) -> str:
    return f"ZQXP{tag:08X}"


def planted() -> dict[int, tuple[str, Any]]:
    """{tag: (VR, value)} for every text element of pydicom's dictionary but those that hold the picture."""
    from pydicom.datadict import DicomDictionary, tag_for_keyword

    head = small.header(0)
    acted_on = {tag_for_keyword(keyword): keyword for keyword in _ACTED_ON}
    named = {
        tag_for_keyword(keyword)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID",
                        "StudyDate", "ReferringPhysicianName")
    }  # fmt: skip
    values: dict[int, tuple[str, Any]] = {}
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in _GROUPS_LEFT or not keyword or keyword in _KEPT:
            continue
        if tag in acted_on:
            true = head[keyword].value
            more = [*true, mark(tag)] if vr == "CS" else f"{true} {mark(tag)}"
            values[tag] = (vr, more)
        elif tag in head and tag not in named:
            continue
        elif vr in _TEXT:
            values[tag] = (vr, mark(tag))
        elif vr in _OTHER and (vr in ("DA", "DT", "AS") or tag >> 16 in (0x0010, 0x0032, 0x0038, 0x0040)):
            values[tag] = (vr, _OTHER[vr])
    return values


def write_identified(folder: Path) -> list[Path]:
    """The series of `small_dicom` with a mark wherever DICOM has room for text; returns its files."""
    return plant(small.write_series(folder / FOLDER, name=f"{FILE}_{{:04}}.dcm"))


def plant(files: list[Path]) -> list[Path]:
    """Put a mark into DICOM files wherever there is room for text; returns them."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    values = planted()
    inner = Dataset()
    for tag in (0x00100010, 0x00100020, 0x00081080, 0x00401400):
        inner.add_new(tag, values[tag][0], NESTED)
    outer = Dataset()
    outer.add_new(0x00101002, "SQ", [inner])
    everything = Dataset()
    for tag, (vr, value) in values.items():
        everything.add_new(tag, vr, value)
    for path in files:
        data = dcmread(path)
        data.update(everything)
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientName = f"{FOREIGN}^{mark(0x00100010)}"
        for sequence in ("OtherPatientIDsSequence", "RequestAttributesSequence", "ReferencedStudySequence",
                         "ProcedureCodeSequence", "AdmittingDiagnosesCodeSequence"):  # fmt: skip
            setattr(data, sequence, [inner, outer])
        for group, creator in ((0x0029, "SIEMENS CSA HEADER"), (0x2001, PRIVATE), (0x0011, PRIVATE)):
            block = data.private_block(group, creator, create=True)
            for element, vr in enumerate((*_TEXT, "UN", "OB"), 0x10):
                block.add_new(element, vr, PRIVATE.encode() * 2 if vr in ("UN", "OB") else PRIVATE)
            block.add_new(0x60, "SQ", [outer])
        data.add_new(0xFFFCFFFC, "OB", PADDING.encode() * 2)
        data.preamble = PREAMBLE.encode().ljust(128, b"\0")
        data.file_meta.SourceApplicationEntityTitle = data.file_meta.ImplementationVersionName = META
        data.save_as(path, enforce_file_format=True)
    return files


def leaks(name: str, data: bytes) -> set[tuple[str, str]]:
    """{(where, what)}: planted identity in bytes and in whatever is packed in them."""
    return {(", ".join((name, *inside)), what) for inside, what in _found(data)}


@lru_cache(maxsize=256)  # every page holds the same viewer
def _found(data: bytes) -> frozenset[tuple[tuple[str, ...], str]]:
    found: set[tuple[tuple[str, ...], str]] = {
        ((), match.decode("latin-1").replace("\0", "")) for match in MARK.findall(data)
    }
    for text in (DATE, TIME, NUMBER, "765432198", FOREIGN, small.SERIES_UID, small.STUDY_UID):
        if any(text.encode(code) in data for code in ("utf-8", "utf-16-le", "utf-16-be")):
            found.add(((), text))
    for how, packed in unpacked(data):
        found |= {((how, *inside), what) for inside, what in _found(packed)}
    return frozenset(found)


def unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(how, bytes) of what bytes hold in packed form: gzip, zip, zlib, PNG chunks, base64."""
    if data[:2] == b"\x1f\x8b":
        yield "inflated", gzip.decompress(data)
    elif data[:2] == b"PK":
        with zipfile.ZipFile(BytesIO(data)) as archive:
            yield "list", "\n".join(archive.namelist()).encode()
            yield from ((f"member {n}", archive.read(n)) for n in archive.namelist())
    elif data[:4] == b"\x89PNG":
        at = 8
        while at < len(data):
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            assert kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"), "a PNG with text in it"
            if kind == b"IDAT":
                yield "pixels", zlib.decompressobj().decompress(data[at + 8 : at + 8 + size])
            at += size + 12
    elif data[:1] == b"\x78":
        try:
            yield "inflated", zlib.decompress(data)
        except zlib.error:
            return
    else:
        for number, match in enumerate(re.finditer(rb"[A-Za-z0-9+/]{40,}={0,2}", data)):
            try:
                yield f"base64 {number}", base64.b64decode(match[0], validate=True)
            except binascii.Error:
                continue


def leaks_below(folder: Path) -> set[tuple[str, str]]:
    """`leaks` of all files below a folder, and of their names and folders'."""
    found: set[tuple[str, str]] = set()
    for path in folder.rglob("*"):
        found |= leaks("name", path.name.encode("utf-8", "surrogateescape"))
        if path.is_file():
            found |= leaks(path.name, path.read_bytes())
    return found
