"""hz-calibrate: real scans in, a precision plan out; `hz-calibrate age` is in its own module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options, render
from hz_cli.calibrate_age import age
from hz_cli.subcommands import CommandWithOthers

if TYPE_CHECKING:
    from hz_calibration.deviation import Budget
    from hz_calibration.plan import PrecisionPlan

EPILOG = """\b
Errors and budgets are those that 95 % of the scans keep to (of fewer than 20: all). Default budgets: 1.5 %
of the mean intensity inside the brain of the dimmest scan, and 0.4 years; for a harmonizer in a bundle with
an age network, both.

\b
Exit codes: 0 plan written; 2 usage, or no scan can be used; 4 bundle refused; 5 onnxruntime is not here.
"""


@click.command(cls=CommandWithOthers, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("network", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path, exists=True))
@click.argument(
    "scans", metavar="SCANS...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "--out", "-o", metavar="PLAN.json", required=True, type=click.Path(path_type=Path), help="Plan to write."
)
@click.option(
    "--participants",
    metavar="TSV",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Table with the columns file and site, to take scans evenly from sites.  [default: by folder]",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1), default=16, show_default=True, help="Scans to use."
)
@click.option(
    "--method",
    type=click.Choice(["best", "minmax", "percentile", "entropy", "mse"]),
    default="best",
    show_default=True,
    help="How activation ranges are set; best tries all and takes the one with the least error.",
)
@click.option(
    "--budget",
    metavar="KEY=X",
    multiple=True,
    callback=options.numbers("mean", "years"),
    help="Largest error of a scan: mean=X (intensity units inside the brain), years=X; nodes past it stay "
    "float32.",
)
@click.option(
    "--weight-bits",
    type=click.Choice(["8", "7"]),
    default="8",
    show_default=True,
    help="7 for CPUs without VNNI or AMX, where products of 8-bit weights overflow.",
)
@click.option("--role", type=click.Choice(["harmonizer", "age"]), help="Which network of a bundle.")
@click.option(
    "--harmonizer",
    metavar="PATH",
    type=click.Path(path_type=Path, exists=True),
    help="Checkpoint or bundle that scans pass through before an age checkpoint.",
)
@click.option("--no-half", is_flag=True, help="Do not measure float16 as well.")
@click.option("--overwrite", is_flag=True, help="Replace the plan if there is one.")
@click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
@options.version
def main(
    network: Path,
    scans: tuple[Path, ...],
    out: Path,
    role: str | None,
    harmonizer: Path | None,
    overwrite: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Measure on real scans which nodes of a network need which precision, and write the plan.

    SCANS: skull-stripped scans, or folders of them. They should not be those that the result is judged on.

    \b
      hz-calibrate harmonizer.safetensors scans/ --participants scans/participants.tsv --out plan.json
      hz-export --int8 --plan plan.json harmonizer.safetensors --out site.hz
    """
    _check(out, overwrite, network)
    from hz_calibration.plan import write_plan

    say: Callable[[str], None] = (lambda _: None) if quiet else (lambda text: render.say(text, err=True))
    plan = _plan(network, scans, role, harmonizer, choices, say, quiet)
    write_plan(out, plan)
    for line in [] if quiet else table(plan):
        render.say(line)
    render.say(f"{out}: {verdict(plan)}")


def _plan(
    path: Path,
    scans: Sequence[Path],
    role: str | None,
    harmonizer: Path | None,
    choices: dict[str, Any],
    say: Callable[[str], None],
    quiet: bool,
) -> PrecisionPlan:
    from hz_calibration.deviation import DeviationMeasure, answers
    from hz_calibration.planning import PlanOptions, make_plan, steps
    from hz_calibration.samples import choose
    from hz_export.networks import read_network
    from hz_export.quantize import to_int8

    network = read_network(path, role, harmonizer)
    samples = choose(
        scans,
        network.recipe,
        count=choices["count"],
        participants=choices["participants"],
        statistics=network.statistics,
        say=say,
    )
    sites = sorted({scan.site for scan in samples.scans})
    say(f"{network.role}: {len(samples.scans)} scans of {len(sites)} sites ({', '.join(sites)})")
    given = samples.grids if network.before is None else answers(network.before, samples.grids)
    measure = DeviationMeasure(network.graph, given, network.behind)
    chosen = PlanOptions(
        method=choices["method"],
        budget=_as_budget(choices["budget"], measure.budget),
        weight_bits=int(choices["weight_bits"]),
        half=not choices["no_half"],
    )
    with _bar(steps(network.graph, len(given), chosen), quiet) as step:
        return make_plan(network.role, measure, samples, to_int8, chosen, step)


def _as_budget(given: dict[str, float], default: Budget) -> Budget:
    """What was asked for; where nothing was, the default."""
    from hz_calibration.deviation import Budget

    return Budget(given.get("mean"), given.get("years")) if given else default


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr where that is a terminal; what was done last stands beside it."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, unit="run", disable=hidden, dynamic_ncols=True, leave=False) as bar:

        def step(what: str) -> None:
            if what.startswith("raised"):  # each raised node costs runs that nobody could count before
                bar.total += 1
            bar.set_postfix_str(what, refresh=False)
            bar.update(1)

        yield step


def table(plan: PrecisionPlan) -> list[str]:
    """Every measured node with its own errors, and what stays float32."""
    width = max(len(node.node) for node in plan.nodes)
    kept = {item.node: item for item in plan.kept}
    lines = [f"{'node':<{width}}  {'fp16 alone':<26}  {'int8 alone':<26}  plan"]
    for node in plan.nodes:
        word = "int8" if node.node in plan.int8 else "fp32" if node.node in kept else ""
        fp16, int8 = (str(found) if found is not None else "-" for found in (node.fp16, node.int8))
        lines.append(f"{node.node:<{width}}  {fp16:<26}  {int8:<26}  {word}".rstrip())
    for item in plan.kept:
        change = "" if item.before is None else f": {item.before} -> {item.after}"
        lines.append(f"fp32: {item.operation} {item.node}, {item.why}{change}")
    for item in plan.half_kept:
        lines.append(f"not fp16: {item.operation} {item.node}, {item.why}: {item.before} -> {item.after}")
    if "fp16" in plan.whole:
        lines.append(f"all in fp16: {plan.whole['fp16']}")
    lines.append(f"all in int8: {plan.whole['int8_all']}")
    return lines


def verdict(plan: PrecisionPlan) -> str:
    """One line: what the plan does and what it costs."""
    total = len(plan.int8) + len(plan.kept)
    limits = {"mean": plan.budget.intensity, "years": plan.budget.years}
    budget = ", ".join(f"{name} {value:.4g}" for name, value in limits.items() if value is not None)
    return (
        f"{len(plan.int8)} of {total} convolutions in int8, ranges by {plan.method}: "
        f"{plan.whole['int8']} (budget {budget})"
    )


def _check(out: Path, overwrite: bool, network: Path) -> None:
    from hz_runtime.errors import UsageError

    needed = ["onnx", "onnxruntime"] + ([] if network.is_dir() else ["torch", "onnxscript", "safetensors"])
    options.need("hz-calibrate", "export", *needed)
    if out.exists() and not overwrite:  # said before minutes of work
        raise UsageError(f"{out.name} exists.", "Use another name, or replace it on purpose (--overwrite).")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(
            f"the folder of {out.name} does not exist or cannot be written.", "Make it, or name another."
        )


main.add(age)


if __name__ == "__main__":
    main()
