"""What hz leaves in a BIDS derivative data set, and how it gets there.

hz works in one folder a unit (a participant in a session), where it can resume and which it locks, and
publishes from there: volumes as hard links where the file system has them, everything whole or absent. Any
number of processes on any number of machines may so work on different participants of one data set.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hz_runtime.bids.layout import Unit, description
from hz_runtime.bids.record import Run, comparable, merged, outputs, read_run, results, table
from hz_runtime.errors import UsageError
from hz_runtime.io.annex import require_fetched
from hz_runtime.io.atomic import (
    atomic_write_bytes,
    holds,
    shared_file,
    shown,
    temporary_name,
    write_changed,
)
from hz_runtime.io.json_text import to_json
from hz_runtime.results import output_columns
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.run_report import dataset_description
from hz_runtime.results.versions import hz_version

WORK_NAME = ".hz"
BIDSIGNORE = f"{WORK_NAME}/\n*.html\nfigures/\nlogs/\n*_predictions.tsv\npredictions.tsv\npredictions.json\n"
README = """# Harmonized T1-weighted scans and predicted brain ages

Made by hz {version} from the T1-weighted scans of a BIDS data set. For research only: hz is not a medical
device.

- `sub-*/[ses-*/]anat/*_desc-harmonized_T1w.nii.gz`: the scan mapped to the reference site, with a JSON
  sidecar that says by what.
- `sub-*/[ses-*/]sub-*_predictions.tsv`: status and predictions of each scan; the columns are explained in
  `predictions.json`.
- `sub-*.html`: pictures and checks of each participant; `logs/` holds what was run and how.
- `predictions.tsv`, `report.html`, `group.html`: all participants, written by `hz-bids BIDS_DIR OUT group`.
- `.hz/`: what lets an interrupted run go on, with the pictures that the group report shows. It may be removed
  when all participants and the group are done.
"""
# Columns of predictions.tsv, and the two that a group's table adds.
DICTIONARY: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant, as in the raw data set"},
    "session_id": {"Description": "Session, as in the raw data set; n/a where there are none"},
    "input": {"Description": "File name of the raw scan"},
    "status": {
        "Description": "What became of the scan",
        "Levels": {
            "ok": "harmonized, nothing noticed",
            "flagged": "harmonized, but look at the flags first",
            "failed": "no result; the run's record in logs/ says why",
            "skipped": "not reached when the run was interrupted",
        },
    },
    "flags": {"Description": "What was noticed about the scan, separated by semicolons"},
}


def dictionary(header: Iterable[str], run: RunOutputs) -> dict[str, Any]:
    """The data dictionary (BIDS, tabular files) of a table with these columns, of such a run."""
    known = {**DICTIONARY, **output_columns.descriptions(run)}
    return {column: known.get(column, {"Description": column.replace("_", " ")}) for column in header}


def describe_dataset(root: Path, raw: Path) -> dict[str, Any]:
    """dataset_description.json of the derivative. It names no folder: the raw data set is linked where it is
    a parent of `root`, as it is for the usual derivatives/hz, and cited where it has a DOI."""
    raw_description, above = description(raw), _above(root, raw)
    source = {"URL": above} if above else {}
    if isinstance(raw_description.get("DatasetDOI"), str):
        source["DOI"] = raw_description["DatasetDOI"]
    described = dataset_description()
    if above:
        described["DatasetLinks"] = {"raw": above}
    return {**described, "SourceDatasets": [source]} if source else described


def write_dataset_files(root: Path, raw: Path) -> bool:
    """The files that all participants share; each process writes the same bytes. Returns whether any was
    written. Raises HzError."""
    _make(root)
    files = {
        "dataset_description.json": to_json(describe_dataset(root, raw)),
        "README.md": README.format(version=hz_version()).encode(),
        ".bidsignore": BIDSIGNORE.encode(),
    }
    written = [shared_file(root / name, data) for name, data in files.items()]  # all of them
    return any(written)


def publish(unit: Unit, work: Path, raw: Path, root: Path, run: Run, linked: bool) -> bool:
    """Bring the results of a unit from its work folder to their BIDS places in `root`; returns whether that
    changed anything there. A file that is as it should be is left alone.

    run : the object of its run.json, which is published last, as logs/NAME_run.json. What an earlier run
        published of scans that this one did not reach, or was not asked for, stays there and in its record.
    raw : root of the raw data set.  linked : whether dataset_description.json links it.
    Raises HzError, OSError.
    """
    anat, logs = root / unit.folder / "anat", root / "logs"
    for folder in (anat, logs):
        _make(folder)
    record = logs / f"{unit.name}_run.json"
    require_fetched(record)
    try:
        earlier = read_run(record)
    except UsageError as error:  # the first run, or a damaged record
        if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.ENOENT:
            raise
        earlier = {"scans": []}
    whole = merged(run, earlier, raw / unit.folder / "anat")
    changed = False
    for name in outputs(earlier["scans"]) - outputs(whole["scans"]):
        # Of a scan that fails now, or that the raw data set has no more.
        (anat / name).unlink(missing_ok=True)
        changed = True
    for name in sorted(outputs(run["scans"])):
        if name.endswith(".json"):
            data = (work / name).read_bytes()
            changed |= write_changed(anat / name, to_json(_for_bids(json.loads(data), unit, linked)))
        else:
            changed |= link(work / name, anat / name)
    predictions = table(run, results(comparable(whole)))
    changed |= write_changed(root / unit.folder / f"{unit.name}_predictions.tsv", predictions)
    for source, target in (
        ("report.html", root / f"{unit.name}.html"),
        ("hz-run.log", logs / f"{unit.name}.log"),
    ):
        with suppress(FileNotFoundError):
            changed |= write_changed(target, (work / source).read_bytes())
    return write_changed(record, to_json(whole)) or changed


def link(source: Path, target: Path) -> bool:
    """Make `target` the same file as `source`, or a copy where the file system cannot; one that has its bytes
    is left alone. Returns whether anything was changed. Raises HzError."""
    with suppress(OSError):
        if os.path.samefile(source, target) or holds(target, source.read_bytes()):
            return False
    temporary = temporary_name(target)
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:  # another file system, or one without hard links
        with suppress(OSError):
            temporary.unlink()
        atomic_write_bytes(target, source.read_bytes())
    return True


def _for_bids(sidecar: dict[str, Any], unit: Unit, linked: bool) -> dict[str, Any]:
    """A sidecar as the data set has it: sources as BIDS URIs, or relative to the raw data set's root."""
    start = f"{'bids:raw:' if linked else ''}{unit.folder.as_posix()}/anat/"
    sources = sidecar.get("Sources")
    return {**sidecar, "Sources": [start + str(s) for s in sources]} if isinstance(sources, list) else sidecar


def _above(root: Path, raw: Path) -> str:
    """ "../.." where `raw` is that many folders above `root`, else "": any other way names folders."""
    relative = os.path.relpath(raw, root)
    return relative if set(relative.split(os.sep)) == {".."} else ""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{shown(folder)}: the folder cannot be made ({error.strerror}).", "Choose another output folder."
        ) from error
