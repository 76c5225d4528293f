"""hz-run audit: whether an audit file is as it was written."""

from __future__ import annotations

from pathlib import Path

import click

from hz_cli import options, render


@click.group(context_settings=options.CONTEXT)
def audit() -> None:
    """Check the files that --audit writes."""


@audit.command("verify", cls=render.HzCommand)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--holds",
    metavar="HASH",
    help="Also find the record of this sha256, noted elsewhere before: who can write FILE can forge it all.",
)
def verify(path: Path, holds: str | None) -> None:
    """Find any edit, cut or other order in FILE, which --audit wrote; exit 1 and the line where there is one.

    Says how many runs there are and which have no end. Note the last hash where nobody who can write FILE
    can reach it, and give it to --holds the next time.
    """
    from hz_runtime.errors import HzError
    from hz_runtime.io import hash_chain
    from hz_runtime.io.atomic import shown

    chain = hash_chain.verify(path)
    begun: dict[str, int] = {}
    found = not holds
    for record in hash_chain.records(path):
        found = found or record["sha256"] == holds
        if record.get("event") == "start":
            begun[str(record.get("run"))] = record["n"]
        if record.get("event") == "end":
            begun[str(record.get("run"))] = 0
    if not found:
        raise HzError(f"{shown(path)} holds no record {str(holds)[:12]}...: it is not the file it was.", "")
    runs = f"{len(begun)} run{'' if len(begun) == 1 else 's'}"
    render.say(f"{shown(path)} holds: {chain.last.n} records of {runs}; the last is {chain.last.sha256}")
    for number in sorted(filter(None, begun.values())):
        render.say(f"  the run that starts in record {number} has no end: it goes on, or was killed")
    if chain.torn or chain.ends_torn:
        many = chain.torn + chain.ends_torn
        render.say(f"  {many} unfinished record{'' if many == 1 else 's'}, as a crash leaves them")
