"""hz-train: PyTorch checkpoints from a cohort."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, cast

import click

from hz_cli import options, render
from hz_cli.interrupts import resumable
from hz_cli.options import F, together
from hz_cli.outliers import outliers
from hz_cli.simulate import simulate

# Presets of the 3D system and of the slice system, and what the help says of them.
VOLUMES = ("paper", "quick", "reference"), "reference: hours on a CPU."
AGES = (*VOLUMES[0], "ensemble"), f"{VOLUMES[1]} ensemble: for a hundred people, as the reference bundle."
SLICES = ("paper", "small", "quick"), "small: 64^3 volumes, hours on a CPU."


def _trained(command: F) -> F:
    """The command, once what training needs is known to be here; ended from outside, it says how to go on."""

    @wraps(command)
    def checked(*given: Any, **more: Any) -> Any:
        options.need("hz-train", "train", "torch", "scipy", "safetensors")
        with resumable(more["out"]):
            return command(*given, **more)

    return cast(F, checked)


def _cohort_options(presets: tuple[tuple[str, ...], str]) -> Callable[[F], F]:
    """Options every training command shares."""
    names, help_of_third = presets
    return together(
        options.cohort,
        click.option(
            "--out",
            required=True,
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder for checkpoints, logs and pictures; an interrupted run there is resumed.",
        ),
        click.option(
            "--preset",
            type=click.Choice(names),
            default="paper",
            show_default=True,
            help=f"paper: as published; quick: minutes on a CPU; {help_of_third}",
        ),
        click.option("--epochs", type=click.IntRange(1), help="Instead of the preset's."),
        click.option("--batch", type=click.IntRange(1), help="Volumes, or slices, a step and process."),
        click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate of Adam."),
        click.option(
            "--seed", type=click.IntRange(0), help="Decides weights, split, order and augmentation."
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bf16", "fp16"]),
            help="auto: bf16 where this machine multiplies it, else float32.  [default: the preset's]",
        ),
        click.option("--channels-last/--channels-first", default=None, help="Memory layout of images."),
        click.option("--compile/--no-compile", default=None, help="torch.compile the networks."),
        click.option("--augment/--no-augment", default=None, help="Simulated scanners while training."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."),
        click.option("--picture-every", type=click.IntRange(0), help="Epochs between pictures; 0 for none."),
        click.option("--licence", default="", help="Licence of the data, for the model card."),
        _trained,
    )


def _grid(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is not three sizes, as in 184,220,184.", ctx, option)
    return tuple(int(part) for part in parts)


def _intensity(default: str) -> Callable[[F], F]:
    """--intensity; the rules are named in `hz_runtime.model_space.intensity`."""
    return click.option(
        "--intensity",
        type=click.Choice(["min-max", "percentile", "median"]),
        help=f"How a volume is brought into [0, 1]; median is moved by no vessel.  [default: {default}]",
    )


_slice_options = together(
    click.option(
        "--grid",
        metavar="D,H,K",
        callback=_grid,
        help="Voxels that networks see: K axial slices of D x H.  [default: 1 mm; small 64^3; quick 32^3]",
    ),
    click.option(
        "--slices",
        type=click.IntRange(1),
        help="Middle axial slices a predictor reads; goes into the recipe.  [default: those of 80 mm]",
    ),
    _intensity("percentile"),
)
_harmonizer_options = together(
    click.option("--source", required=True, help="Site, or several with commas, whose scans are harmonized."),
    click.option("--target", required=True, help="Reference site that they are harmonized to."),
    click.option(
        "--held-out",
        type=click.FloatRange(0, 0.9),
        default=0.15,
        show_default=True,
        help="Share of each site's subjects kept for the scores.",
    ),
    click.option(
        "--conditional/--pooled",
        default=None,
        help="With several sources: tell the way back which site it leads to, or treat them as one.  "
        "[default: conditional, except 3D quick and reference]",
    ),
    click.option(
        "--coarse", type=click.IntRange(0), help="Epochs of restoration on volumes of half the size."
    ),
    click.option(
        "--warmup", type=click.IntRange(0), help="Epochs of restoration after them, on whole volumes."
    ),
    click.option(
        "--warmup-lr", type=click.FloatRange(0, min_open=True), help="Learning rate they start with."
    ),
    click.option(
        "--restore", type=click.FloatRange(0), help="Weight of restoration beside the other losses."
    ),
    click.option(
        "--anchor",
        type=click.Choice(["mean", "white"]),
        help="Level that harmonized scans share: the brain's, or white matter's.  [default: mean]",
    ),
    click.option("--averaging", type=click.FloatRange(0, 1), help="Kept of the weights' average each step."),
    click.option("--unchanged", type=click.FloatRange(0, 1), help="Share of scans left as they are."),
    click.option("--gain", type=click.FloatRange(0), help="Largest |log| of simulated brightness."),
    click.option(
        "--start-from",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="Checkpoint whose networks are trained further, in place of new ones.",
    ),
)


@click.group(cls=render.HzGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hz-mri")
def train() -> None:
    """Train the networks that hz-export turns into a bundle.

    \b
    Data parallel on several GPUs of one machine:
      torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 4 \\
          -m hz_cli.train cyclegan ...
    """


@train.command()
@_cohort_options(VOLUMES)
@_harmonizer_options
@click.option(
    "--n4/--no-n4",
    default=None,
    help="Take out every scan's receive field first, as the paper does.  [default: yes, except quick]",
)
@_intensity("min-max, the paper's")
@click.option("--width", type=click.IntRange(1), help="Channels of the networks' first conv.")
def cyclegan(cohort: Path, preset: str, intensity: str | None, **given: Any) -> None:
    """3D CycleGAN of Komandur 2023: harmonize source sites to a target site."""
    from hz_train.cyclegan_training import PRESETS, train_cyclegan

    _harmonizer(train_cyclegan, cohort, PRESETS[preset], recipe=_volume_recipe(preset, intensity), **given)


@train.command()
@_cohort_options(SLICES)
@_harmonizer_options
@_slice_options
@click.option("--n4/--no-n4", default=None, help="Take out every scan's receive field first.  [default: no]")
@click.option("--width", type=click.IntRange(1), help="Channels of the networks' first conv.")
@click.option("--blocks", type=click.IntRange(1), help="Residual blocks of the generators.")
@click.option("--per-scan", type=click.IntRange(0), help="Slices drawn of each scan an epoch; 0 for all.")
def canonical(
    cohort: Path,
    preset: str,
    grid: tuple[int, ...] | None,
    slices: int | None,
    intensity: str | None,
    **given: Any,
) -> None:
    """Slice CycleGAN of Bashyam 2020: map one site, or many, to a reference site, slice by slice."""
    from hz_train.slice_training import PRESETS, train_canonical

    recipe = _slice_recipe(preset, grid, slices, intensity)
    _harmonizer(train_canonical, cohort, PRESETS[preset], recipe=recipe, **given)


def _harmonizer(
    train_it: Any,
    cohort: Path,
    preset: Any,
    source: str,
    target: str,
    out: Path,
    augment: bool | None,
    held_out: float,
    device: str,
    licence: str,
    start_from: Path | None,
    recipe: Any = None,
    **given: Any,
) -> None:
    """What both harmonizers' commands do with their options."""
    from hz_train.augment import Augmentation
    from hz_train.cohort import read_participants
    from hz_train.cyclegan_training import adjusted

    chosen = _settled(adjusted(preset, **given), device, out)
    if augment is not None:
        chosen = adjusted(chosen, augmentation=Augmentation.strong()) if augment else _unaugmented(chosen)
    path = train_it(
        read_participants(cohort),
        _names(source),
        target,
        out,
        chosen,
        held_out,
        recipe,
        device=device,
        licence=licence,
        start_from=start_from,
    )
    click.echo(f"checkpoint: {path}\nnext:  hz-export --fp16 {path} --out NAME.hz")


