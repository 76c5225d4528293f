"""hz-prepare: raw heads to template-space brains; needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hz_cli import options, render

EPILOG = """\b
Exit codes: 0 all done; 2 usage; 3 some scans were refused or failed, the rest are complete;
130 interrupted (what was in flight is complete; the same command goes on).
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
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, 64), help="Scans at a time.  [default: CPUs, at most 4]"
)
@options.redo
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
    workers: int | None,
    overwrite: bool,
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
    from hz_cli.batch import one_core_each, stop_on_signals

    one_core_each()
    from contextlib import ExitStack

    from hz_runtime.batch.executor import Event
    from hz_runtime.batch.folder_lock import locked
    from hz_runtime.batch.inputs import collect
    from hz_runtime.batch.prepare_run import HeadFolder, brain_suffix, write_preparation_tsv
    from hz_runtime.cpus import usable_cpus
    from hz_runtime.dicom.scans import dicom_scans
    from hz_runtime.preparation.preparer import Preparation, Preparer

    stop = stop_on_signals(quiet)
    out = Path(os.path.abspath(out))
    choices = Preparation.asked(dof, brain_mask)
    progress = render.Progress(plain=plain, quiet=quiet)
    results: dict[str, Any] = {}
    try:
        with ExitStack() as held:
            found = collect(inputs, out, held.enter_context(dicom_scans()))
            choices.check(len(found.scans))
            workers = min(workers or min(4, usable_cpus()), len(found.scans))
            held.enter_context(locked(out))
            folder = HeadFolder(out, Preparer.opened(choices), overwrite)
            for note in found.notes:
                progress(Event("note", note))
            total = len(found.scans)
            progress(Event("start", f"{dof} degrees of freedom, {workers} at a time", total=total))
            for result in folder.run(found.scans, workers, stop):
                results[result.name] = result
                progress(Event("scan", result=result, done=len(results), total=total))
            line = write_preparation_tsv(out, [results[scan.name] for scan in found.scans])
    finally:
        progress.close()
    brains = f"{out.name}/*{brain_suffix(folder.template)}"
    done = any(result.outputs for result in results.values())
    following = f" Next:  hz-run '{brains}'" if done else ""
    render.say(f"{line}; see preparation.tsv in {out.name}.{following}")
    failed = any(result.status == "failed" for result in results.values())
    ctx.exit(130 if stop.is_set() else 3 if failed else 0)


if __name__ == "__main__":
    main()
