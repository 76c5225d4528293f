"""hz-evaluate: the tables and figures of both papers, on your cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options
from hz_cli.render import HzCommand

if TYPE_CHECKING:
    from hz_train.cohort import Cohort
    from hz_train.fit import Schedule
    from hz_train.studies.presets import StudyPreset
    from hz_train.studies.result import StudyResult, Table

STUDIES = {
    "pooled": "train an age network on two sites pooled (Komandur 2023, Tables 2 and 3)",
    "transfer": "train it on the reference site, ask it about others (Bashyam 2020, Table 1, Figure 2)",
    "diagnosis": "learn a diagnosis at one or two sites, make it at others (Bashyam 2020, Table 2)",
    "appearance": "histograms, mean and sd maps, t-SNE (Bashyam Figure 1, Komandur Figure 2)",
    "audit": "can the site still be told, is the anatomy still there, do rescans agree",
}
AGES = ("pooled", "transfer")  # train networks that read ages
WRITTEN = ("appearance", "audit")  # say something of the volumes that a harmonizer writes
EPILOG = "\b\nStudies:\n" + "\n".join(f"  {name:<11} {text}" for name, text in STUDIES.items())


def _numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Seeds as 0,1,2."""
    try:
        seeds = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise click.BadParameter("give different whole numbers with commas, such as 0,1,2")
    return seeds


