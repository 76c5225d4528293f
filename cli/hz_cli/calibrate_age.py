"""hz-calibrate age: people of known age at a site in, a bundle whose ages are calibrated there out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_calibration.site_predictions import SitePredictions
    from hz_runtime.batch.known_ages import KnownAges
    from hz_runtime.bundle.store import Bundle

EPILOG = """\b
The interval is conformal, by person: each person weighs the same, however often scanned, and its coverage is
measured on each by what the others give. 19 people are the least of whom there is one; with 50 it scatters
by 4 % (one SD) from one such calibration to the next. Take healthy people of all ages that it is for.

\b
Exit codes: 0 written; 2 usage, or too few people; 4 bundle refused; 5 no engine is here.
"""


@click.command("age", cls=render.HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("given", metavar="[RESULTS|SCANS]...", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--participants",
    metavar="TSV",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Table with the columns age, file or participant_id, and site.",
)
@click.option("--out", "-o", metavar="NEW.hz", type=click.Path(path_type=Path), help="Bundle to write.")
@click.option("--write", is_flag=True, help="Put the calibration into BUNDLE itself; its id changes.")
@click.option(
    "--site",
    metavar="NAME",
    help="Take the scans of this site alone; also its name, where the table has no column site.",
)
@click.option(
    "--key",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Private key (PEM) to sign the bundle with. Without it the bundle is unsigned.",
)
@options.backend
@click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
def age(
    bundle: Path,
    given: tuple[Path, ...],
    participants: Path,
    out: Path | None,
    write: bool,
    site: str | None,
    key: Path | None,
    quiet: bool,
    **network: Any,
) -> None:
    """Calibrate the ages of BUNDLE on people of your own site: their bias, and a 90 % interval.

    RESULTS: folders that hz-run wrote with BUNDLE; raw heads come in so. Or SCANS: brains, and folders of
    them, which are run here.  [default: the files of the table] Ages are those of the table. The networks
    stay as they are; what BUNDLE said of its ages before is replaced, and its card, hz-run --info and every
    run say whose calibration it is. It holds at that site, for people of these ages. None of them may have
    been in the network's training: hz cannot know.

    \b
      hz-run --prepare raw/ --model published.hz --out results
      hz-calibrate age published.hz results --participants participants.tsv --out ours.hz
    """
    if write == (out is not None):
        raise click.UsageError("give either --out NEW.hz or --write.")
    from hz_calibration.site_predictions import read_predictions
    from hz_export.site_calibration import calibrated_at_site, write_calibrated
    from hz_runtime.batch.known_ages import KnownAges
    from hz_runtime.bundle.signing_keys import SigningKey
    from hz_runtime.bundle.store import load_bundle

    target = out or bundle
    signing = None if key is None else SigningKey.read(key)
    loaded = load_bundle(bundle)
    _check(loaded, out)
    known = KnownAges.from_tsv(participants)
    with TemporaryDirectory(prefix="hz-calibrate-") as work:
        folders, places = _results(loaded, given, participants, known, Path(work) / "results", network)
        predictions = read_predictions(folders, loaded, known, site, places)
    for line in () if quiet else (*known.notes, *_used(predictions), *_as_they_are(predictions, loaded)):
        render.say(line, err=True)
    calibration = calibrated_at_site(
        loaded, predictions, (lambda _: None) if quiet else (lambda text: render.say(text, err=True))
    )
    written = write_calibrated(loaded, calibration, target, signing)
    interval = written.age_interval
    width = None if interval is None else interval.of(written.age_bias)
    assert interval is not None and interval.site is not None and width is not None
    render.say(
        f"{written.path.name}: ages +- {width.half_width:.1f} years at {interval.level:.0%} on {interval.n} "
        f"people of {interval.site}; {'signed, ' if key else ''}{written.id}"
    )


def _check(bundle: Bundle, out: Path | None) -> None:
    """Raise what would else be said after minutes of work."""
    from hz_runtime.errors import UsageError

    if not any(entry.role == "age" for entry in bundle.models):
        raise UsageError(
            f"{bundle.path.name} holds no age network.", "Name one that does:  hz-run --info NAME.hz"
        )
    if out is not None and out.suffix != ".hz":
        raise UsageError(f"{out.name}: a bundle's name ends in .hz.", f"Use {out.name or 'NAME'}.hz.")
    if out is not None and out.exists():
        raise UsageError(f"{out.name} exists.", "Use another name, or --write to change the bundle itself.")


def _results(
    bundle: Bundle,
    given: Sequence[Path],
    table: Path,
    known: KnownAges,
    work: Path,
    network: dict[str, Any],
) -> tuple[list[Path], dict[str, Path]]:
    """Folders of results: those given, and `work`, into which the scans among what was given are run, with
    the paths of these scans by label."""
    from hz_runtime.batch.inputs import collect
    from hz_runtime.batch.run import run_batch
    from hz_runtime.batch.run_options import RunOptions

    folders = [path for path in given if (path / "run.json").is_file()]
    scans = [path for path in given if path not in folders] or ([] if folders else _files(table))
    places = {}
    if scans:
        options = RunOptions(space="model", report=False, ages=known, **network)
        report = run_batch(scans, bundle, work, options)
        render.say(report.summary(), err=True)
        folders.append(work)
        places = {scan.label: scan.path for scan in collect(scans, work).scans}
    return folders, places


def _files(table: Path) -> list[Path]:
    """The scans that a table names, from its own folder. Raises UsageError where it names none."""
    from hz_runtime.errors import UsageError
    from hz_runtime.io.participants import read_table

    rows = read_table(table).rows
    files = [table.parent / name for row in rows if (name := row.get("file") or row.get("filename"))]
    if not files:
        raise UsageError(
            f"{table.name} names no files.", "Give the folder of their results, or the scans, by name."
        )
    return files


def _as_they_are(predictions: SitePredictions, bundle: Bundle) -> tuple[str, ...]:
    """What brains that hz did not prepare may lack for these networks."""
    from hz_runtime.model_space.recipe import Recipe, unregistered_flags

    return () if predictions.raw_heads else unregistered_flags(Recipe.from_dict(dict(bundle.recipe)))


def _used(predictions: SitePredictions) -> list[str]:
    """What counts, and what does not."""
    people = len({scan.person for scan in predictions.scans})
    flagged = f", {predictions.flagged} of them flagged" if predictions.flagged else ""
    return [
        f"{len(predictions.scans)} scans of {people} people{flagged}",
        *(f"left out: {count} scans {why}" for why, count in predictions.left_out.items()),
    ]
