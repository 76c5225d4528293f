"""hz-dicom: DICOM series in, derived series and reports out."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hz_cli import options, render
from hz_cli.process import process
from hz_cli.process import salt as _salt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hz_runtime.dicom.page_objects import PageKind
    from hz_runtime.dicom.series import Series

_FOLDER = click.Path(path_type=Path)
_ENDING = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))  # Windows has no SIGHUP
_series = click.option(
    "--series", "wanted", metavar="N", type=click.IntRange(1), help="Number of the series in the list."
)


def _warn(line: str) -> None:
    render.say(line, err=True)


@contextmanager
def _opened(source: Path) -> Iterator[list[Path]]:
    """The DICOM files of IN, for as long as the context lasts, after a line about what is left out of it."""
    from hz_runtime.dicom.folder import find_archives
    from hz_runtime.dicom.intake import dicom_files

    if archives := find_archives(source):
        many = f"{len(archives)} archive{'' if len(archives) == 1 else 's'}"
        _warn(f"{many} in the folder not looked into; give each by itself, as IN")
    with dicom_files(source, note=_warn) as files:
        yield files


@click.group(cls=render.HzGroup, context_settings=options.CONTEXT)
@options.version
def dicom() -> None:
    """Find the T1-weighted series in DICOM, convert it without identity, write results back.

    \b
      hz-dicom list EXAM.zip
      hz-dicom convert EXAM.zip --out scans
      hz-run --prepare scans --out harmonized
      hz-dicom export harmonized/sub-X_desc-harmonized_T1w.nii.gz --source EXAM.zip --out back
    
      hz-dicom process EXAM.zip back                 all of that in one
    """


dicom.add_command(process)


@dicom.command("list")
@click.argument("source", metavar="IN", type=_FOLDER)
@_salt
@click.option("--keep-ids", is_flag=True, help="Show series descriptions, too; they may name a patient.")
def list_series(source: Path, salt: str | None, keep_ids: bool) -> None:
    """The series of a folder, .zip or .tar.gz; * marks what convert takes."""
    from hz_runtime.dicom.convert import output_name
    from hz_runtime.dicom.deidentify import MODALITIES, SALT, words
    from hz_runtime.dicom.selection import choose_each, judge
    from hz_runtime.dicom.series import find_series
    from hz_runtime.errors import UnsupportedScan

    with _opened(source) as files:
        found = find_series(files)
    try:
        chosen = {one.number for one in choose_each(found)[0]}
    except UnsupportedScan:
        chosen = set()
    rows = []
    for one in found:
        modality = "".join(words(one.get("Modality"), MODALITIES)) or "?"
        spacing = " x ".join(f"{mm:.3g}" for mm in one.spacing) if one.affine is not None else "-"
        rows.append(
            [
                f"{'*' if one.number in chosen else ' '}{one.number}",
                modality,
                " x ".join(map(str, one.shape)),
                spacing,
                _timing(one),
                output_name(one, salt or SALT).partition("_")[0],
                judge(one).reason,
                *([" ".join(str(one.get("SeriesDescription") or "").split())] if keep_ids else []),
            ]
        )
    heads = ["  N", "kind", "voxels", "mm", "TR/TE/TI ms", "name", "what the rules say"]
    _table([*heads, *(["description"] if keep_ids else [])], rows)
    if not chosen:
        click.echo("no series is a T1-weighted head by the rules; name one:  hz-dicom convert IN --series N")


def _timing(one: Series) -> str:
    from hz_runtime.dicom.deidentify import number

    times = (number(one.get(k)) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    return "/".join("-" if t is None else f"{t:.4g}" for t in times)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    for row in (heads, *rows):
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@dicom.command()
@click.argument("source", metavar="IN", type=_FOLDER)
@click.option("--out", "-o", required=True, metavar="DIR", type=_FOLDER, help="Folder for the NIfTI files.")
@_series
@_salt
@click.option("--keep-ids", is_flag=True, help="Keep identity: names, header texts, the whole sidecar.")
@click.option(
    "--reference", "keep_reference", is_flag=True, help="Also write the source's UIDs (NAME_source.json)."
)
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    source: Path,
    out: Path,
    wanted: int | None,
    salt: str | None,
    keep_ids: bool,
    keep_reference: bool,
) -> None:
    """Convert the T1-weighted series of every study, or series N, to NIfTI without patient identity.

    IN: a folder, .zip or .tar.gz. Names, headers and sidecar hold numbers and known words only. The picture
    stays as it is: a face can be seen in it until the brain is extracted. Exit code 3 where a study has no
    T1-weighted head.
    """
    from hz_runtime.dicom.convert import convert as write
    from hz_runtime.dicom.deidentify import SALT
    from hz_runtime.dicom.selection import choose, choose_each, judge
    from hz_runtime.dicom.whole_files import check_whole, find_whole
    from hz_runtime.errors import ScanError

    failed = 0
    with _opened(source) as files:
        found, damage = find_whole(files)
        for file in damage:
            _warn(file.said)
        chosen, without = choose_each(found) if wanted is None else ((choose(found, wanted),), 0)
        alone = wanted is None and len({one.study_uid for one in found}) == 1  # who names one has looked
        for one in chosen:
            try:
                check_whole(one, damage, alone)
                written = write(one, out, salt=salt or SALT, keep_ids=keep_ids, keep_reference=keep_reference)
            except ScanError as error:  # of one study; the others are converted
                render.print_error(error)
                failed += 1
                continue
            click.echo(f"series {one.number} of {len(found)} ({judge(one).reason}): {written.volume.name}")
    if wanted is None and sum(judge(one).eligible for one in found) > len(chosen):
        click.echo("other series qualify, too:  hz-dicom list IN", err=True)
    if keep_ids or keep_reference:
        click.echo("these files identify the patient", err=True)
    if without:
        studies = "1 study has" if without == 1 else f"{without} studies have"
        click.echo(f"{studies} no T1-weighted head by the rules:  hz-dicom list IN", err=True)
    if without or failed:
        ctx.exit(3)


@dicom.command()
@click.argument("volume", metavar="VOLUME", type=_FOLDER)
@click.option(
    "--source", required=True, metavar="IN", type=_FOLDER, help="The folder, .zip or .tar.gz it came from."
)
@click.option("--out", "-o", required=True, metavar="DIR", type=_FOLDER, help="Folder for the DICOM files.")
@_series
@click.option("--reference", metavar="JSON", type=_FOLDER, help="NAME_source.json of convert --reference.")
@click.option("--result", metavar="JSON", type=_FOLDER, help="Sidecar of hz-run.  [default: beside VOLUME]")
@click.option(
    "--page",
    type=click.Choice(["sc", "pdf"]),
    help="Also write a page for the reader: secondary captures, or one PDF.",
)
@click.option("--keep-ids", is_flag=True, help="Carry patient and study of IN, to file it in the record.")
@_salt
def export(
    volume: Path,
    source: Path,
    out: Path,
    wanted: int | None,
    reference: Path | None,
    result: Path | None,
    page: PageKind | None,
    keep_ids: bool,
    salt: str | None,
) -> None:
    """Write a harmonized volume back: a derived MR series and a report with the predicted age.

    VOLUME: a result of hz-run --space native. New series on the source's slices; research use only,
    unverified. Without --keep-ids they carry no patient and have a study of their own.
    """
    from hz_runtime.dicom.deidentify import SALT
    from hz_runtime.dicom.export import write_export
    from hz_runtime.dicom.result import read_result
    from hz_runtime.dicom.series import find_series

    read = read_result(volume, result)
    with _opened(source) as files:
        one = _source(find_series(files), volume, wanted, reference, salt)
        made = write_export(volume, one, out, read, page, keep_ids=keep_ids, salt=salt or SALT)
    report = made.report or "no report (no age was predicted)"
    pages = f", {', '.join(made.page)}" if made.page else ""
    click.echo(f"{len(made.images)} images on series {one.number}, {report}{pages}")
    if keep_ids:
        click.echo("these files identify the patient", err=True)


def _source(
    found: Sequence[Series], volume: Path, wanted: int | None, reference: Path | None, salt: str | None
) -> Series:
    """The series named by number or reference, else by the digits in the volume's name.

    A name without digits means the only series that convert would take. Nothing is guessed beyond that: a
    result must not be filed under another patient. Raises UsageError.
    """
    from hz_runtime.dicom.convert import digits_in, referenced, source_of
    from hz_runtime.dicom.deidentify import SALT
    from hz_runtime.dicom.selection import choose, judge
    from hz_runtime.errors import UsageError
    from hz_runtime.io.volume import stem

    if wanted is not None:
        return choose(found, wanted)
    if reference is not None:
        return referenced(found, reference)
    remedy = "name the series:  --series N (hz-dicom list IN) or --reference JSON"
    name = stem(volume)
    if digits_in(name)[0]:
        one = source_of(found, name, salt or SALT)
        if one is None:
            raise UsageError(
                "no series of the source has the digits in the volume's name.",
                f"Give the --salt of convert, or {remedy}",
            )
        return one
    if sum(judge(one).eligible for one in found) > 1:
        raise UsageError(
            "several series of the source qualify, and the volume's name has no digits of one.",
            f"N{remedy[1:]}",
        )
    return choose(found)


def _unwound(number: int, _frame: object) -> None:
    """End on a signal as on an error, so that temporary folders, which hold identity, are removed."""
    for known in _ENDING:
        signal.signal(known, signal.SIG_IGN)  # a second one would stop that
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of hz-dicom."""
    for number in _ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _unwound)
    render.run_command(dicom)


if __name__ == "__main__":
    main()