def _pair(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """Two labels as control,patient."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise click.BadParameter("give two labels with a comma, the negative first, such as control,patient")
    return parts[0], parts[1]


@click.command(cls=HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("study", type=click.Choice(list(STUDIES)))
@options.cohort
@click.option("--reference", metavar="SITE", required=True, help="Site that the others are harmonized to.")
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for tables, figures and report; an interrupted study there goes on, and studies share "
    "the harmonizers in it.",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "reference", "paper"]),
    default="paper",
    show_default=True,
    help="quick: seconds, learns nothing; reference: hours on a CPU; paper: as published.",
)
@click.option(
    "--system",
    type=click.Choice(["volume", "slice"]),
    default="volume",
    show_default=True,
    help="3D CycleGAN and 3D CNN (Komandur 2023), or slice CycleGAN and slice ResNet (Bashyam 2020).",
)
@click.option(
    "--form",
    type=click.Choice(["many", "pairs", "both"]),
    default="many",
    show_default=True,
    help="One harmonizer for all sites, one for each, or both side by side.",
)
@click.option(
    "--harmonizer",
    metavar="BUNDLE|CHECKPOINT",
    type=click.Path(path_type=Path, exists=True),
    help="Judge this in place of training one; its recipe and system are taken. appearance and audit then "
    "judge the volumes that it writes, too.",
)
@click.option(
    "--written-only",
    is_flag=True,
    help="Of appearance and audit, only what they say of the volumes that the --harmonizer writes.",
)
@click.option(
    "--unseen",
    is_flag=True,
    help="Leave out subjects that the --harmonizer was trained on; else a scored one ends the study.",
)
@click.option(
    "--subjects",
    metavar="N",
    type=click.IntRange(1),
    help="Only the first N subjects of each site, of those left.",
)
@click.option(
    "--seeds",
    metavar="N,...",
    default="0",
    show_default=True,
    callback=_numbers,
    help="One or several, as 0,1,2.",
)
@click.option(
    "--held-out",
    metavar="SHARE",
    type=click.FloatRange(0.05, 0.9),
    default=0.3,
    show_default=True,
    help="Share of each site's subjects that score.",
)
@click.option(
    "--labels",
    metavar="NEG,POS",
    callback=_pair,
    help="Two values of the group column for a diagnosis.  [default: the two there are]",
)
@click.option("--controls-only", is_flag=True, help="Leave out scans whose group is neither control nor n/a.")
@click.option(
    "--grid", metavar="N", type=click.IntRange(32), help="Work on N x N x N voxels; divisible by 8."
)
@click.option("--n4/--no-n4", default=None, help="Take out receive fields first.  [default: the preset's]")
@click.option(
    "--epochs",
    metavar="N",
    type=click.IntRange(1),
    help="Of the harmonizer; its rate falls at the same shares of them.",
)
@click.option("--width", metavar="N", type=click.IntRange(1), help="Channels of the harmonizer's first conv.")
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), help="Of the harmonizer: volumes or slices a step."
)
@click.option("--lr", metavar="RATE", type=click.FloatRange(0, min_open=True), help="Of the harmonizer.")
@click.option(
    "--predictor",
    type=click.Choice(["paper", "ensemble"]),
    help="Network that reads ages from volumes: the paper's, or for a hundred people that of hz-train age "
    "--preset ensemble, with its schedule.  [default: paper]",
)
@click.option(
    "--predictor-epochs", type=click.IntRange(1), help="Of the network that reads age or diagnosis."
)
@click.option("--predictor-width", metavar="N", type=click.IntRange(1), help="Channels of its first conv.")
@click.option(
    "--predictor-lr", metavar="RATE", type=click.FloatRange(0, min_open=True), help="Its learning rate."
)
@click.option("--precision", type=click.Choice(["float32", "bf16", "fp16"]), help="Mixed precision of both.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@options.version
def main(
    study: str,
    cohort: Path,
    reference: str,
    out: Path,
    preset: str,
    system: str,
    form: str,
    harmonizer: Path | None,
    written_only: bool,
    unseen: bool,
    subjects: int | None,
    seeds: tuple[int, ...],
    held_out: float,
    labels: tuple[str, str] | None,
    controls_only: bool,
    device: str,
    **changes: Any,
) -> None:
    """Run a study of harmonization on a cohort: OUT/STUDY.html, .json, .tsv and pictures.

    Simple methods (raw, z-score, histogram matching, ComBat) stand beside the harmonizer in every table.
    """
    from importlib import import_module

    # Charts come last: what draws them is asked for before hours of training.
    options.need("hz-evaluate", "evaluate", "torch", "scipy", "sklearn", "matplotlib", "safetensors")

    from hz_train.datasets import load
    from hz_train.studies.page import write_page
    from hz_train.studies.presets import StudySettings, study_preset
    from hz_train.studies.result import write_result
    from hz_train.studies.trained_harmonizer import system_of

    if written_only and (study not in WRITTEN or harmonizer is None):
        raise click.UsageError(f"--written-only: of {' and '.join(WRITTEN)}, with a --harmonizer")
    given = {name: value for name, value in changes.items() if value is not None}
    scans = _scans(cohort, controls_only, harmonizer, unseen, subjects)
    system = system_of(harmonizer) if harmonizer is not None else system
    fewer = ({"unseen": True} if unseen else {}) | ({"subjects": subjects} if subjects else {})
    fewer |= {"written_only": True} if written_only else {}
    settings = StudySettings(
        reference=reference,
        preset=_changed(_with_predictor(study_preset(preset, system), study, given), harmonizer, given),
        table=cohort,
        out=out,
        seeds=seeds,
        system=system,
        form=form,
        harmonizer=harmonizer,
        held_out=held_out,
        labels=labels,
        device=device,
        changes={"preset": preset, "controls_only": controls_only, **fewer, **given},
    )
    module = import_module(f"hz_train.studies.{study}")
    result: StudyResult
    if written_only:
        result = module.written(scans, settings)
    else:
        module.check(scans, settings)
        result = getattr(module, study)(load(scans, settings.recipe, settings.preset.n4), settings)
    write_result(result, out)
    page = write_page(result, out)
    for table in result.tables:
        for line in _lines(table):
            click.echo(line)
    click.echo(f"report: {page}")


def _scans(
    table: Path, controls_only: bool, harmonizer: Path | None, only_unseen: bool, subjects: int | None
) -> Cohort:
    """The scans of the cohort's table that the study is about."""
    from hz_train.cohort import Cohort, read_participants
    from hz_train.studies.trained_harmonizer import unseen

    scans = read_participants(table)
    if controls_only:
        scans = Cohort(tuple(s for s in scans.scans if s.group in ("control", "n/a")))
    if only_unseen and harmonizer is None:
        raise click.UsageError("--unseen: of a --harmonizer; one that is trained here holds subjects out")
    if only_unseen and harmonizer is not None:
        scans = unseen(scans, harmonizer)
    return scans.first(subjects) if subjects else scans


def _with_predictor(preset: StudyPreset, study: str, given: dict[str, Any]) -> StudyPreset:
    """The preset with the age network that was asked for, and how that one is trained."""
    from dataclasses import replace

    from hz_train.age_task import AgeSettings
    from hz_train.age_training import PRESETS

    if given.get("predictor", "paper") == "paper":
        return preset
    if study not in AGES or not isinstance(preset.settings, AgeSettings):
        raise click.UsageError(f"--predictor ensemble: of {' and '.join(AGES)}, with --system volume")
    return replace(preset, predictor=PRESETS["ensemble"].schedule, settings=PRESETS["ensemble"].settings)


def _changed(preset: StudyPreset, harmonizer: Path | None, given: dict[str, Any]) -> StudyPreset:
    """The preset with the command's own numbers in it."""
    from dataclasses import replace

    from hz_train.cyclegan_training import adjusted
    from hz_train.studies.presets import on_grid
    from hz_train.studies.trained_harmonizer import recipe_of

    of_harmonizer = {k: given.get(k) for k in ("width", "batch", "lr", "precision")}
    schedule = {
        name: given[key] for key, name in (("predictor_lr", "lr"), ("precision", "precision")) if key in given
    }
    settings = {"width": given["predictor_width"]} if "predictor_width" in given else {}
    preset = replace(
        preset,
        harmonizer=adjusted(
            preset.harmonizer,
            **of_harmonizer,
            **_lasting(preset.harmonizer.schedule, given.get("epochs"), preset.harmonizer.settings),
        ),
        predictor=replace(
            preset.predictor, **schedule, **_lasting(preset.predictor, given.get("predictor_epochs"))
        ),
        settings=replace(preset.settings, **settings),
        n4=given.get("n4", preset.n4),
    )
    if harmonizer is not None:
        idle = [f"--{key}" for key in ("grid", "epochs", "width", "batch", "lr") if key in given]
        if idle:
            raise click.UsageError(f"{', '.join(idle)}: --harmonizer is trained already, on its own grid")
        return replace(preset, recipe=recipe_of(harmonizer))
    return on_grid(preset, given["grid"]) if "grid" in given else preset


def _lasting(schedule: Schedule, epochs: int | None, settings: Any = None) -> dict[str, Any]:
    """The fields of a schedule, and of a harmonizer's settings, that lasts so long in all.

    It keeps its shape: the learning rate falls, and the epochs of restoration end, at the same shares of it.
    """
    if epochs is None:
        return {}
    share = epochs / schedule.epochs
    found: dict[str, Any] = {
        "epochs": epochs,
        "milestones": tuple(round(m * share) for m in schedule.milestones),
    }
    if settings is not None and settings.before:
        coarse = round(settings.coarse * share)
        found |= {"coarse": coarse, "warmup": round(settings.before * share) - coarse}
    return found


def _lines(table: Table) -> Sequence[str]:
    """A table for the terminal: one line a row, seeds summarised."""
    from hz_train.studies.charts import chosen

    lines = [table.title]
    for row in chosen(table.rows):
        cells = [
            f"{column.title} {metric.value:.{column.digits}f}"
            for column in table.columns
            if (metric := row.metrics.get(column.name)) and metric.value is not None
        ]
        place = ", ".join(dict.fromkeys([row.site, *(v for k, v in row.columns.items() if k != "predictor")]))
        lines.append(f"  {place}: {row.method}: {', '.join(cells)}")
    return lines


if __name__ == "__main__":
    main()
