"""hz-orthanc: a bridge between an Orthanc and hz, without a plugin."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from hz_cli import options, render
from hz_cli.process import how
from hz_cli.subcommands import CommandWithOthers

EPILOG = """\b
Exit codes: 0 ended by SIGTERM or Ctrl-C, or with --once nothing is left; 2 usage; 3 with --once: Orthanc is
away; 4 bundle refused; 5 required engine unavailable.
"""
state = click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("hz-orthanc"),
    envvar="HZ_ORTHANC_STATE",
    help="Folder of the journal and of what is on its way.  [default: $HZ_ORTHANC_STATE, else ./hz-orthanc]",
)


@click.command(cls=CommandWithOthers, context_settings=options.CONTEXT, epilog=EPILOG)
@options.version
@click.option(
    "--url",
    default="http://127.0.0.1:8042",
    envvar="HZ_ORTHANC_URL",
    show_default=True,
    help="Address of Orthanc, http or https.  [$HZ_ORTHANC_URL]",
)
@click.option("--user", envvar="HZ_ORTHANC_USER", default="", help="User of Orthanc.  [$HZ_ORTHANC_USER]")
@click.option(
    "--password-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File whose first line is the password.  [default: $HZ_ORTHANC_PASSWORD]",
)
@click.option(
    "--ca", metavar="FILE", type=click.Path(path_type=Path), help="Certificates to trust for https (PEM)."
)
@state
@click.option("--once", is_flag=True, help="End when nothing is left to do.")
@click.option(
    "--since",
    metavar="N",
    type=click.IntRange(0),
    help="Where an empty journal begins: after this change of Orthanc; 0: with all that is there.  "
    "[default: from now on]",
)
@click.option("--poll", metavar="SECONDS", type=click.FloatRange(0.1), default=5.0, show_default=True,
              help="How often to ask.")  # fmt: skip
@click.option("--tries", metavar="N", type=click.IntRange(1), default=3, show_default=True,
              help="How often a study is tried before it is set aside.")  # fmt: skip
@click.option("--batch", metavar="N", type=click.IntRange(1, 64), default=8, show_default=True,
              help="Series on the way at once; each takes twice its own size of disk.")  # fmt: skip
@how
def main(
    url: str,
    user: str,
    password_file: Path | None,
    ca: Path | None,
    state: Path,
    once: bool,
    since: int | None,
    poll: float,
    tries: int,
    batch: int,
    **choices: Any,
) -> None:
    """Take stable series of a T1-weighted head from an Orthanc, process them, store the results there, once.

    It asks Orthanc over REST, remembers what it has done, and goes on where it was stopped or killed. One
    line a study is printed, without identity. Results carry patient and study with --keep-ids alone. Research
    use only.

    \b
      hz-orthanc --keep-ids
      hz-orthanc --once --since 0 --url https://pacs.example:8443 --user hz --password-file secret
      hz-orthanc status
    """
    import sys

    from hz_cli.batch import one_core_each, stop_on_signals

    one_core_each()
    stop = stop_on_signals(quiet=True)

    from hz_cli.process import opened
    from hz_runtime.batch.folder_lock import locked
    from hz_runtime.hospital.bridge import Bridge, Pace
    from hz_runtime.hospital.journal import Journal
    from hz_runtime.hospital.orthanc import Orthanc, Server, read_password
    from hz_runtime.hospital.process import process_each

    orthanc = Orthanc(Server(url, user, read_password(password_file), ca))
    bundle, how_to = opened(choices)

    def process(studies: Any, stop: threading.Event) -> Any:
        return process_each(studies, bundle, how_to, stop)

    with locked(state), _temporary_files(state / "temporary"):
        journal = Journal(state)
        pace = Pace(poll=poll, tries=tries, batch=batch)
        bridge = Bridge(orthanc, journal, state / "work", process, _say, stop, pace)
        _say(f"bridge to {url}, bundle {bundle.name} {bundle.id[:19]}")
        try:
            finished = bridge.run(since, once)
        finally:
            orthanc.close()
            journal.close()
    _say("ended")
    if once and not finished and not stop.is_set():
        sys.exit(3)


@click.command(context_settings=options.CONTEXT)
@state
def status(state: Path) -> None:
    """What the journal says: how far the bridge has come, and what is set aside and why."""
    from hz_runtime.errors import UsageError
    from hz_runtime.hospital.journal import NAME, Journal

    if not (state / NAME).is_file():
        raise UsageError(f"no journal is in {state.name}.", "Name the folder of the bridge:  --state DIR")
    journal = Journal(state)
    try:
        answered = journal.fact("answered")
        read = "nothing read yet" if journal.cursor is None else f"read to change {journal.cursor}"
        click.echo(f"{read}; Orthanc answered {_moment(answered)}")
        if trouble := journal.fact("trouble"):
            click.echo(f"now: {trouble}")
        counts = journal.counts()
        said = (
            ("done", "done"), ("discarded", "discarded"), ("passed", "no T1w head"),
            ("new", "arriving"), ("pending", "waiting"), ("storing", "to be stored"), ("aside", "set aside"),
        )  # fmt: skip
        click.echo(
            "series: " + (", ".join(f"{counts[k]} {what}" for k, what in said if counts.get(k)) or "none")
        )
        for entry in journal.aside():
            click.echo(f"  {entry.id[:8]} set aside {_moment(entry.changed)}: {entry.text}")
        if counts.get("aside"):
            click.echo("to try them again:  hz-orthanc retry")
    finally:
        journal.close()


@click.command(context_settings=options.CONTEXT)
@state
def retry(state: Path) -> None:
    """Try what was set aside again, when the bridge looks next; it may be running."""
    from hz_runtime.hospital.journal import Journal

    journal = Journal(state)
    try:
        entries = journal.aside()
        for entry in entries:
            journal.set(entry.id, "new", images="", tries=0, due=0.0, look=1)
        click.echo(f"{len(entries)} series to be tried again")
    finally:
        journal.close()


main.add(status, retry)


@contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """Temporary files go to `folder`, emptied before and after: a bridge that is killed leaves a head there,
    which elsewhere would stay for good."""
    from hz_runtime.dicom.convert import make_folder

    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    folder.chmod(0o700)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(folder, ignore_errors=True)


def _moment(seconds: str | float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(float(seconds)).astimezone().isoformat(timespec="seconds")


def _say(line: str) -> None:
    render.say(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}")


if __name__ == "__main__":
    main()
