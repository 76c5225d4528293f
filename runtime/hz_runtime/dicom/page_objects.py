"""The page for a reader as DICOM: secondary captures, or one encapsulated PDF, in a series of their own.

Its pixels hold no identity; patient and study are in the header, and only on request, as in `derived`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hz_runtime.dicom import deidentify as de
from hz_runtime.dicom.convert import make_folder
from hz_runtime.dicom.derived import (
    PATIENT_AND_STUDY,
    RESEARCH,
    SERIES_NUMBER_ADDED,
    TYPE_2,
    Origin,
    code,
    new_uid,
    source_reference,
    study_of,
    taken_out,
)
from hz_runtime.dicom.encoding import encoded, filed
from hz_runtime.dicom.export_folder import earlier_export
from hz_runtime.dicom.page import Page, draw_pages
from hz_runtime.dicom.result import Result
from hz_runtime.dicom.series import Series
from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.io.volume import Volume
from hz_runtime.report.pdf import encode_pdf

PageKind = Literal["sc", "pdf"]
KINDS: tuple[PageKind, ...] = ("sc", "pdf")
PDF_NAME = "PDF_page.dcm"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
_TITLE = "hz page for the reader, research use only"


def write_page(
    kind: PageKind,
    before: Volume,
    after: Volume,
    result: Result,
    series: Series,
    out: str | os.PathLike[str],
    keep_ids: bool = False,
    salt: str = de.SALT,
) -> list[Path]:
    """Write SC_page_1.dcm and so on, or PDF_page.dcm, to the folder `out`.

    before, after : the source and its harmonized copy, on one grid.  keep_ids, salt : as of `write_derived`.
    Raises GridMismatch, UsageError (extra not installed, an export of another series in `out`), HzError.
    """
    contents = encode_pages(kind, before, after, result, series, keep_ids, salt)
    target = Path(out)
    earlier_export(target, series)
    make_folder(target)
    for name, content in contents.items():
        atomic_write_bytes(target / name, content)
    return [target / name for name in contents]


def encode_pages(
    kind: PageKind,
    before: Volume,
    after: Volume,
    result: Result,
    series: Series,
    keep_ids: bool,
    salt: str,
) -> dict[str, bytes]:
    """The content of each file of `write_page`, by its name; `write_page` raises as this does."""
    de.need("pydicom", "PIL")
    pages = draw_pages(before, after, result, f"sub-{de.pseudonym(series.uid, salt)}")
    with de.quiet():
        common = _common(kind, series, result.origin, keep_ids, salt)
        sources = [source_reference(plane) for plane in {p.sop_uid: p for p in series.slices}.values()]
        made = [_pdf(common, pages, sources)] if kind == "pdf" else _captures(common, pages, sources)
        names = [PDF_NAME] if kind == "pdf" else [f"SC_page_{n}.dcm" for n in range(1, len(made) + 1)]
        return {name: encoded(filed(data)) for name, data in zip(names, made, strict=True)}


def _common(kind: PageKind, series: Series, origin: Origin, keep_ids: bool, salt: str) -> Any:
    """Patient, study, series and equipment, which all pages share."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    source = dcmread(series.files[0], force=True, stop_before_pixels=True)
    made = Dataset()
    for keyword in (*TYPE_2, *PATIENT_AND_STUDY):
        if keyword in source and not keyword.startswith(("LossyImage", "FrameOf", "Position", "BodyPart")):
            made[keyword] = source[keyword]
    if not keep_ids:
        taken_out(made, series, salt)
    for keyword in TYPE_2:
        if keyword not in made:
            setattr(made, keyword, None)
    made.StudyInstanceUID = study_of(series, keep_ids)
    made.SeriesInstanceUID = new_uid("page series", kind, *origin.key(series))
    made.SeriesNumber = SERIES_NUMBER_ADDED + 2 + int(de.number(source.get("SeriesNumber")) or 0) % 10**6
    made.SeriesDescription = _TITLE
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = "hz", "hz", origin.software
    made.BodyPartExamined = "BRAIN"  # or Laterality would be asked for
    made.ConversionType = "WSD"  # made at a workstation
    made.BurnedInAnnotation = "NO"  # PS3.3 C.7.6.1.1.5: text that says whose it is
    day, time = origin.local
    made.SeriesDate = made.ContentDate = made.InstanceCreationDate = day
    made.SeriesTime = made.ContentTime = made.InstanceCreationTime = time
    return made


def _captures(common: Any, pages: Sequence[Page], sources: list[Any]) -> list[Any]:
    return [_capture(common, page, number, sources) for number, page in enumerate(pages, 1)]


def _capture(common: Any, page: Page, number: int, sources: list[Any]) -> Any:
    image = _instance(common, _SECONDARY_CAPTURE, number)
    image.Modality = "OT"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    image.PatientOrientation = None
    image.DerivationDescription = f"Page for the reader. {RESEARCH}"
    image.SourceImageSequence = sources
    image.ImageComments = "\n".join(page.lines)[:10240]
    image.Rows, image.Columns = page.pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = np.ascontiguousarray(page.pixels).tobytes()
    image["PixelData"].VR = "OW"
    return image


def _pdf(common: Any, pages: Sequence[Page], sources: list[Any]) -> Any:
    document = _instance(common, _ENCAPSULATED_PDF, 1)
    document.Modality = "DOC"
    document.SourceInstanceSequence = sources
    document.AcquisitionDateTime = None
    document.DocumentTitle = _TITLE
    document.ConceptNameCodeSequence = code("121111", "DCM", "Summary")
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    content = encode_pdf([(page.pixels, page.lines) for page in pages], _TITLE)
    document.EncapsulatedDocumentLength = len(content)
    document.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return document


def _instance(common: Any, sop_class: str, number: int) -> Any:
    from pydicom.dataset import Dataset

    made = Dataset()
    made.update(common)
    made.SOPClassUID, made.InstanceNumber = sop_class, number
    made.SOPInstanceUID = new_uid("page", common.SeriesInstanceUID, number)
    return made
