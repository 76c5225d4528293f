"""hz-prepare: raw heads to template-space brains; needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from hz_cli import options, render

EPILOG = """\b
Exit codes: 0 all done; 2 usage; 3 some scans were refused or failed, the rest are complete;
4 bundle refused; 130 interrupted (what was in flight is complete; the same command goes on).
"""


@click.command(cls=render.HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--out",
    "-o",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for all results.",
)
@options.heads
@options.trust
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, 64), help="Scans at a time.  [default: CPUs, at most 4]"
)
@options.redo
@options.dask
@options.progress
@options.version
@click.pass_context
def main(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    out: Path,
    dof: str,
    brain_mask: str,
    trust: tuple[Path, ...],
    require_signed: bool,
    workers: int | None,
    overwrite: bool,
    dask: str | None,
    shown_as: str,
    plain: bool,
    quiet: bool,
) -> None:
    """Raw T1-weighted heads to brains in template space, 2 mm, ready for hz-run.

    INPUT: scans (.nii, .nii.gz, .mgz), folders (searched below), quoted patterns, or DICOM (a folder of it,
    a .zip or .tar.gz: the T1-weighted series is taken). Each is stripped, corrected for its receive field
    (N4) and registered to the MNI152 template; gates refuse what is no whole T1-weighted head. DIR gets, for
    every scan, the brain and its mask in template and in native space, the transform, and a record with every
    gate's verdict. Research use only.

    \b
      hz-prepare raw/*.nii.gz --out prepared
      hz-run 'prepared/*_space-MNI152_res-2_desc-brain_T1w.nii.gz' --out harmonized

    hz-run --prepare does both at once, and gives the harmonized brain in the scan's own space.
    """
    from hz_cli.batch import dask_workers, one_core_each, stop_on_signals

    one_core_each()
    stop = stop_on_signals(quiet)

    from hz_runtime.batch.prepare_run import TABLE_NAME, PrepareOptions, prepare_batch
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.preparation.preparer import Preparation

    choices = Preparation.asked(dof, brain_mask, Trust.read(trust, require_signed))
    asked = PrepareOptions(choices, workers, overwrite)
    progress = render.progress_of(shown_as, plain=plain, quiet=quiet)
    try:
        with dask_workers(dask) as cluster:
            report = prepare_batch(inputs, out, asked, progress, stop, cluster)
    finally:
        progress.close()
    done = any(scan.outputs for scan in report.scans)
    following = f" Next:  hz-run '{report.out.name}/{report.brains}'" if done else ""
    text = f"{report.summary()}; see {TABLE_NAME} in {report.out.name}.{following}"
    progress.end(text, report.exit_code, out=str(out))
    ctx.exit(report.exit_code)


if __name__ == "__main__":
    main()