def _settled(preset: Any, device: str, out: Path) -> Any:
    """The preset with the precision that this machine, or the run in `out`, decides."""
    from dataclasses import replace

    from hz_train.precision import AUTO, settled

    schedule = settled(preset.schedule, device, out)
    if preset.schedule.precision == AUTO:
        click.echo(f"precision: {schedule.precision}", err=True)
    return replace(preset, schedule=schedule)


def _names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _unaugmented(preset: Any) -> Any:
    from dataclasses import replace

    return replace(preset, settings=replace(preset.settings, augmentation=None))


_predictor_options = together(
    click.option("--sites", default="", help="Sites to use, with commas; all of them when left out."),
    click.option(
        "--harmonizer",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="Checkpoint of hz-train cyclegan or canonical that every scan passes through first.",
    ),
    click.option("--folds", type=click.IntRange(0), help="Subject-level cross-validation; 0 for one split."),
    click.option("--held-out", type=click.FloatRange(0.05, 0.9), help="Share held out where folds is 0."),
)
_all_groups = click.option("--all-groups/--controls-only", default=None, help="Whether patients train too.")
_slice_predictor_options = together(
    _predictor_options,
    click.option(
        "--validation",
        type=click.FloatRange(0, 0.5),
        help="Share of the training subjects who decide when to stop; 0 for the training loss alone.",
    ),
    click.option("--width", type=click.IntRange(1), help="Channels of the first conv."),
    click.option("--per-scan", type=click.IntRange(0), help="Slices drawn of each scan an epoch; 0 for all."),
    _slice_options,
)


