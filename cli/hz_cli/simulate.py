"""hz-train simulate: a multi-site cohort with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hz_cli import render

BUILT_IN = "built-in"
NATIVE = "native"


def _size(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """Voxels a side, or native."""
    if text == NATIVE:
        return None
    if not text.isdigit():
        raise click.BadParameter(f"give a number of voxels, or {NATIVE} for the template's 2 mm")
    return int(text)


@click.command(cls=render.CheckedCommand)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for participants.tsv, scans, truth and label maps.",
)
@click.option(
    "--anatomy",
    multiple=True,
    metavar="LABELS",
    help=f"Label map to take anatomy from (0 background, 1 CSF, 2 grey, 3 white matter); repeat it. "
    f"[default: {BUILT_IN}, the MNI152 maps of nilearn]",
)
@click.option(
    "--cohort",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take anatomy and its age from the scans of this participants.tsv that have label maps.",
)
@click.option(
    "--sites",
    metavar="A,B,...",
    default="reference,flat,steep,thick,coil",
    show_default=True,
    help="Scanners, the reference first; there is bright, too.",
)
@click.option("--subjects-per-site", type=click.IntRange(1), default=90, show_default=True)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides everything random."
)
@click.option(
    "--size",
    metavar=f"N|{NATIVE}",
    default="64",
    show_default=True,
    callback=_size,
    help=f"Voxels a side, over the template's box; {NATIVE} for 91 x 109 x 91 of 2 mm.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Of the sites' departure from the reference.",
)
@click.option(
    "--effect",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Size of the disease of the patients; 0 for none.",
)
@click.option(
    "--ages",
    nargs=2,
    type=click.FloatRange(0, 120),
    default=(20.0, 85.0),
    show_default=True,
    help="Youngest and oldest.",
)
@click.option("--confound-age", is_flag=True, help="Sites scan different ages, the reference the youngest.")
@click.option("--confound-group", is_flag=True, help="Sites scan different shares of patients.")
@click.option(
    "--travelling",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Subjects of each site that are scanned at every other one, too.",
)
@click.option(
    "--sessions",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Scans of each subject at a site.",
)
@click.option("--workers", metavar="N", type=click.IntRange(1), default=2, help="Scans made at a time.")
@click.option("--overwrite", is_flag=True, help="Replace a cohort that is there.")
def simulate(
    out: Path,
    anatomy: tuple[str, ...],
    cohort: Path | None,
    sites: str,
    workers: int,
    overwrite: bool,
    **given: Any,
) -> None:
    """A multi-site cohort with known truth, from real anatomy.

    Every subject has an age, a diagnosis and an anatomy of its own; it is rendered by its site's scanner and,
    as the truth, by the reference site's.
    """
    from hz_train.simulate import Simulation, label_maps, named_site
    from hz_train.simulate import simulate as write

    heads, ages = _heads(anatomy)
    if cohort is not None:
        if heads:
            raise click.UsageError("give --anatomy or --cohort, not both")
        heads, ages = label_maps(cohort)
    chosen = tuple(named_site(name.strip()) for name in sites.split(",") if name.strip())
    simulation = Simulation(sites=chosen, heads=heads, head_ages=ages, **given)
    table = write(out, simulation, workers, overwrite)
    made_of = f"{len(heads)} label maps" if heads else "the MNI152 maps"
    click.echo(f"{len(chosen)} sites, anatomy of {made_of}: {table}")
    others = ",".join(site.name for site in chosen[1:])
    if others:
        click.echo(
            f"next:  hz-train outliers --cohort {table} --out DIR\n"
            f"       hz-train cyclegan --cohort {table} --source {others} --target {chosen[0].name} --out DIR"
        )


def _heads(anatomy: tuple[str, ...]) -> tuple[tuple[Path, ...], tuple[float | None, ...]]:
    named = [name for name in anatomy if name != BUILT_IN]
    if named and len(named) < len(anatomy):
        raise click.UsageError(f"give --anatomy {BUILT_IN} or label maps, not both")
    return tuple(Path(name) for name in named), ()
