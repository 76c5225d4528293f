"""hz-run: harmonize scans and predict age with a bundle; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hz_cli import options, render
from hz_cli.audit import audit
from hz_cli.info import info
from hz_cli.self_test import self_test
from hz_cli.shards import gather, status
from hz_cli.subcommands import ARGUMENTS, CommandWithOthers

if TYPE_CHECKING:
    from hz_runtime.backends.built_engines import Build, BuildRequest
    from hz_runtime.batch.known_ages import KnownAges
    from hz_runtime.batch.shard import Shard
    from hz_runtime.bundle.engine_cache import EngineRecord
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.preparation.preparer import Preparation

EPILOG = """\b
Exit codes: 0 all done; 2 usage; 3 some scans failed, the rest are complete; 4 bundle refused;
5 required engine unavailable; 130 interrupted (what was in flight is complete).
"""


@click.command(cls=CommandWithOthers, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--out",
    "-o",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("hz-out"),
    help="Folder for all results.  [default: ./hz-out]",
)
@click.option(
    "--prepare",
    "raw",
    is_flag=True,
    help="The scans are raw heads or DICOM: strip, correct and register them first, as hz-prepare does.",
)
@options.heads
@options.model
@options.trust
@options.to_site
@options.space
@click.option(
    "--dtype",
    type=click.Choice(["int16", "float32"]),
    default="int16",
    show_default=True,
    help="Type of the written voxels.",
)
@click.option(
    "--participants",
    metavar="TSV",
    type=click.Path(path_type=Path),
    help="Known ages, by file or participant_id.",
)
@click.option("--age", metavar="YEARS", type=click.FloatRange(0, 120), help="Known age, for a single scan.")
@options.backend
@options.engine
@click.option(
    "--batch", metavar="N", type=click.IntRange(1, 64), help="Scans a network call.  [default: 1 on a CPU]"
)
@options.redo
@options.audit
@click.option("--no-report", is_flag=True, help="No pictures and no report.html.")
@click.option(
    "--shard",
    metavar="I/N|array",
    help="Run only part I of N of the scans; array: as a Slurm or Grid Engine job array says. Every job is "
    "given all INPUTs and the same DIR; hz-run gather DIR then makes the report.",
)
@click.option(
    "--missing",
    is_flag=True,
    help="Run only what hz-run status DIR calls failed, half done or never reached.",
)
@options.dask
@options.progress
@options.version
@click.pass_context
def main(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    out: Path,
    model: Path | None,
    trust: tuple[Path, ...],
    require_signed: bool,
    participants: Path | None,
    age: float | None,
    raw: bool,
    dof: str,
    brain_mask: str,
    shard: str | None,
    missing: bool,
    dask: str | None,
    no_report: bool,
    no_build: bool,
    shown_as: str,
    plain: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Harmonize skull-stripped T1-weighted scans, or with --prepare raw heads, and predict age from them.

    INPUT: scans (.nii, .nii.gz, .mgz), folders (searched below), or quoted patterns; with --prepare also
    DICOM: a folder of it, a .zip or .tar.gz, of which the T1-weighted series is taken. Every scan gets
    a harmonized volume and a JSON sidecar in DIR; predictions.tsv, run.json and report.html cover the run.
    With --prepare, what is no whole T1-weighted head is refused by a gate. The same command again goes on
    where it was stopped. Research use only.

    \b
      hz-run scans/*.nii.gz
      hz-run --prepare raw/ EXAM.zip --out harmonized
      hz-run study/ --out harmonized --space both --participants study/participants.tsv
      hz-run --self-test
    """
    from hz_cli.batch import dask_workers, one_core_each, stop_on_signals
    from hz_cli.bundles import open_bundle

    one_core_each()
    stop = stop_on_signals(quiet)

    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.bundle.trust import Trust

    ages = _known_ages(participants, age)
    trusted = Trust.read(trust, require_signed)
    choices["preparation"] = _preparation(ctx, raw, dof, brain_mask, trusted)
    build = None if no_build else _builder(quiet)
    run_options = RunOptions(ages=ages, report=not no_report, build=build, **choices)
    progress = render.progress_of(shown_as, plain=plain, quiet=quiet)
    part = _shard(shard, missing, dask)
    try:
        bundle = open_bundle(model, trusted, quiet)
        if part is None:
            from hz_runtime.batch.run import run_batch

            with dask_workers(dask) as cluster:
                report = run_batch(inputs, bundle, out, run_options, progress, stop, cluster)
        else:
            from hz_runtime.batch.shard_run import run_shard

            command = without_shard(ctx.meta[ARGUMENTS])
            report = run_shard(
                inputs, bundle, out, part, run_options, progress, stop, missing=missing, command=command
            )
    finally:
        progress.close()
    for problem in report.problems:
        render.say(click.style("error: ", fg="red") + problem, err=True)
    look = "predictions.tsv and run.json" if no_report else "report.html"
    following = f"see {look} in {out}"
    if part is not None:
        following = f"shard {part}. When all have ended:  hz-run gather {out}"
    progress.end(f"{report.summary()}; {following}", report.exit_code, counts=report.counts, out=str(out))
    ctx.exit(report.exit_code)


def _shard(text: str | None, missing: bool, dask: str | None) -> Shard | None:
    """The part to run; all of a folder that is divided is one part, too."""
    from hz_runtime.batch.shard import Shard
    from hz_runtime.errors import UsageError

    if dask and (text or missing):
        raise UsageError("--dask divides the scans itself.", "Leave --shard and --missing out.")
    if text is None:
        return Shard(1, 1) if missing else None
    return Shard.of(text, os.environ)


def without_shard(arguments: Sequence[str]) -> list[str]:
    """The arguments of a run without those that choose a part of it."""
    rest, kept = list(arguments), list[str]()
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*kept, argument, *rest]
        if argument == "--shard":
            del rest[:1]
        elif argument != "--missing" and not argument.startswith("--shard="):
            kept.append(argument)
    return kept


def _builder(quiet: bool) -> Build:
    """What builds a TensorRT engine for this machine's GPU where none is kept; the export room is
    imported only then."""

    def build(wanted: BuildRequest) -> tuple[EngineRecord, bytes]:
        from hz_export.engine import builder

        say = (lambda _: None) if quiet else (lambda line: render.say(line, err=True))
        return builder(say, progress=not quiet)(wanted)

    return build


def _known_ages(participants: Path | None, age: float | None) -> KnownAges:
    from hz_runtime.batch.known_ages import KnownAges
    from hz_runtime.errors import UsageError

    if age is not None and participants is not None:
        raise UsageError("--age and --participants both give ages.", "Leave one of them out.")
    return KnownAges(only=age) if participants is None else KnownAges.from_tsv(participants)


def _preparation(
    ctx: click.Context, raw: bool, dof: str, brain_mask: str, trust: Trust
) -> Preparation | None:
    from hz_runtime.errors import UsageError

    if raw:
        from hz_runtime.preparation.preparer import Preparation

        return Preparation.asked(dof, brain_mask, trust)
    given = [n for n in ("dof", "brain_mask") if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if given:
        named = " and ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{named} without --prepare does nothing.", "Add --prepare for raw heads.")
    return None


main.add(info, self_test, status, gather, audit)

if __name__ == "__main__":
    main()
