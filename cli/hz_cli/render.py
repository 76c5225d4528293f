"""What commands print: progress, results and errors. Nothing of it is needed to process anything."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from hz_runtime.batch.executor import Event
    from hz_runtime.results.scan_result import ScanResult

# What the system refuses for the sake of a name that the user gave, and not for a fault of hz.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}
COLOURS = {"ok": "green", "flagged": "yellow", "failed": "red", "skipped": "blue"}


class CheckedCommand(click.Command):
    """A command that takes no empty words for files.  Its errors are raised: its group ends on them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = {} if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[0]
        for param in self.params:
            named = isinstance(param, click.Argument) or isinstance(param.type, click.Path)
            values = given.get(str(param.name))
            if named and "" in (values if isinstance(values, (list, tuple)) else (values,)):
                # pathlib takes it for the current folder: a run of everything there, or results beside it.
                what = param.make_metavar(ctx) if isinstance(param, click.Argument) else param.opts[0]
                raise click.UsageError(
                    f"an empty word is given for {what}: is a variable of the shell unset?", ctx
                )
        return super().parse_args(ctx, args)


class HzCommand(CheckedCommand):
    """A command of its own, which ends on an error as `ending_on_errors` says."""

    def invoke(self, ctx: click.Context) -> Any:
        with ending_on_errors():
            return super().invoke(ctx)


class HzGroup(click.Group):
    """A group whose commands take no empty words for files; `run_command` ends on their errors."""

    command_class = CheckedCommand


def run_command(command: click.Command) -> None:
    """Run a command or a group from its entry point, ending on errors as `ending_on_errors` says."""
    with ending_on_errors():
        command()


@contextmanager
def ending_on_errors() -> Iterator[None]:
    """End the process on an HzError with its message, its remedy and its exit code.

    A file that cannot be made or opened is the user's to mend: exit 2. Anything else that escapes is a fault
    of hz: one line and exit 1; the traceback is for HZ_DEBUG=1.
    """
    from hz_runtime.errors import HzError, UsageError

    try:
        yield
    except HzError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HZ_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in _REFUSED and isinstance(error.filename, str):
            name = os.path.basename(os.path.normpath(error.filename))
            remedy = "Check the name, the permissions of its folder, and the space on the disk."
            print_error(UsageError(f"{name}: {error.strerror}.", remedy))
            sys.exit(UsageError.exit_code)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        click.secho(f"internal error: {text}", fg="red", err=True)
        click.echo("  Please report it; HZ_DEBUG=1 before the command shows where.", err=True)
        sys.exit(1)


def print_error(error: Exception) -> None:
    """Message and remedy of an HzError, on stderr."""
    click.echo(click.style("error: ", fg="red") + str(error), err=True)


class Progress:
    """Shows a run: a bar with the time left on a terminal, else one line a scan.

    Results go to stdout; the bar, notes and failures' details to stderr. A reader that goes away
    (`hz-run ... | head`) ends the output and not the run.
    """

    def __init__(self, *, plain: bool = False, quiet: bool = False, stderr: TextIO | None = None) -> None:
        self._stderr = stderr or sys.stderr
        self._quiet = quiet
        self._bar_wanted = not (plain or quiet) and self._stderr.isatty()
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._start(event)
        elif event.kind == "note":
            if not self._quiet:
                self._say(event.text, err=True)
        elif event.result is not None:
            self._scan(event, event.result)

    def _start(self, event: Event) -> None:
        if self._quiet:
            return
        self._say(f"{event.total} scan{'' if event.total == 1 else 's'}; {event.text}", err=True)
        if self._bar_wanted:
            from tqdm import tqdm

            self._bar = tqdm(
                total=event.total, unit="scan", file=self._stderr, dynamic_ncols=True, smoothing=0.1
            )

    def _scan(self, event: Event, result: ScanResult) -> None:
        if self._bar is not None:
            with suppress(OSError):  # a terminal that is gone
                self._bar.update(event.done - self._bar.n)
            if result.status in ("flagged", "failed"):
                self._say(scan_line(result, event.text))
        elif not self._quiet:
            width = len(str(event.total))
            self._say(f"[{event.done:>{width}}/{event.total}] {scan_line(result, event.text)}")
        elif result.status == "failed":
            self._say(scan_line(result, event.text), err=True)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def end(self, text: str, exit_code: int, **facts: Any) -> None:
        """The last line of a run.  facts : see `JsonProgress`."""
        self.close()
        say(text)

    def _say(self, text: str, err: bool = False) -> None:
        say(text, err=err, bar=self._bar)


class JsonProgress(Progress):
    """Shows a run to a program: one JSON object a line on stdout, each with its "event".

        start    "text" (on what it runs), "total" scans
        note     "text"
        scan     "input", "status", "reason", "age" in years or null, "done" of "total"
        end      "text", "exit_code", and what the command knows: "counts", "out"

    A run that cannot be started has no end, a message on stderr and an exit code.
    """

    def __init__(self) -> None:
        super().__init__(plain=True)

    def __call__(self, event: Event) -> None:
        result = event.result
        if event.kind == "start":
            self._line("start", text=event.text, total=event.total)
        elif event.kind == "note":
            self._line("note", text=event.text)
        elif result is not None:
            self._line(
                "scan",
                input=result.input,
                status=result.status,
                reason=result.reason,
                age=result.prediction.age,
                done=event.done,
                total=event.total,
            )

    def end(self, text: str, exit_code: int, **facts: Any) -> None:
        self._line("end", text=text, exit_code=exit_code, **facts)

    @staticmethod
    def _line(event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}, allow_nan=False, ensure_ascii=False)
        # Bytes of a file name that are no text become "?": half a surrogate pair is no JSON.
        say(json.dumps(json.loads(line.encode("utf-8", "replace"))))


def progress_of(shown_as: str, *, plain: bool, quiet: bool) -> Progress:
    """What shows a run as `options.progress` asks for."""
    return JsonProgress() if shown_as == "json" else Progress(plain=plain, quiet=quiet)


def say(text: str, *, err: bool = False, bar: Any = None) -> None:
    """Print a line, above the bar if there is one; an output that cannot be written is not an error.

    Letters that its encoding lacks are escaped.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        if bar is not None:
            bar.clear()
        click.echo(text, err=err)
        if bar is not None:
            bar.refresh()
    except (OSError, ValueError):
        # The other end is gone, or its disk is full. Point the stream at nothing, or Python complains when
        # it exits.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, (sys.stderr if err else sys.stdout).fileno())
        os.close(devnull)


def scan_line(result: ScanResult, source: str = "") -> str:
    """One scan in one line: name, status, age, and why.  source : of DICOM, where it came from."""
    parts = [
        f"{result.input} (of {source})" if source else result.input,
        click.style(result.status, fg=COLOURS[result.status]),
    ]
    found = result.prediction
    if found.age_raw is not None and found.age is not None:
        raw = "" if found.age_corrected is None else f" (raw {found.age_raw:.1f})"
        parts.append(f"age {found.age:.1f}{raw}")
    if result.reason:
        parts.append(result.reason)
    return "  ".join(parts)
