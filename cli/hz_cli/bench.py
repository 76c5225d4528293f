"""hz-bench: speed and parity of a bundle on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from hz_cli import options, render
from hz_cli.bench_table import parity_lines, speed_lines

SPEED_NOTES = """\b
ms: median milliseconds a volume (of a network of slices: a slice); p95: what 95 % of the calls kept to.
model: the network alone, its data where it computes; transfers: from host memory to host memory.
of peak: share of the matrix multiplication speed measured in the same rounds.
x base: how many times faster than the baseline, median over rounds that took turns.
"""
PARITY_NOTES = """\b
Exit codes: 0 within tolerance; 1 past it, or an engine failed; 2 usage; 3 a scan of --scans cannot be
used; 4 bundle refused; 5 no engine is here.
"""


def _batches(ctx: click.Context, param: click.Parameter, given: str) -> tuple[int, ...]:
    """1,4,16"""
    try:
        sizes = tuple(int(part) for part in given.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= size <= 1024 for size in sizes):
        raise click.BadParameter(f"{given!r} is not a list such as 1,4,16", ctx, param)
    return tuple(dict.fromkeys(sizes))


_bundle = click.argument("bundle", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path))
_scans = click.option(
    "--scans",
    metavar="PATH",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Skull-stripped scans, or a folder of them; repeatable.",
)
_json = click.option(
    "--json",
    "json_out",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Also write everything as JSON; - for standard output, and the table goes to standard error.",
)
_threads = click.option(
    "--threads", metavar="N", type=click.IntRange(1), help="CPU threads.  [default: all of this process]"
)


@click.group(context_settings=options.CONTEXT)
@options.version
def bench() -> None:
    """Measure a bundle on this machine.

    \b
      hz-bench speed
      hz-bench parity reference.hz --checkpoint harmonizer.safetensors --scans study/
    """


@bench.command(cls=render.HzCommand, context_settings=options.CONTEXT, epilog=SPEED_NOTES)
@_bundle
@click.option(
    "--role", type=click.Choice(["harmonizer", "age", "diagnosis"]),
    help="Network to time.  [default: the harmonizer, else the age network]",
)  # fmt: skip
@options.to_site
@click.option(
    "--batch", "batches", metavar="N,N,...", default="1,4,16", show_default=True, callback=_batches,
    help="Volumes a call.",
)  # fmt: skip
@click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The network's checkpoint: PyTorch's own ways of running it take turns with the engines.",
)
@click.option(
    "--weights", metavar="PATH", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Of a bundle of hz-export import, the files that it was imported from, or their folder: the "
    "authors' network in PyTorch, whole volumes at a time, takes turns with the engines; repeatable. "
    "TensorFlow is never run: PyTorch stands in for it.",
)  # fmt: skip
@_scans
@click.option("--only", metavar="TEXT", multiple=True, help="Engines whose names hold TEXT; repeatable.")
@click.option("--repeat", type=click.IntRange(1), default=10, show_default=True, help="Timed rounds.")
@click.option(
    "--warmup", type=click.IntRange(0), default=3, show_default=True, help="Untimed calls of each first."
)
@click.option(
    "--seconds", type=click.FloatRange(0), default=60.0, show_default=True,
    help="Start no more rounds of a batch size after this, once three are done.",
)  # fmt: skip
@_threads
@_json
def speed(
    bundle: Path | None,
    json_out: Path | None,
    repeat: int,
    warmup: int,
    seconds: float,
    **choices: Any,
) -> None:
    """Time BUNDLE's network on every engine here, all of them in turns.

    Engines, PyTorch (--checkpoint) and a matrix multiplication take turns, so that ratios are fair on a
    machine that drifts. With --scans, whole runs (read, prepare, infer, write) are timed too.
    """
    if choices["checkpoint"] and choices["weights"]:
        raise click.UsageError("give either --checkpoint or --weights.")
    for name, needed in {
        "checkpoint": ("torch", "onnx", "safetensors"),
        "weights": ("torch", "h5py"),
    }.items():
        if choices[name]:
            options.need(f"--{name}", "export", *needed)
    from hz_export.bench import Plan
    from hz_export.speed import SpeedOptions, measure_speed
    from hz_runtime.bundle.store import load_bundle

    loaded = load_bundle(bundle)
    held = {entry.role for entry in loaded.models}
    choices["role"] = choices["role"] or (
        "age" if "harmonizer" not in held and "age" in held else "harmonizer"
    )
    chosen = SpeedOptions(plan=Plan(repeat, warmup, most_seconds=seconds), **choices)
    result = measure_speed(loaded, chosen, _note)
    _publish(result, speed_lines(result), json_out)


@bench.command(cls=render.HzCommand, context_settings=options.CONTEXT, epilog=PARITY_NOTES)
@_bundle
@click.option(
    "--checkpoint",
    "checkpoints",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="What the bundle was exported from; repeatable.  [default: its own fp32 file is the reference]",
)
@_scans
@click.option(
    "--backend", "engines", multiple=True, type=options.EngineChoice(auto=False),
    help="Engines to ask; repeatable.  [default: all that are here]",
)  # fmt: skip
@options.to_site
@click.option(
    "--tolerance",
    metavar="KEY=X",
    multiple=True,
    callback=options.numbers(*options.TOLERANCES),
    help=f"Instead of every file's own: {options.TOLERANCES_HELP}.",
)
@click.option(
    "--rejudge",
    metavar="EVIDENCE.json",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Judge earlier numbers (--json, or a bundle.json) by these tolerances; runs nothing.",
)
@click.option(
    "--count", type=click.IntRange(1), default=8, show_default=True,
    help="Scans of --scans to measure on, spread evenly.",
)  # fmt: skip
@click.option(
    "--write",
    is_flag=True,
    help="Keep what was measured in BUNDLE, so that hz-run --precision fast goes by it on processors with "
    "the instructions of this one; the bundle's id changes.",
)
@click.option(
    "--key",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="With --write: private key (PEM) to sign the bundle with. Without it the bundle is unsigned.",
)
@_threads
@_json
@click.pass_context
def parity(
    ctx: click.Context,
    /,
    bundle: Path | None,
    write: bool,
    key: Path | None,
    rejudge: Path | None,
    json_out: Path | None,
    tolerance: dict[str, float],
    engines: tuple[str, ...],
    **choices: Any,
) -> None:
    """Compare BUNDLE's files on every engine here with PyTorch, on real volumes.

    Differences are in intensity units inside the brain (volumes are in [0, 1]) and in years. The evidence
    names each file by its sha256 and keeps every volume's numbers. OpenVINO is also asked to compute float32
    in bfloat16, where this processor can. Last stands what hz-run --precision fast may take here.
    """
    if write and (bundle is None or rejudge is not None):
        raise click.UsageError("--write needs the BUNDLE that is measured.")
    if rejudge is not None:
        wrong = _rejudged(rejudge, bundle, tolerance)
    else:
        if choices["checkpoints"]:
            options.need("--checkpoint", "export", "torch", "onnx", "safetensors")
        from hz_export.bundle_parity import ParityOptions, measure_bundle, verdict
        from hz_runtime.bundle.store import load_bundle

        chosen = ParityOptions(engines=_engine_names(engines), tolerance=tolerance, **choices)
        result = measure_bundle(load_bundle(bundle), chosen, _note)
        wrong = list(verdict(result, tolerance))
        if not any(model["parity"]["measured"] or _failures(model) for model in result["models"]):
            from hz_runtime.errors import BackendError

            raise BackendError(f"{'; '.join(wrong)}.", "pip install 'hz-mri[cpu]'  (or leave --backend out)")
        _publish(result, parity_lines(result), json_out)
        if write and bundle is not None:
            _write_evidence(result, bundle, key)
    for line in wrong:
        render.say(click.style("past: ", fg="red") + line, err=True)
    if not wrong:
        render.say("within tolerance", err=json_out is not None and str(json_out) == "-")
    ctx.exit(1 if wrong else 0)


def _write_evidence(result: Mapping[str, Any], path: Path, key: Path | None) -> None:
    from hz_export.bundle_evidence import add_evidence
    from hz_runtime.bundle.signing_keys import SigningKey

    written = add_evidence(path, result, None if key is None else SigningKey.read(key))
    render.say(f"{written.path.name} holds this evidence; {'signed, ' if key else ''}{written.id}", err=True)


def _failures(model: Mapping[str, Any]) -> bool:
    return any(item["failed"] for item in model["not_run"])


def _engine_names(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Names of engines for what --backend takes: a family stands for all of its engines."""
    from hz_runtime.backends.registry import ENGINES

    return tuple(engine.name for engine in ENGINES if engine.name in asked or engine.family in asked)