@train.command()
@_cohort_options(AGES)
@_predictor_options
@_all_groups
@_intensity("the harmonizer's, else min-max")
def age(cohort: Path, out: Path, preset: str, sites: str, harmonizer: Path | None, **given: Any) -> None:
    """Age CNN of Komandur 2023: brain age in years from (harmonized) scans."""
    from dataclasses import replace

    from hz_train.age_training import PRESETS, train_age
    from hz_train.augment import Augmentation
    from hz_train.cohort import read_participants

    device, licence = given.pop("device"), given.pop("licence")
    augment, all_groups = given.pop("augment"), given.pop("all_groups")
    chosen = PRESETS[preset]
    recipe = _volume_recipe(preset, given.pop("intensity"), harmonizer)
    changes = {k: given.pop(k) for k in ("folds", "held_out") if given[k] is not None}
    given = {k: v for k, v in given.items() if v is not None and k not in ("folds", "held_out")}
    if all_groups is not None:
        changes["controls_only"] = not all_groups
    if augment is not None:
        mild = Augmentation.mild() if augment else None
        changes["settings"] = replace(chosen.settings, augmentation=mild)
    chosen = replace(chosen, schedule=replace(chosen.schedule, **given), **changes)
    chosen = _settled(chosen, device, out)
    people = read_participants(cohort)
    path = train_age(people, _names(sites), out, chosen, harmonizer, recipe, device=device, licence=licence)
    click.echo(f"checkpoint: {path}\nnext:  hz-export --fp16 HARMONIZER {path} --out NAME.hz")


@train.command("slice-age")
@_cohort_options(SLICES)
@_slice_predictor_options
@_all_groups
def slice_age(all_groups: bool | None, **given: Any) -> None:
    """Slice ResNet of Bashyam 2020: brain age in years, the median over a scan's middle slices."""
    from hz_train.slice_predictor_training import train_slice_age

    _slice_predictor(train_slice_age, {}, all_groups, **given)


@train.command()
@_cohort_options(SLICES)
@_slice_predictor_options
@click.option(
    "--labels",
    metavar="NEGATIVE,POSITIVE",
    default="",
    help="Values of the group column; found where there are exactly two.",
)
def diagnosis(labels: str, **given: Any) -> None:
    """Slice ResNet of Bashyam 2020: probability of a diagnosis, the median over a scan's middle slices."""
    from hz_train.slice_predictor_training import train_diagnosis

    pair = _names(labels)
    if labels and (len(pair) != 2 or pair[0] == pair[1]):
        raise click.UsageError(f"--labels {labels!r} is not two names, as in control,patient.")
    _slice_predictor(train_diagnosis, {"labels": pair}, None, **given)


def _slice_predictor(
    train_it: Any,
    extra: dict[str, Any],
    all_groups: bool | None,
    cohort: Path,
    out: Path,
    preset: str,
    sites: str,
    harmonizer: Path | None,
    grid: tuple[int, ...] | None,
    slices: int | None,
    intensity: str | None,
    augment: bool | None,
    device: str,
    licence: str,
    **given: Any,
) -> None:
    """What both slice predictors' commands do with their options."""
    from dataclasses import replace

    from hz_train.augment import Augmentation
    from hz_train.cohort import read_participants
    from hz_train.slice_predictor_training import PRESETS, adjusted

    chosen = _settled(adjusted(PRESETS[preset], **given), device, out)
    if all_groups is not None:
        chosen = replace(chosen, controls_only=not all_groups)
    if augment is not None:
        mild = Augmentation.mild() if augment else None
        chosen = replace(chosen, settings=replace(chosen.settings, augmentation=mild))
    recipe = _slice_recipe(preset, grid, slices, intensity, harmonizer)
    path = train_it(
        read_participants(cohort),
        _names(sites),
        out,
        chosen,
        **extra,
        harmonizer=harmonizer,
        recipe=recipe,
        device=device,
        licence=licence,
    )
    before = "HARMONIZER " if harmonizer else ""
    click.echo(f"checkpoint: {path}\nnext:  hz-export --fp16 {before}{path} --out NAME.hz")


def _volume_recipe(preset: str, intensity: str | None, harmonizer: Path | None = None) -> Any:
    """The recipe of networks that read volumes; behind a harmonizer its own, but for the intensity."""
    from dataclasses import replace

    from hz_runtime.model_space.recipe import Recipe
    from hz_train.cyclegan_training import GRIDS

    if harmonizer is None:
        recipe = Recipe(grid_shape=GRIDS.get(preset, Recipe().grid_shape))
    else:
        from hz_train.checkpoint import load_checkpoint

        recipe = Recipe.from_dict(load_checkpoint(harmonizer)[1].get("recipe") or {})
    return recipe if intensity is None else replace(recipe, intensity=intensity)


def _slice_recipe(
    preset: str,
    grid: tuple[int, ...] | None,
    slices: int | None,
    intensity: str | None,
    harmonizer: Path | None = None,
) -> Any:
    """The recipe asked for; behind a harmonizer, and where nothing else is asked for, the harmonizer's."""
    from hz_train.slice_recipes import reading, slice_recipe
    from hz_train.slice_training import GRIDS

    if harmonizer is not None and grid is None and intensity is None:
        from hz_runtime.model_space.recipe import Recipe
        from hz_train.checkpoint import load_checkpoint

        return reading(Recipe.from_dict(load_checkpoint(harmonizer)[1].get("recipe") or {}), slices)
    d, h, k = grid or GRIDS[preset]
    return slice_recipe((d, h, k), slices, intensity or "percentile")


train.add_command(simulate)
train.add_command(outliers)


def main() -> None:
    """Entry point of hz-train."""
    from hz_cli.render import run_command

    run_command(train)


if __name__ == "__main__":
    main()
