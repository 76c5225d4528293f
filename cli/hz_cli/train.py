"""hz-train: PyTorch checkpoints from a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PRESETS = ("paper", "quick", "reference")


def _cohort_options(command: Any) -> Any:
    """Options every training command shares."""
    for option in reversed(
        [
            click.option(
                "--cohort",
                required=True,
                type=click.Path(path_type=Path, dir_okay=False),
                help="participants.tsv: file, site, age, sex, group, and participant_id for rescans.",
            ),
            click.option(
                "--out",
                required=True,
                type=click.Path(path_type=Path, file_okay=False),
                help="Folder for checkpoints, logs and pictures; an interrupted run there is resumed.",
            ),
            click.option(
                "--preset",
                type=click.Choice(PRESETS),
                default="paper",
                show_default=True,
                help="paper: as published; quick: minutes on a CPU; reference: as models/reference.hz.",
            ),
            click.option("--epochs", type=click.IntRange(1), help="Instead of the preset's."),
            click.option("--batch", type=click.IntRange(1), help="Volumes a step and process."),
            click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate of Adam."),
            click.option(
                "--seed", type=click.IntRange(0), help="Decides weights, split, order and augmentation."
            ),
            click.option(
                "--precision", type=click.Choice(["float32", "bf16", "fp16"]), help="Mixed precision."
            ),
            click.option("--channels-last/--channels-first", default=None, help="Memory layout of volumes."),
            click.option("--compile/--no-compile", default=None, help="torch.compile the networks."),
            click.option("--augment/--no-augment", default=None, help="Simulated scanners while training."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."),
            click.option(
                "--picture-every", type=click.IntRange(0), help="Epochs between pictures; 0 for none."
            ),
            click.option("--licence", default="", help="Licence of the data, for the model card."),
        ]
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hz-mri")
def train() -> None:
    """Train the networks that hz-export turns into a bundle.

    Data parallel on several GPUs:  torchrun --nproc-per-node 4 -m hz_cli.train cyclegan ...
    """


@train.command()
@_cohort_options
@click.option("--source", required=True, help="Site, or several with commas, whose scans are harmonized.")
@click.option("--target", required=True, help="Reference site that they are harmonized to.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.9),
    default=0.15,
    show_default=True,
    help="Share of each site's subjects kept for the scores.",
)
@click.option(
    "--n4/--no-n4",
    default=None,
    help="Take out every scan's receive field first, as the paper does.  [default: yes, except quick]",
)
@click.option("--coarse", type=click.IntRange(0), help="Epochs of restoration on volumes of half the size.")
@click.option("--warmup", type=click.IntRange(0), help="Epochs of restoration after them, on whole volumes.")
@click.option("--warmup-lr", type=click.FloatRange(0, min_open=True), help="Learning rate they start with.")
@click.option(
    "--start-from",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Checkpoint whose networks are trained further, in place of new ones.",
)
def cyclegan(
    cohort: Path,
    out: Path,
    preset: str,
    source: str,
    target: str,
    held_out: float,
    start_from: Path | None,
    **given: Any,
) -> None:
    """3D CycleGAN of Komandur 2023: harmonize source sites to a target site."""
    from hz_train.augment import Augmentation
    from hz_train.cohort import read_participants
    from hz_train.cyclegan_training import PRESETS, adjusted, train_cyclegan

    device, licence, augment = given.pop("device"), given.pop("licence"), given.pop("augment")
    chosen = adjusted(PRESETS[preset], **given)
    if augment is not None:
        chosen = adjusted(chosen, augmentation=Augmentation.strong()) if augment else _unaugmented(chosen)
    sites = [s.strip() for s in source.split(",") if s.strip()]
    path = train_cyclegan(
        read_participants(cohort),
        sites,
        target,
        out,
        chosen,
        held_out,
        device=device,
        licence=licence,
        start_from=start_from,
    )
    click.echo(f"checkpoint: {path}\nnext:  hz-export --fp16 {path} --out NAME.hz")


def _unaugmented(preset: Any) -> Any:
    from dataclasses import replace

    return replace(preset, settings=replace(preset.settings, augmentation=None))


@train.command()
@_cohort_options
@click.option("--sites", default="", help="Sites to use, with commas; all of them when left out.")
@click.option(
    "--harmonizer",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Checkpoint of hz-train cyclegan that every scan passes through first.",
)
@click.option("--folds", type=click.IntRange(0), help="Subject-level cross-validation; 0 for one split.")
@click.option("--held-out", type=click.FloatRange(0.05, 0.9), help="Share held out where folds is 0.")
@click.option("--all-groups/--controls-only", default=None, help="Whether patients train too.")
def age(cohort: Path, out: Path, preset: str, sites: str, harmonizer: Path | None, **given: Any) -> None:
    """Age CNN of Komandur 2023: brain age in years from (harmonized) scans."""
    from dataclasses import replace

    from hz_train.age_training import PRESETS, train_age
    from hz_train.augment import Augmentation
    from hz_train.cohort import read_participants

    device, licence = given.pop("device"), given.pop("licence")
    augment, all_groups = given.pop("augment"), given.pop("all_groups")
    chosen = PRESETS[preset]
    changes = {k: given.pop(k) for k in ("folds", "held_out") if given[k] is not None}
    given = {k: v for k, v in given.items() if v is not None and k not in ("folds", "held_out")}
    if all_groups is not None:
        changes["controls_only"] = not all_groups
    if augment is not None:
        mild = Augmentation.mild() if augment else None
        changes["settings"] = replace(chosen.settings, augmentation=mild)
    chosen = replace(chosen, schedule=replace(chosen.schedule, **given), **changes)
    wanted = [s.strip() for s in sites.split(",") if s.strip()]
    path = train_age(
        read_participants(cohort), wanted, out, chosen, harmonizer, device=device, licence=licence
    )
    click.echo(f"checkpoint: {path}\nnext:  hz-export --fp16 HARMONIZER {path} --out NAME.hz")


def main() -> None:
    """Entry point of hz-train."""
    from hz_cli.render import run_command

    run_command(train)


if __name__ == "__main__":
    main()
