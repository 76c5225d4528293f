"""A result written back whole: derived series, report where there is an age, and the page for the reader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hz_runtime.dicom import deidentify as de
from hz_runtime.dicom.convert import convert
from hz_runtime.dicom.derived import write_images
from hz_runtime.dicom.export_folder import replacing
from hz_runtime.dicom.intake import private_folder
from hz_runtime.dicom.page_objects import PageKind, encode_pages
from hz_runtime.dicom.result import Result
from hz_runtime.dicom.series import Series
from hz_runtime.dicom.structured_report import REPORT_NAME, encode_report
from hz_runtime.io.atomic import write_synced
from hz_runtime.io.volume import Volume, read_volume


@dataclass(frozen=True)
class Exported:
    """Names of the files in the folder; `report` is "" without an age, `page` empty where none was wanted."""

    images: tuple[str, ...]
    report: str = ""
    page: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.images, *([self.report] if self.report else []), *self.page)


def write_export(
    volume: Path,
    series: Series,
    out: str | os.PathLike[str],
    result: Result,
    page: PageKind | None = None,
    *,
    keep_ids: bool = False,
    salt: str = de.SALT,
    before: Path | None = None,
) -> Exported:
    """Write all that goes back of a harmonized `volume` to the folder `out`: all of it or nothing.

    before : the converted series, for the page, where it is at hand; else it is converted again.
    keep_ids, salt : as of `write_derived`. Raises as `write_derived`, `write_report` and `write_page` do.
    """
    de.need("pydicom")
    with replacing(out, series) as folder:
        after = read_volume(volume)
        images = write_images(volume, after, series, folder, result.origin, keep_ids, salt)
        report: dict[str, bytes] = {}
        if result.age is not None:
            report[REPORT_NAME] = encode_report(result.age, series, result.origin, keep_ids, salt)
        pages: dict[str, bytes] = {}
        if page is not None:
            scan = _scan(series) if before is None else read_volume(before)
            pages = encode_pages(page, scan, after, result, series, keep_ids, salt)
        for name, content in {**report, **pages}.items():
            write_synced(folder / name, content)
        return Exported(tuple(images), "".join(report), tuple(pages))


def _scan(series: Series) -> Volume:
    with private_folder() as folder:
        return read_volume(convert(series, folder).volume)
