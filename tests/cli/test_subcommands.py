"""Commands below another's name, and what stays that one's own."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from hz_cli.subcommands import CommandWithOthers
from hz_runtime.errors import UsageError


@click.command(cls=CommandWithOthers)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--flag", is_flag=True)
def main(inputs: tuple[str, ...], flag: bool) -> None:
    """Run."""
    click.echo(f"run {' '.join(inputs)} {flag}")


@click.command("status")
@click.argument("out")
def status(out: str) -> None:
    """What became of it. More than one sentence is not shown above."""
    if out == "wrong":
        raise UsageError("wrong is no folder.", "Name another.")
    click.echo(f"status {out}")


@click.group("audit")
def audit() -> None:
    """A command with words of its own."""


@audit.command("verify")
@click.argument("out")
def verify(out: str) -> None:
    """Check it."""
    click.echo(f"verified {out}")


main.add(status, audit)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.nii"], "run a.nii False"),
        (["--flag", "status"], "run status True"),  # only the first word chooses
        (["./status"], "run ./status False"),
        (["a.nii", "status"], "run a.nii status False"),
        (["status", "out"], "status out"),
        (["audit", "verify", "out"], "verified out"),
    ],
)
def test_the_first_word_chooses(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output.strip()) == (0, says)


def test_help_names_them_and_errors_end_them_alike() -> None:
    shown = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert "main status What became of it." in shown and "More than" not in shown
    assert "Usage: main status [OPTIONS] OUT" in CliRunner().invoke(main, ["status", "--help"]).output
    assert CliRunner().invoke(main, []).exit_code == 2
    done = CliRunner().invoke(main, ["status", "wrong"])
    assert done.exit_code == 2 and done.stderr == "error: wrong is no folder.\n  Name another.\n"
