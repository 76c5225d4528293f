"""hz-run status and hz-run gather: a run that was divided among jobs, seen from outside, and put together."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_runtime.batch.status import FolderStatus

COLOURS = {"ok": "green", "flagged": "yellow", "failed": "red", "half done": "red", "running": "blue"}
SHOWN = 20  # scans of each state
_OUT = click.argument("out", metavar="OUT", type=click.Path(path_type=Path, file_okay=False, exists=True))
STATUS_CODES = """\b
Exit codes: 0 all done; 2 usage; 3 some scans failed, were left half done or never reached, or are running.
With --affected: 0 no fix concerns any result; 3 some are, or may be, concerned.
"""
GATHER_CODES = """\b
Exit codes: 0 all done; 1 a file could not be written; 2 usage; 3 some scans failed; 130 some not reached.
"""


@click.command("status", cls=render.HzCommand, context_settings=options.CONTEXT, epilog=STATUS_CODES)
@_OUT
@click.option(
    "--json", "as_json", is_flag=True, help="A JSON object: counts, shards, scans that are not done."
)
@click.option(
    "--missing", is_flag=True, help="Print only the command that runs what is missing, if anything is."
)
@click.option(
    "--affected", is_flag=True, help="List the results of versions that a fix of a later release concerns."
)
@click.pass_context
def status(ctx: click.Context, /, out: Path, as_json: bool, missing: bool, affected: bool) -> None:
    """Say what has become of all scans of a run that was divided with --shard, also while it goes on.

    Done, flagged, failed and why, running, never reached, or left half done by a job that was killed.

    \b
      hz-run status harmonized
      eval "$(hz-run status harmonized --missing)"
      hz-run status harmonized --affected
    """
    if affected:
        if missing:
            raise click.UsageError("--affected and --missing ask for different things: leave one out.")
        from hz_cli import affected as affected_results

        ctx.exit(affected_results.show(affected_results.affected(Path(out)), as_json))
    from hz_runtime.batch.status import folder_status

    found = folder_status(Path(out).absolute())
    done = sum(found.counts()[state] for state in ("ok", "flagged")) == len(found.scans)
    if as_json:
        render.say(json.dumps(found.to_dict(), indent=2))
    elif missing:
        if found.missing:
            render.say(command_for_missing(found))
    else:
        _show(found)
    ctx.exit(0 if done else 3)


def command_for_missing(found: FolderStatus) -> str:
    """What runs the missing scans of a divided run, and no others, as a shell takes it."""
    from hz_runtime.errors import UsageError

    if not found.command:
        raise UsageError(
            "this folder's run was not divided, so that its command is not known.",
            "Give the same command again: it goes on where it was stopped.",
        )
    return shlex.join(["hz-run", *found.command, "--missing"])


def _show(found: FolderStatus) -> None:
    counts = {state: number for state, number in found.counts().items() if number}
    total = len(found.scans)
    text = ", ".join(f"{number} {state}" for state, number in counts.items())
    render.say(f"{total} scan{'' if total == 1 else 's'}: {text}")
    for state in ("failed", "half done", "not reached"):
        scans = [scan for scan in found.scans if scan.state == state]
        for scan in scans[:SHOWN]:
            why = f"  {scan.reason}" if scan.reason else ""
            where = f"  (shard {scan.shard})" if scan.shard else ""
            render.say(f"  {scan.input}  {click.style(state, fg=COLOURS.get(state))}{why}{where}")
        if len(scans) > SHOWN:
            render.say(f"  ... and {len(scans) - SHOWN} more {state}; --json lists all")
    ended = [shard for shard in found.shards if shard.state != "ended"]
    if found.shards:
        render.say(f"{len(found.shards) - len(ended)} of {len(found.shards)} shards have ended")
    for shard in ended[:SHOWN]:
        render.say(f"  shard {shard.shard}  {shard.state}  ({shard.scans} scans)")
    if found.missing and found.command:
        render.say(f"What is missing:  {command_for_missing(found)}")


@click.command("gather", cls=render.HzCommand, context_settings=options.CONTEXT, epilog=GATHER_CODES)
@_OUT
@click.pass_context
def gather(ctx: click.Context, /, out: Path) -> None:
    """Write one table and one report of all shards of a run, as if one process had done them.

    Shards that are gathered may be run again, and gathered again. No job may be at work.
    """
    from hz_runtime.batch.gather import gather as gather_shards

    report = gather_shards(Path(out).absolute())
    for problem in report.problems:
        render.say(click.style("error: ", fg="red") + problem, err=True)
    look = "report.html" if report.run["options"].get("report") else "predictions.tsv and run.json"
    render.say(f"{report.summary()}; see {look} in {out}")
    ctx.exit(report.exit_code)
