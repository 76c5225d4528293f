"""hz-run --self-test: whether this installation computes what the bundle's maker saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hz_cli import options, render

EPILOG = """\b
Exit codes: 0 all passed; 1 a check failed; 2 usage, or the bundle carries no self-test; 4 bundle refused.
"""


@click.command("--self-test", cls=render.HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@options.model
@options.trust
@click.option("--quiet", "-q", is_flag=True, help="Print only failed checks and the last line.")
@click.pass_context
def self_test(
    ctx: click.Context, model: Path | None, trust: tuple[Path, ...], require_signed: bool, quiet: bool
) -> None:
    """Hold every engine that is here to the answers that the bundle expects about a made-up head.

    Also whether files, template and niimath are those that hz was made with. Writes nothing; takes seconds.
    """
    from hz_cli.bundles import open_bundle
    from hz_runtime.bundle.trust import Trust

    bundle = open_bundle(model, Trust.read(trust, require_signed), quiet)
    ctx.exit(1 if report(bundle, quiet) else 0)


def report(bundle: Any, quiet: bool = False) -> int:
    """Run and print the self-test of a bundle; returns how many checks failed. Raises what that raises."""
    from hz_runtime.batch.self_test import Check
    from hz_runtime.batch.self_test import self_test as run

    def show(check: Check) -> None:
        if check.fault or not quiet:
            render.say(str(check))

    done = run(bundle, show)
    render.say(done.summary())
    return len(done.failed)
