"""Commands below another's name: `hz-run status OUT` beside `hz-run SCAN...`.

What such a command does is in its own module; the one that it stands below adds it with `add`.
"""

from __future__ import annotations

from typing import Any

import click

from hz_cli import render

ARGUMENTS = "hz.arguments"  # of a context's `meta`: what was typed after the command's own name


class CommandWithOthers(render.HzCommand):
    """A command that others stand below: the first word chooses one of them by its name.

    One whose name is written as an option (--info) may stand anywhere before "--". All other arguments are
    this command's own, and so is a file that is called like one of them, when it is written with its folder
    (./status).
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.others: dict[str, click.Command] = {}

    def add(self, *commands: click.Command) -> None:
        """Take these commands below this one's name."""
        self.others.update({str(command.name): command for command in commands})

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        own = args[: args.index("--")] if "--" in args else args
        for place, word in enumerate(own):
            if word in self.others and (place == 0 or word.startswith("--")):
                other, rest = self.others[word], [*args[:place], *args[place + 1 :]]
                return other.make_context(f"{info_name} {word}", rest, parent, **extra)
        given = tuple(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[ARGUMENTS] = given
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.command is self:
            return super().invoke(ctx)
        with render.ending_on_errors():
            return ctx.command.invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        if self.others:
            with formatter.section("Other commands, each with --help"):
                rows = [(f"{ctx.info_name} {name}", one) for name, one in self.others.items()]
                formatter.write_dl([(name, one.get_short_help_str(90)) for name, one in rows])