def _rejudged(path: Path, bundle: Path | None, tolerance: Mapping[str, float]) -> list[str]:
    """What is past its tolerance in earlier evidence, one line each; says what was judged."""
    from hz_export.parity import ran, rejudge
    from hz_runtime.errors import UsageError

    try:
        recorded = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UsageError(
            f"{path.name} is not JSON.", "Give what hz-bench parity --json wrote, or a bundle.json."
        ) from None
    if not isinstance(recorded, dict):
        raise UsageError(f"{path.name} is not evidence of parity.", "Give what hz-bench parity --json wrote.")
    if bundle is not None:
        _check_same(recorded, bundle)
    wrong = []
    for file, row, kind, past in rejudge(recorded, tolerance):
        render.say(f"{file} ({kind}) on {ran(row)}: {'past' if past else 'within'}")
        wrong += [f"{file} on {ran(row)}: {what}" for what in past]
    return wrong


def _check_same(recorded: Mapping[str, Any], path: Path) -> None:
    """Evidence speaks of bytes: refuse it for a bundle that holds others."""
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.errors import BundleError

    loaded = load_bundle(path)
    held = {entry.sha256 for entry in loaded.models}
    for model in recorded.get("models", []):
        if model.get("sha256") not in held:
            raise BundleError(
                f"{loaded.path.name}: the evidence for {model.get('file')} is of other bytes.",
                f"Measure this bundle:  hz-bench parity {path.name}",
            )


def _publish(result: Mapping[str, Any], lines: Iterator[str], out: Path | None) -> None:
    """The lines, and the JSON where it was asked for."""
    to_stdout = out is not None and str(out) == "-"
    for line in lines:
        render.say(line, err=to_stdout)
    if out is None:
        return
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    if to_stdout:
        render.say(text.rstrip("\n"))
        return
    from hz_runtime.io.atomic import atomic_write_bytes

    atomic_write_bytes(out, text.encode())


def _note(text: str) -> None:
    render.say(text, err=True)


def main() -> None:
    """Entry point of hz-bench."""
    render.run_command(bench)


if __name__ == "__main__":
    main()
