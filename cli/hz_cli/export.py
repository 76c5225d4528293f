"""hz-export: checkpoints to ONNX to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hz_cli import options, render
from hz_cli.export_import import import_command
from hz_cli.subcommands import CommandWithOthers

NEEDED = ("torch", "onnx", "onnxscript", "safetensors")
EPILOG = """\b
Default tolerances (brain mean, brain p99.9, years):
  fp32                1e-4, 1e-3, 0.05
  fp32, half weights  1e-3, 1e-2, 0.1
  fp16                2e-3, 2e-2, 0.25
  bf16                8e-3, 8e-2, 1
  int8                2e-2, 2e-1, 2; also 2 % of the brain's mean, and 95 % of ages within 0.5 years

\b
Exit codes: 0 published; 1 refused (precision or parity not what was asked for, or an age
network that answers nearly the same for everybody); 2 usage; 3 a scan of
--scans cannot be used, or published without an engine that TensorRT cannot build; 5 the
TensorRT asked for is not here, or cannot build for what is asked.
"""


def _profile(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int, int]:
    """1,4,16: in this order, each at least 1."""
    try:
        least, tuned, most = (int(part) for part in text.split(","))
    except ValueError:
        least, tuned, most = 0, 0, 0
    if not 1 <= least <= tuned <= most:
        raise click.BadParameter(f"{text!r} is not MIN,BEST,MAX with 1 <= MIN <= BEST <= MAX", ctx, param)
    return least, tuned, most


@click.command("brain-mask", cls=render.HzCommand, context_settings=options.CONTEXT)
@click.option(
    "--out",
    "-o",
    metavar="NAME.hz",
    type=click.Path(path_type=Path),
    help="Bundle to write.  [default: $HZ_BRAIN_MASK, else hz/brain-mask.hz in the user's data folder, where "
    "hz-run and hz-prepare look for it]",
)
@click.option(
    "--wheel",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="deepbet's wheel.  [default: the installed deepbet, else pip fetches the wheel]",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle if there is one.")
@options.version
def brain_mask(out: Path | None, wheel: Path | None, overwrite: bool) -> None:
    """Convert deepbet's networks, which find the brain in a raw head, into a bundle.

    deepbet (Fisch et al. 2024) and its weights are under the MIT licence and no part of hz: they are taken
    from its own wheel, checked by sha256, and compared with the original after conversion. Needed once.

    \b
      hz-export brain-mask
      hz-prepare raw/*.nii.gz --out prepared
    """
    options.need("hz-export", "export", *NEEDED)
    from hz_export.brain_mask import export_brain_mask
    from hz_runtime.errors import UsageError
    from hz_runtime.io.atomic import shown
    from hz_runtime.preparation.network_mask import default_place

    target = out or default_place()
    if target is None:
        raise UsageError(
            "this user has no home to keep the networks in.", "Name a place:  --out brain-mask.hz"
        )
    bundle = export_brain_mask(target, wheel, overwrite=overwrite, say=render.say)
    render.say(f"{shown(target)}: {len(bundle.models)} models, {bundle.id[:19]}...")
    render.say("next:  hz-prepare HEAD... --out DIR" + (f" --brain-mask {shown(target)}" if out else ""))


@click.command(cls=CommandWithOthers, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument(
    "checkpoints",
    metavar="CHECKPOINT...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@click.option("--out", "-o", metavar="NAME.hz", type=click.Path(path_type=Path), help="Bundle to write.")
@click.option("--fp16", is_flag=True, help="Also write a float16 graph of every network, for GPUs.")
@click.option("--bf16", is_flag=True, help="Also write a bfloat16 graph: float32's range, for newer GPUs.")
@click.option("--int8", is_flag=True, help="Also write an int8 graph that follows --plan.")
@click.option(
    "--plan",
    "plans",
    metavar="PLAN.json",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Precision plan of hz-calibrate for one network; repeatable. Scans that it was made on are left out "
    "of the parity that is measured.",
)
@click.option(
    "--engine",
    type=click.Choice(["none", "tensorrt", "rtx"]),
    default="none",
    show_default=True,
    help="Also build TensorRT engines of those graphs: for this machine's GPU, or, on any machine, for "
    "workstation GPUs (TensorRT for RTX).",
)
@click.option(
    "--batches",
    metavar="MIN,BEST,MAX",
    default="1,4,16",
    show_default=True,
    callback=_profile,
    help="Batch sizes that engines accept, and the one they are tuned for.",
)
@click.option(
    "--capability",
    metavar="X.Y",
    multiple=True,
    help="Compute capability to build rtx engines for; repeatable.  [default: all it knows from 8.0 on]",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="tensorrt: for Ampere and newer, not only this GPU."
)
@click.option("--refit", is_flag=True, help="Engines whose weights can be replaced; needs a GPU.")
@click.option("--strip-weights", is_flag=True, help="Engines without weights, refitted where they run.")
@click.option(
    "--timing-cache",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="tensorrt: remember kernel timings between builds.",
)
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
    "[default: the MNI152 brain]",
)
@click.option("--name", metavar="TEXT", help="Name in the manifest and on the model card.  [default: NAME]")
@click.option("--note", metavar="TEXT", default="", help="A remark for the model card.")
@click.option(
    "--tolerance",
    metavar="KEY=X",
    multiple=True,
    callback=options.numbers(*options.TOLERANCES),
    help=f"Refuse, for all files, past any of {options.TOLERANCES_HELP}.",
)
@click.option(
    "--allow-constant-age",
    is_flag=True,
    help="Publish an age network, too, that answers nearly the same for everybody; the model card says so.",
)
@click.option(
    "--allow-moved-target",
    is_flag=True,
    help="Publish a harmonizer, too, that changes the scans of its own target site; the model card says so.",
)
@click.option("--no-parity", is_flag=True, help="Publish without measuring; the manifest says so.")
@click.option(
    "--localize",
    is_flag=True,
    help="Where a file fails parity, bisect over its nodes and name those whose precision breaks it; takes "
    "minutes then, and nothing otherwise.",
)
@click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Sign the bundle with this private key (PEM), as hz-bundle sign does.",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle if there is one.")
@click.option(
    "--triton",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write the bundle as a model repository of Triton, for hz-run --backend remote. Of a bundle "
    "that is there:  hz-export --triton DIR NAME.hz",
)
@click.option(
    "--instances",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="--triton: instances of every network on each device.",
)
@options.version
def main(
    checkpoints: tuple[Path, ...],
    out: Path | None,
    scans: tuple[Path, ...],
    name: str | None,
    no_parity: bool,
    fp16: bool,
    bf16: bool,
    int8: bool,
    sign: Path | None,
    triton: Path | None,
    instances: int,
    **choices: Any,
) -> None:
    """Export checkpoints of hz-train as one bundle that hz-run executes without torch.

    CHECKPOINT: the .safetensors files that hz-train named; a harmonizer, an age network and a diagnosis
    network, or any of them, of volumes or slices.
    Every file is compared with its PyTorch network on real volumes before anything is published.

    \b
      hz-export --fp16 runs/cyclegan/harmonizer.safetensors runs/age/age.safetensors --out site.hz
      hz-export --fp16 --engine rtx harmonizer.safetensors --out site.hz
    """
    if triton is not None and out is None and len(checkpoints) == 1 and checkpoints[0].suffix == ".hz":
        _serve(checkpoints[0], triton, instances)
        return
    if out is None:
        raise click.UsageError("Missing option '--out' / '-o'.")
    options.need("hz-export", "export", *NEEDED)
    if no_parity and choices["localize"]:
        raise click.UsageError("--localize explains parity that failed: leave --no-parity out.")
    from hz_export.assemble import export_bundle
    from hz_export.export_options import ExportOptions
    from hz_runtime.bundle.signing_keys import SigningKey

    asked = {"fp16": fp16, "bf16": bf16, "int8": int8}
    chosen = ExportOptions(
        name=name or "",
        scans=scans,
        check_parity=not no_parity,
        precisions=tuple(word for word, on in asked.items() if on),
        build=_engine_options(choices),
        progress=True,
        key=None if sign is None else SigningKey.read(sign),
        **choices,
    )
    export_bundle(checkpoints, out, chosen, render.say)
    if triton is not None:
        _serve(out, triton, instances)
    render.say(f"next:  hz-run SCAN... --model {out}")


def _serve(bundle: Path, folder: Path, instances: int) -> None:
    """Write a verified bundle as a model repository of Triton."""
    from hz_export.triton import write_repository
    from hz_runtime.bundle.store import load_bundle

    write_repository(load_bundle(bundle), folder, instances, render.say)
    render.say(f"next:  tritonserver --model-repository={folder}")
    render.say(f"       HZ_REMOTE=http://HOST:8000 hz-run SCAN... --model {bundle} --require remote")


def _engine_options(choices: dict[str, Any]) -> Any:
    """Take the choices about engines out of `choices`: EngineOptions, or None for --engine none."""
    from hz_export.engine_target import EngineOptions
    from hz_runtime.bundle.engine_cache import Profile

    flavour = {"none": "", "rtx": "tensorrt_rtx"}.get(choices["engine"], choices["engine"])
    del choices["engine"]
    chosen = EngineOptions(
        flavour=flavour,
        profile=Profile(*choices.pop("batches")),
        capability=tuple(choices.pop("capability")),
        hardware_compatible=choices.pop("hardware_compatible"),
        refit=choices.pop("refit"),
        strip=choices.pop("strip_weights"),
        timing_cache=choices.pop("timing_cache"),
    )
    return chosen if flavour else None


main.add(brain_mask, import_command)

if __name__ == "__main__":
    main()
