"""hz-export: checkpoints to ONNX to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hz_cli import options, render

EPILOG = """\b
Default tolerances (brain mean, brain p99.9, years):
  fp32                1e-4, 1e-3, 0.05
  fp32, half weights  1e-3, 1e-2, 0.1
  fp16                2e-3, 2e-2, 0.25

\b
Exit codes: 0 published; 1 refused (precision or parity not what was asked for); 2 usage; 3 a scan of
--scans cannot be used.
"""


def _tolerances(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    """mean=2e-3 p999=2e-2 years=0.25, any of them."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in ("mean", "p999", "years") or not 0 <= number < 1e6:
            raise click.BadParameter(f"{text!r} is not mean=X, p999=X or years=X", ctx, param)
        found[name] = number
    return found


@click.command(cls=render.HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument(
    "checkpoints",
    metavar="CHECKPOINT...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
)
@click.option(
    "--out", "-o", metavar="NAME.hz", required=True, type=click.Path(path_type=Path), help="Bundle to write."
)
@click.option("--fp16", "half", is_flag=True, help="Also write a float16 graph of every network, for GPUs.")
@click.option(
    "--half-weights/--full-weights",
    default=False,
    show_default=True,
    help="Store the float32 graphs' weights as float16: half the file, the same arithmetic.",
)
@click.option(
    "--scans",
    metavar="PATH",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Skull-stripped scans, or a folder of them, to measure parity on; repeatable.  "
    "[default: nilearn's MNI152 brain]",
)
@click.option("--name", metavar="TEXT", help="Name in the manifest and on the model card.  [default: NAME]")
@click.option(
    "--tolerance",
    metavar="KEY=X",
    multiple=True,
    callback=_tolerances,
    help="Refuse past mean=X or p999=X (intensity units inside the brain) or years=X, for all files.",
)
@click.option("--no-parity", is_flag=True, help="Publish without measuring; the manifest says so.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle if there is one.")
@options.version
def main(
    checkpoints: tuple[Path, ...],
    out: Path,
    scans: tuple[Path, ...],
    name: str | None,
    no_parity: bool,
    **choices: Any,
) -> None:
    """Export checkpoints of hz-train as one bundle that hz-run executes without torch.

    CHECKPOINT: the .safetensors files that hz-train named; one harmonizer, one age network, or both.
    Every file is compared with its PyTorch network on real volumes before anything is published.

    \b
      hz-export --fp16 runs/cyclegan/harmonizer.safetensors runs/age/age.safetensors --out site.hz
    """
    _check_installed()
    from hz_export.assemble import ExportOptions, export_bundle

    chosen = ExportOptions(name=name or "", scans=scans, check_parity=not no_parity, **choices)
    export_bundle(checkpoints, out, chosen, render.say)
    render.say(f"next:  hz-run SCAN... --model {out}")


def _check_installed() -> None:
    from importlib.util import find_spec

    from hz_runtime.errors import UsageError

    missing = [name for name in ("torch", "onnx", "onnxscript", "safetensors") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"hz-export needs {', '.join(missing)}, which this environment does not have.",
            "pip install 'hz-mri[export]'",
        )


if __name__ == "__main__":
    main()
