"""The demo: one head, three simulated scanners, and how far they agree before and after hz-run.

    python -m hz_cli.demo --out hz-demo

It runs the hz-run of this installation on the bundle that hz-run finds by itself. Its numbers say how the
bundle does on these three scanners and this one (average) head, and nothing about a patient's scan.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_cli.demo_scans import F32, Head

PICTURE = "before-after.png"


@dataclass(frozen=True)
class Agreement:
    """What the demo measured: disagreement as shares of the brain's mean, one correlation with the
    clean head a scanner."""

    raw: float
    harmonized: float
    correlations_raw: tuple[float, ...]
    correlations: tuple[float, ...]


@click.command(cls=render.HzCommand, context_settings=options.CONTEXT)
@click.option(
    "--out",
    "-o",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("hz-demo"),
    help="Folder for everything the demo makes.  [default: ./hz-demo]",
)
@options.model
def main(out: Path, model: Path | None) -> None:
    """Harmonize one head as three simulated scanners see it, and show how far they agree."""
    click.echo(
        "One head (the MNI152 template), seen by three simulated scanners: contrast, bias field, noise."
    )
    click.echo("hz-run maps them to one reference site; the template is no person, and has no age.\n")
    from hz_cli.demo_scans import mni152_head

    sys.exit(run_demo(out, mni152_head(), model))


def run_demo(out: Path, head: Head, model: Path | None = None) -> int:
    """Make the scans, run hz-run on them, print and draw what came of it. Returns an exit code."""
    from hz_cli.demo_scans import DEMO_SCANNERS, write_scans

    scans = write_scans(out / "scans", head)
    results = out / "harmonized"
    command = ["-m", "hz_cli.run", *map(str, scans), "--out", str(results), "--overwrite", "--plain"]
    if model is not None:
        command += ["--model", str(model)]
    # A process of its own, as a user would run it; its output is the demo's.
    sys.stdout.flush()
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        click.echo(f"hz-run ended with exit code {code}; the demo stops here.", err=True)
        return code

    rows = json.loads((results / "run.json").read_text())["scans"]
    click.echo("\n" + table(rows))
    made = [_native(row, results) for row in rows]
    raw, harmonized = _on_head(scans, head), _on_head(made, head)
    found = measure(raw, harmonized, head)
    click.echo("\n" + "\n".join(summary(found)))

    from hz_cli.demo_picture import before_after
    from hz_runtime.io.atomic import atomic_write_bytes

    names = [scanner.name for scanner in DEMO_SCANNERS]
    atomic_write_bytes(out / PICTURE, before_after(names, raw, harmonized, head.brain))
    click.echo(f"\nLook at {results / 'report.html'} (pictures), {results / 'predictions.tsv'} (ages)")
    click.echo(f"and {out / PICTURE} (the three scanners, before and after).\n")
    return _check_installation(model)


def _check_installation(model: Path | None) -> int:
    """The last lines: whether this installation computes what the bundle expects. Returns an exit code."""
    from hz_cli.self_test import report
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.inference.expected_answers import expected_answers

    bundle = load_bundle(model)
    if expected_answers(bundle) is None:
        click.echo(f"{bundle.path.name} carries no answers for a self-test (hz-run --self-test).")
        return 0
    return 1 if report(bundle, quiet=True) else 0


def measure(raw: list[F32], harmonized: list[F32], head: Head) -> Agreement:
    """Compare scans of one head, all on its voxels, before and after."""
    from hz_cli.agreement import correlation, disagreement

    return Agreement(
        disagreement(raw, head.brain),
        disagreement(harmonized, head.brain),
        tuple(correlation(v, head.data, head.brain) for v in raw),
        tuple(correlation(v, head.data, head.brain) for v in harmonized),
    )


def summary(found: Agreement) -> list[str]:
    """The measured numbers, in lines to print."""
    before = " ".join(f"{c:.3f}" for c in found.correlations_raw)
    after = " ".join(f"{c:.3f}" for c in found.correlations)
    return [
        f"scanners disagreed: raw {found.raw:.1%} -> harmonized {found.harmonized:.1%}",
        "  (mean absolute difference between pairs inside the brain, each scan divided by its brain mean)",
        f"correlation with the clean head inside the brain: raw {before} -> harmonized {after}",
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """What hz-run made of each scan, as aligned columns."""
    from hz_runtime.results.prediction import Prediction

    cells = [("scan", "status", "age", "harmonized volume")]
    for row in rows:
        age = Prediction.from_dict(row).age
        volume = next((name for name in row["outputs"] if name.endswith(".nii.gz")), "-")
        cells.append((row["input"], row["status"], "-" if age is None else f"{age:.1f}", volume))
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _native(row: dict[str, Any], results: Path) -> Path:
    """The native-space volume of one row of run.json."""
    names = [n for n in row["outputs"] if n.endswith(".nii.gz") and "_space-" not in n]
    if not names:
        from hz_runtime.errors import HzError

        raise HzError(f"{row['input']}: hz-run wrote no volume ({row['reason']}).", "See run.json.")
    return results / names[0]


def _on_head(paths: list[Path], head: Head) -> list[F32]:
    import nibabel as nib

    from hz_cli.demo_scans import on_head_grid

    return [on_head_grid(nib.load(path), head) for path in paths]


if __name__ == "__main__":
    main()
