"""hz-train outliers: scans that are unlike the others of their site."""

from __future__ import annotations

from pathlib import Path

import click

from hz_cli import options, render


@click.command(cls=render.CheckedCommand)
@options.cohort
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for outliers.tsv and outliers.html.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    help="Robust score above which a scan is an outlier.  [default: 5]",
)
@click.option("--exclude", is_flag=True, help="Also write a participants.tsv without the outliers.")
@click.option("--workers", metavar="N", type=click.IntRange(1), default=2, help="Scans read at a time.")
def outliers(cohort: Path, out: Path, threshold: float | None, exclude: bool, workers: int) -> None:
    """Scans that are unlike the others of their site: a table, and a page with their pictures.

    Size, place, intensities and the correlation with the mean of the others, each against the site's median
    (modified z-score, Iglewicz & Hoaglin 1993). An outlier is not always a bad scan: look at the page.
    """
    from hz_runtime.model_space.outliers import LEAST_SCANS, THRESHOLD
    from hz_train.cohort import read_participants
    from hz_train.screening import screen, without, write_screening

    people = read_participants(cohort)
    found = screen(people, threshold=threshold or THRESHOLD, workers=workers)
    table, page = write_screening(out, found)
    for screened in found.flagged:
        click.echo(f"{screened.scan.path.name} ({screened.scan.site}): {screened.result.reasons[0]}")
    for site in found.unjudged:
        click.echo(f"site {site}: fewer than {LEAST_SCANS} scans, not compared", err=True)
    click.echo(f"{len(found.flagged)} outliers among {len(found.scans)} scans: {table}\nlook at {page}")
    if exclude:
        kept = without(cohort, out, [screened.scan for screened in found.flagged])
        click.echo(f"without them:  --cohort {kept}")
    elif found.flagged:
        click.echo(f"leave them out:  hz-train outliers --cohort {cohort} --out {out} --exclude")
