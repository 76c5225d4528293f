"""hz-bids: the BIDS App; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_runtime.bids.participant import Level

EPILOG = """\b
Exit codes: 0 all done; 2 usage; 3 some scans or participants failed, the rest are complete (with
--stop-on-first-crash they may be not reached); 4 bundle refused; 5 required engine unavailable;
130 interrupted (the same command goes on).
"""
LEVELS = ("participant", "group")
SEVERAL = ("--participant-label", "--participant_label", "--session-label", "--session_label")
_FOLDER = click.Path(path_type=Path, file_okay=False)


class BidsCommand(render.HzCommand):
    """A command whose options are written as those of any BIDS App.

    Label options take several values, `--participant-label 01 02`; the words of an option may be joined by
    dashes or underscores.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        return super().parse_args(ctx, spread([joined(argument, known) for argument in args]))


def joined(argument: str, known: set[str]) -> str:
    """An argument whose option is one of `known`, but for its underscores, as it is known."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    dashed = "--" + name[2:].replace("_", "-")
    return f"{dashed}{equals}{value}" if name not in known and dashed in known else argument


def spread(args: Sequence[str]) -> list[str]:
    """Arguments in which an option of SEVERAL stands before each of its values.

    Values reach to the next option, unless BIDS_DIR OUT LEVEL follow: those end with the name of a level.
    """
    result: list[str] = []
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if argument not in SEVERAL:
            result.append(argument)
            continue
        end = next((n for n, text in enumerate(rest) if text.startswith("-")), len(rest))
        values = rest[:end]
        if len(values) > 3 and values[-1] in LEVELS:
            values = values[:-3]
        for value in values:
            result += [argument, value]
        if not values:
            result.append(argument)  # click says that a value is missing
        del rest[: len(values)]
    return result


@click.command(cls=BidsCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("bids_dir", type=_FOLDER)
@click.argument("out", type=_FOLDER)
@click.argument("level", metavar="{participant|group}", type=click.Choice(LEVELS))
@click.option(
    "--participant-label", "--participant_label", "subjects", metavar="LABEL...", multiple=True,
    help="Participants, with or without sub-.  [default: all]",
)  # fmt: skip
@click.option(
    "--session-label", "--session_label", "sessions", metavar="LABEL...", multiple=True,
    help="Sessions, with or without ses-.  [default: all]",
)  # fmt: skip
@click.option(
    "--bids-filter-file", "filters", metavar="JSON", type=click.Path(path_type=Path, dir_okay=False),
    help='Which T1w scans, by their entities:  {"t1w": {"run": 1}}',
)  # fmt: skip
@click.option(
    "--skip-bids-validation", "--skip_bids_validator", "skip_check", is_flag=True,
    help="Do not ask for a dataset_description.json. (hz checks only what it needs.)",
)  # fmt: skip
@click.option(
    "--work-dir", "-w", "work", metavar="DIR", type=_FOLDER,
    help="Where participants are worked on and resumed from.  [default: OUT/.hz]",
)  # fmt: skip
@click.option(
    "--prepare/--no-prepare", "raw_heads", default=True,
    help="Strip, correct and register the scans first, as hz-prepare does; --no-prepare: they are brains.  "
    "[default: prepare]",
)  # fmt: skip
@options.heads
@options.model
@options.trust
@options.to_site
@options.space
@options.network
@click.option(
    "--n-cpus", "--nprocs", "--nthreads", "threads", metavar="N", type=click.IntRange(1),
    help="CPU threads in all.  [default: all of this process]",
)  # fmt: skip
@click.option(
    "--omp-nthreads", "omp_threads", metavar="N", type=click.IntRange(1), default=1, show_default=True,
    help="Threads of one step's linear algebra.",
)  # fmt: skip
@click.option(
    "--mem-mb", "--mem", "memory", metavar="MB", type=click.IntRange(1),
    help="Memory to keep to, about: fewer scans are in flight then. One scan is always let through.",
)  # fmt: skip
@click.option(
    "--stop-on-first-crash", is_flag=True,
    help="Begin no more scans once one has failed; what is in flight is finished.",
)  # fmt: skip
@click.option("--reports-only", is_flag=True, help="Make the pages of what is done again, and run nothing.")
@click.option(
    "--bids-database-dir", "database", metavar="DIR", type=click.Path(path_type=Path),
    help="Taken and not used: hz keeps no database of BIDS_DIR.",
)  # fmt: skip
@click.option("--notrack", is_flag=True, help="Taken and not needed: hz sends nothing to anybody.")
@options.redo
@options.dask
@options.audit
@options.progress
@options.version
@click.pass_context
def main(
    ctx: click.Context,
    /,
    bids_dir: Path,
    out: Path,
    level: str,
    subjects: tuple[str, ...],
    work: Path | None,
    shown_as: str,
    plain: bool,
    quiet: bool,
    reports_only: bool,
    database: Path | None,
    notrack: bool,
    **choices: Any,
) -> None:
    """Harmonize the T1w scans of a BIDS data set and predict age from them: a BIDS App.

    participant: BIDS_DIR/sub-*/[ses-*/]anat/*_T1w.nii[.gz] to derivatives in OUT; several processes may work
    on different participants at once. group: all participants' predictions in one table and one page.
    The same command again goes on where it was stopped. Research use only.

    \b
      hz-bids study study/derivatives/hz participant --participant-label 01 02
      hz-bids study study/derivatives/hz group
    """
    raw, out = Path(os.path.abspath(bids_dir)), Path(os.path.abspath(out))
    work = Path(os.path.abspath(work)) if work else None
    del database, notrack  # there is nothing that they could change
    progress = render.progress_of(shown_as, plain=plain, quiet=quiet)
    try:
        if level == "group":
            from hz_runtime.bids.group import run_group

            done, look = run_group(out, subjects, work), "predictions.tsv and report.html"
        elif reports_only:
            from hz_runtime.bids.reports import remake_reports

            done, look = remake_reports(out, subjects, work), "sub-*.html"
        else:
            done = _participants(raw, out, work, subjects, quiet, progress, **choices)
            look = f"sub-*.html and logs{os.sep}"
    finally:
        progress.close()
    for problem in done.problems:
        render.say(click.style("error: ", fg="red") + problem, err=True)
    for note in done.notes:
        render.say(click.style("note: ", fg="yellow") + note, err=True)
    code = _exit_code(done, choices["stop_on_first_crash"]) if level == "participant" else 0
    progress.end(f"{_counted(done)}; see {look} in {out.name}", code, counts=count(done), out=str(out))
    ctx.exit(code)


def _exit_code(done: Level, stop_on_first_crash: bool) -> int:
    """That of the level; a failure that ended it is no interruption."""
    failed = any(scan.status == "failed" for scan in done.scans)
    return 3 if stop_on_first_crash and failed else done.exit_code


def _participants(
    raw: Path,
    out: Path,
    work: Path | None,
    subjects: tuple[str, ...],
    quiet: bool,
    progress: render.Progress,
    *,
    sessions: tuple[str, ...],
    filters: Path | None,
    skip_check: bool,
    raw_heads: bool,
    dof: str,
    brain_mask: str,
    model: Path | None,
    trust: tuple[Path, ...],
    require_signed: bool,
    omp_threads: int,
    memory: int | None,
    stop_on_first_crash: bool,
    dask: str | None,
    **choices: Any,
) -> Level:
    from hz_cli.batch import dask_workers, stop_on_signals, threads_each
    from hz_cli.bundles import open_bundle

    threads_each(omp_threads)
    stop = stop_on_signals(quiet)

    from hz_runtime.batch.budget import voxels_in
    from hz_runtime.batch.executor import Event
    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.bids.filter_file import read_filter
    from hz_runtime.bids.layout import Wanted, check_raw, find_units
    from hz_runtime.bids.participant import run_participants
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.preparation.preparer import Preparation

    trusted = Trust.read(trust, require_signed)
    if not skip_check:
        check_raw(raw)
    wanted, ignored = read_filter(filters) if filters else ({}, ())
    units, notes = find_units(raw, Wanted(subjects, sessions, wanted))
    for note in (*ignored, *notes):
        progress(Event("note", note))
    preparation = Preparation.asked(dof, brain_mask, trusted) if raw_heads else None
    asked = RunOptions(preparation=preparation, max_voxels=memory and voxels_in(memory), **choices)
    bundle = open_bundle(model, trusted, quiet)

    def heard(event: Event) -> None:
        progress(event)
        if stop_on_first_crash and event.result is not None and event.result.status == "failed":
            stop.set()

    with dask_workers(dask) as cluster:
        return run_participants(
            units, bundle, raw, out, asked, work=work, on_event=heard, stop=stop, cluster=cluster
        )


def count(done: Level) -> dict[str, int]:
    """Number of scans by status."""
    return {s: sum(scan.status == s for scan in done.scans) for s in ("ok", "flagged", "skipped", "failed")}


def _counted(done: Level) -> str:
    from hz_runtime.results.run_report import NOTHING_WRITTEN, counted

    text = f"{'interrupted; ' if done.interrupted else ''}{counted(done.scans)}"
    return f"{text}; {NOTHING_WRITTEN}" if done.unchanged else text


if __name__ == "__main__":
    main()
