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
Exit codes: 0 all done; 2 usage; 3 some scans or participants failed, the rest are complete;
4 bundle refused; 5 required engine unavailable; 130 interrupted (the same command goes on).
"""
LEVELS = ("participant", "group")
SEVERAL = ("--participant-label", "--participant_label", "--session-label", "--session_label")
_FOLDER = click.Path(path_type=Path, file_okay=False)


class BidsCommand(render.HzCommand):
    """A command whose label options take several values, `--participant-label 01 02`, as BIDS Apps do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


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
    "--n-cpus", "--nprocs", "threads", metavar="N", type=click.IntRange(1),
    help="CPU threads for the network.  [default: all of this process]",
)  # fmt: skip
@options.redo
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
    quiet: bool,
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
    if level == "group":
        from hz_runtime.bids.group import run_group

        done, look = run_group(out, subjects, work), "predictions.tsv and report.html"
    else:
        done, look = _participants(raw, out, work, subjects, quiet, **choices), f"sub-*.html and logs{os.sep}"
    for problem in done.problems:
        render.say(click.style("error: ", fg="red") + problem, err=True)
    for note in done.notes:
        render.say(click.style("note: ", fg="yellow") + note, err=True)
    render.say(f"{_counted(done)}; see {look} in {out.name}")
    ctx.exit(done.exit_code if level == "participant" else 0)


def _participants(
    raw: Path,
    out: Path,
    work: Path | None,
    subjects: tuple[str, ...],
    quiet: bool,
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
    plain: bool,
    **choices: Any,
) -> Level:
    from hz_cli.batch import one_core_each, stop_on_signals
    from hz_cli.bundles import open_bundle

    one_core_each()
    stop = stop_on_signals(quiet)

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
    progress = render.Progress(plain=plain, quiet=quiet)
    try:
        for note in (*ignored, *notes):
            progress(Event("note", note))
        preparation = Preparation.asked(dof, brain_mask, trusted) if raw_heads else None
        asked = RunOptions(preparation=preparation, **choices)
        bundle = open_bundle(model, trusted, quiet)
        return run_participants(units, bundle, raw, out, asked, work=work, on_event=progress, stop=stop)
    finally:
        progress.close()


def _counted(done: Level) -> str:
    from hz_runtime.results.run_report import NOTHING_WRITTEN

    counts = {s: sum(scan.status == s for scan in done.scans) for s in ("ok", "flagged", "skipped", "failed")}
    parts = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "-"
    total = len(done.scans)
    text = f"{'interrupted; ' if done.interrupted else ''}{total} scan{'' if total == 1 else 's'}: {parts}"
    return f"{text}; {NOTHING_WRITTEN}" if done.unchanged else text


if __name__ == "__main__":
    main()
