"""hz-export import: a published network of others to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hz_cli import options, render

NEEDED = ("torch", "onnx", "onnxscript", "safetensors", "h5py")


def _listed(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """--list: what can be imported, and where its authors keep it."""
    if not asked or ctx.resilient_parsing:
        return
    options.need("hz-export", "export", *NEEDED)
    from hz_export.imported.importing import licence
    from hz_export.imported.table import IMPORTABLE

    for network in IMPORTABLE.values():
        click.echo(f"{network.name}: {network.title}")
        click.echo(f"  {', '.join(network.files)} of {network.source}; {licence(network)}")
        if network.sha256:
            for file, digest in zip(network.files, network.sha256, strict=True):
                click.echo(f"  sha256 {digest}  {file}")
    ctx.exit()


@click.command("import", cls=render.HzCommand, context_settings=options.CONTEXT)
@click.argument("name", metavar="NAME")
@click.argument(
    "weights", metavar="WEIGHTS...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option("--out", "-o", metavar="BUNDLE.hz", type=click.Path(path_type=Path), required=True)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_listed,
    help="What can be imported, where its authors keep it, and under which licence.",
)  # fmt: skip
@click.option("--accept-licence", is_flag=True, help="Go on where the weights forbid commercial use.")
@click.option("--fp16", is_flag=True, help="Also write a float16 graph of every network, for GPUs.")
@click.option("--bf16", is_flag=True, help="Also write a bfloat16 graph: float32's range, for newer GPUs.")
@click.option("--int8", is_flag=True, help="Also write an int8 graph that follows --plan.")
@click.option(
    "--plan", "plans", metavar="PLAN.json", multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Precision plan of hz-calibrate, made on an earlier import of the same weights.",
)  # fmt: skip
@click.option(
    "--half-weights/--full-weights", default=False, show_default=True,
    help="Store the float32 graph's weights as float16: half the file, the same arithmetic.",
)  # fmt: skip
@click.option(
    "--scans", metavar="PATH", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Skull-stripped scans, or a folder of them, to measure parity on; repeatable.  "
    "[default: the MNI152 brain]",
)  # fmt: skip
@click.option(
    "--title", metavar="TEXT", help="Name in the manifest and on the model card.  [default: BUNDLE]"
)
@click.option(
    "--tolerance", metavar="KEY=X", multiple=True, callback=options.numbers(*options.TOLERANCES),
    help=f"Refuse, for all files, past any of {options.TOLERANCES_HELP}.",
)  # fmt: skip
@click.option("--no-parity", is_flag=True, help="Publish without measuring; the manifest says so.")
@click.option(
    "--sign", metavar="KEY", type=click.Path(path_type=Path),
    help="Sign the bundle with this private key (PEM), as hz-bundle sign does.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the bundle if there is one.")
@options.version
def import_command(
    name: str,
    weights: tuple[Path, ...],
    out: Path,
    accept_licence: bool,
    fp16: bool,
    bf16: bool,
    int8: bool,
    title: str | None,
    no_parity: bool,
    sign: Path | None,
    **choices: Any,
) -> None:
    """Make a bundle of a published network of others, from the weights that you downloaded.

    NAME: one of --list.  WEIGHTS: the authors' files, or the folder that holds them. They are read without
    TensorFlow, as tensors and nothing else; every one has to find its place. hz itself downloads nothing.

    \b
      hz-export import --list
      hz-export import iguane iguane_weights.h5 --out iguane.hz
      hz-run --prepare HEAD.nii.gz --model iguane.hz
    """
    options.need("hz-export", "export", *NEEDED)
    from hz_export.export_options import ExportOptions
    from hz_export.imported.importing import import_network
    from hz_export.imported.table import importable
    from hz_runtime.bundle.signing_keys import SigningKey

    asked = {"fp16": fp16, "bf16": bf16, "int8": int8}
    chosen = ExportOptions(
        name=title or "",
        check_parity=not no_parity,
        precisions=tuple(word for word, on in asked.items() if on),
        key=None if sign is None else SigningKey.read(sign),
        **choices,
    )
    published = importable(name)
    import_network(published, weights, out, chosen, accept_licence=accept_licence, say=render.say)
    render.say(f"next:  hz-run --prepare HEAD... --model {out}")
