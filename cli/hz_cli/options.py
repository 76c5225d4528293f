"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
BACKENDS = (
    "auto",
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime",
    "openvino",
    "onnxruntime-cuda",
    "onnxruntime-cpu",
)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


model = click.option(
    "--model",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Bundle (NAME.hz) to run.  [default: $HZ_BUNDLE, else the reference bundle]",
)
to_site = click.option("--to", metavar="SITE", help="Site to harmonize to, where the bundle maps to several.")
backend = together(
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="Engine to try first; auto takes the fastest one installed.",
    ),
    click.option(
        "--require",
        type=click.Choice(BACKENDS[1:]),
        help="Fail (exit 5) rather than run on any other engine.",
    ),
    click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(1),
        help="CPU threads for the network.  [default: all of this process]",
    ),
)
engine = together(
    click.option(
        "--no-build",
        is_flag=True,
        help="Never build a TensorRT engine here; use those of the bundle and of earlier runs.",
    ),
    click.option(
        "--cuda-graphs", "graphs", is_flag=True, help="TensorRT: record the GPU's work once, then replay it."
    ),
)
progress = together(
    click.option("--plain", is_flag=True, help="One line a scan instead of a progress bar."),
    click.option("--quiet", "-q", is_flag=True, help="Print only failed scans and the last line."),
)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import hz_runtime

        click.echo(f"hz {hz_runtime.__version__}")
        ctx.exit()


version = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version and stop.",
)
