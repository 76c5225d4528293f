"""hz-dicom process: a study in, all that goes back to the archive out, for a shell and for orchestrators."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_runtime.hospital.study import ProcessOptions, Study

EPILOG = """\b
Exit codes: 0 done, or nothing to do (no T1-weighted head, or one that a gate refuses); 2 usage;
3 the study cannot be read or processed; 4 bundle refused; 5 required engine unavailable.
"""
PAGES = ("sc", "pdf", "none")
salt = click.option(
    "--salt",
    envvar="HZ_DICOM_SALT",
    help="Secret text that goes into the names, so that a UID does not tell which they are.  "
    "[default: $HZ_DICOM_SALT, else a public one]",
)
written_back = options.together(
    click.option(
        "--page",
        type=click.Choice(PAGES),
        default="sc",
        envvar="HZ_PAGE",
        show_default=True,
        help="Page for the reader: secondary captures, one PDF, or none.  [$HZ_PAGE]",
    ),
    click.option(
        "--keep-ids",
        is_flag=True,
        envvar="HZ_KEEP_IDS",
        help="Carry patient and study of IN, to file results in the record.  [$HZ_KEEP_IDS]",
    ),
    salt,
)
how = options.together(
    written_back, options.model, options.trust, options.to_site, options.heads, options.backend
)


@click.command(cls=render.CheckedCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("source", metavar="[IN]", type=click.Path(path_type=Path), required=False)
@click.argument("out", metavar="[OUT]", type=click.Path(path_type=Path), required=False)
@click.option("--each", is_flag=True, help="Every folder in IN by itself; results in OUT under its name.")
@how
@click.pass_context
def process(ctx: click.Context, /, source: Path | None, out: Path | None, each: bool, **choices: Any) -> None:
    """Process the T1-weighted head of a study: derived MR series, report, page and result.json.

    IN: folder or archive of one examination. OUT: folder for the DICOM files. Without both: those of mercure
    (MERCURE_IN_DIR, MERCURE_OUT_DIR, settings of task.json) or of MONAI (HOLOSCAN_INPUT_PATH,
    HOLOSCAN_OUTPUT_PATH). Research use only.

    \b
      hz-dicom process EXAM.zip back
      hz-dicom process /mnt/study /mnt/out --keep-ids --page pdf
    """
    from hz_cli.batch import one_core_each

    one_core_each()

    from hz_runtime.hospital.contracts import read_job
    from hz_runtime.hospital.outcome import Outcome
    from hz_runtime.hospital.process import process_studies
    from hz_runtime.hospital.study import Study

    job = read_job(source, out, os.environ)
    for line in _set(ctx, job.settings, choices):
        render.say(line, err=True)
    studies = _each(job.source, job.out) if each else [Study(job.source, job.out)]
    bundle, how_to = opened(choices)
    outcomes: list[Outcome] = process_studies(studies, bundle, how_to)
    for outcome in outcomes:
        for note in outcome.notes:
            render.say(f"{outcome.name or 'study'}: {note}", err=True)
        render.say(outcome.text, err=outcome.exit_code != 0)
    if choices["keep_ids"]:
        render.say("what was written identifies the patient", err=True)
    ctx.exit(max(outcome.exit_code for outcome in outcomes))


def opened(choices: Mapping[str, Any]) -> tuple[Any, ProcessOptions]:
    """The bundle and the options of the choices that `how` offers. Raises HzError."""
    from hz_cli.bundles import open_bundle
    from hz_runtime.batch.run_options import RunOptions
    from hz_runtime.bundle.trust import Trust
    from hz_runtime.dicom.deidentify import SALT
    from hz_runtime.hospital.study import ProcessOptions
    from hz_runtime.preparation.preparer import Preparation

    trusted = Trust.read(choices["trust"], choices["require_signed"])
    run = RunOptions(
        preparation=Preparation.asked(choices["dof"], choices["brain_mask"], trusted),
        **{name: choices[name] for name in ("to", "backend", "require", "precision", "threads")},
    )
    page = None if choices["page"] == "none" else choices["page"]
    how_to = ProcessOptions(run, page, choices["keep_ids"], choices["salt"] or SALT)
    return open_bundle(choices["model"], trusted, quiet=True), how_to


def _set(ctx: click.Context, settings: Mapping[str, Any], choices: dict[str, Any]) -> list[str]:
    """Put an orchestrator's settings into `choices`, where the command line says nothing else; returns a line
    for each that is not one of this command."""
    known = {str(param.name): param for param in ctx.command.params if param.name in choices}
    unknown = []
    for key, value in settings.items():
        name = key.strip().lstrip("-").replace("-", "_")
        if name not in known:
            unknown.append(f"the setting {key} is none of hz-dicom process: ignored")
        elif value is not None and ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            choices[name] = _cast(ctx, known[name], key, value)
    return unknown


def _cast(ctx: click.Context, param: click.Parameter, key: str, value: Any) -> Any:
    """A setting as its option takes it from the command line: a text, a number, true or false; several of
    them for an option that may be repeated."""
    several = value if isinstance(value, list) and param.multiple else [value]
    if not all(isinstance(one, str | int | float) for one in several):
        raise click.BadParameter(f"the setting {key} is {json.dumps(value)[:80]}.", ctx, param)
    texts = [one if isinstance(one, bool) else str(one) for one in several]
    return param.type_cast_value(ctx, texts if param.multiple else texts[0])


def _each(source: Path, out: Path) -> list[Study]:
    from hz_runtime.errors import UsageError
    from hz_runtime.hospital.study import Study

    try:
        found = sorted(path for path in source.iterdir() if path.is_dir())
    except OSError as error:
        raise UsageError("IN cannot be listed.", "Give a folder of folders.") from error
    if not found:
        raise UsageError("no folder is in IN.", "Leave --each out for a single study.")
    return [Study(path, out / path.name) for path in found]
