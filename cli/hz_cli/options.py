"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class EngineChoice(click.Choice):
    """The names in the table of engines, which is read where a command's help or arguments ask for them.

    auto : whether "auto" is one of them.
    """

    def __init__(self, auto: bool) -> None:
        self.auto = auto
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        from hz_runtime.backends.registry import backend_names

        return backend_names()[0 if self.auto else 1 :]


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


# Of a file's parity (hz_export.differences.KEYS, which is not imported for a command's --help).
TOLERANCES = ("mean", "p999", "years", "relative", "years95", "probability")
TOLERANCES_HELP = (
    "mean=X, p999=X (intensity units inside the brain), relative=X (mean over the brain's mean), years=X "
    "(largest), years95=X (that 95 % of scans keep to), probability=X (largest)"
)


def numbers(*names: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, float]]:
    """Callback of a repeatable KEY=X option: {name: number}, any of `names`, each from 0 to a million."""

    def parsed(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
        found = {}
        for text in given:
            name, _, value = text.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if name not in names or not 0 <= number < 1e6:
                wanted = ", ".join(f"{name}=X" for name in names)
                raise click.BadParameter(f"{text!r} is none of {wanted}", ctx, param)
            found[name] = number
        return found

    return parsed


model = click.option(
    "--model",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Bundle (NAME.hz) to run.  [default: $HZ_BUNDLE, else the reference bundle]",
)
trust = together(
    click.option(
        "--trust",
        metavar="KEY",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Public key (PEM) or certificate that a signed bundle is held to; repeatable.  "
        "[default: the files of $HZ_TRUST]",
    ),
    click.option("--require-signed", is_flag=True, help="Refuse bundles that none of these keys signed."),
)
to_site = click.option("--to", metavar="SITE", help="Site to harmonize to, where the bundle maps to several.")
space = click.option(
    "--space",
    type=click.Choice(["native", "model", "both"]),
    default="native",
    show_default=True,
    help="native: each scan's own voxels; model: the network's grid.",
)
network = together(
    click.option(
        "--backend",
        type=EngineChoice(auto=True),
        default="auto",
        show_default=True,
        help="Engine to try first; auto takes the fastest one installed.",
    ),
    click.option(
        "--require",
        type=EngineChoice(auto=False),
        help="Fail (exit 5) rather than run on any other engine.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16", "int8", "fast"]),
        help="Run the bundle's files of this precision, where it holds some; bf16 on OpenVINO: compute its "
        "float32 files so. fast: the quickest that the bundle has evidence for on this engine and CPU.  "
        "[default: fp16 on a GPU, fp32 on a CPU]",
    ),
)
backend = together(
    network,
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
    click.option("--cuda-graphs", is_flag=True, help="TensorRT: record the GPU's work once, then replay it."),
)
heads = together(
    click.option(
        "--dof",
        type=click.Choice(["6", "12"]),
        default="6",
        show_default=True,
        help="Of the registration. 6: rotate and shift (Komandur 2023); 12: scale and shear to the template "
        "too (Bashyam 2020). A bundle whose recipe names its own is prepared by that.",
    ),
    click.option(
        "--brain-mask",
        metavar="auto|none|template|network|FILE",
        default="auto",
        show_default=True,
        help="auto: strip what is not stripped yet, by a network where one is here (hz-export brain-mask), "
        "else by the template's mask; network: by a network or not at all; template: strip in any case, by "
        "the template's mask; none: the scans are stripped; FILE: the mask of a single scan, or a bundle "
        "with a network.",
    ),
)
cohort = click.option(
    "--cohort",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="participants.tsv: file, site, age, sex, group, and participant_id for rescans.",
)
dask = click.option(
    "--dask",
    metavar="ADDRESS|local[:N]|slurm[:N]",
    help="Do the scans on Dask workers: of a scheduler that runs, of N processes started here, or of N Slurm "
    "jobs as dask-jobqueue's configuration describes them.",
)
redo = click.option("--overwrite", is_flag=True, help="Redo scans that an earlier run has done.")
audit = click.option(
    "--audit",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Account for this run in FILE, which is only appended to and may serve many runs: who, what, on "
    "which engine, and hashes of what came in and out; no names.  hz-run audit verify FILE checks it.",
)
progress = together(
    click.option(
        "--progress",
        "shown_as",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="json: one JSON object a line on stdout, and nothing else there, for programs that watch.",
    ),
    click.option("--plain", is_flag=True, help="One line a scan instead of a progress bar."),
    click.option("--quiet", "-q", is_flag=True, help="Print only failed scans and the last line."),
)


def need(who: str, extra: str, *packages: str) -> None:
    """Raise UsageError where packages of an extra are not installed; imports none of them."""
    from importlib.util import find_spec

    from hz_runtime.errors import UsageError

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{who} needs {', '.join(missing)}, which this environment does not have.",
            f"pip install 'hz-mri[{extra}]'",
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
