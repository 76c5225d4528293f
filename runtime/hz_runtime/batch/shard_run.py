"""The run of one shard: its scans into the folder that all shards share, and a journal in place of a table.

`gather` makes the table and the report of all of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hz_runtime.batch.executor import Event
from hz_runtime.batch.folder_run import FolderRun
from hz_runtime.batch.inputs import Inputs, collect
from hz_runtime.batch.journal import Journal
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.opened import open_bundle
from hz_runtime.batch.run import executor_of, refuse_dicom
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.batch.shard import Shard
from hz_runtime.batch.shard_folder import FOLDER, Plan, ShardFolder, header
from hz_runtime.batch.status import folder_status
from hz_runtime.results.run_report import RunReport
from hz_runtime.results.scan_result import NOT_REACHED, ScanResult

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle


def run_shard(
    inputs: Sequence[str | os.PathLike[str]],
    bundle: Bundle,
    out: str | os.PathLike[str],
    shard: Shard,
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
    *,
    missing: bool = False,
    command: Sequence[str] = (),
) -> RunReport:
    """Harmonize and predict the part `shard` of `inputs`, as `run_batch` does all of them.

    All shards are given all inputs: names are decided by the whole list.
    missing : only those of its scans that `folder_status` calls missing.
    command : the arguments of hz-run that `status` is to print for what is missing.
    Raises as `run_batch` does; UsageError, too, where DICOM is among the inputs, or a job is at work on this
    shard, on all of the folder, or on shards of another division of it.
    """
    options = options or RunOptions()
    folder = Path(os.path.abspath(out))
    emit = on_event or (lambda _: None)
    stop = stop or threading.Event()
    chosen = collect(inputs, folder)
    refuse_dicom(chosen.scans, "Every shard would have to convert it.")
    options.ages.check(len(chosen.scans))
    if options.preparation:
        options.preparation.check(len(chosen.scans))
    place = ShardFolder(folder)
    before = place.plan() if missing else None  # what is missing is run by whom that suits; the plan stays
    plan = Plan.of(chosen.scans, shard.count if before is None else before.count, command)
    with ExitStack() as held:
        path, handle = held.enter_context(place.hold(shard, plan))
        mine = shard.takes(chosen.scans)
        if missing:
            wanted = {scan.name for scan in folder_status(folder, but=shard).missing}
            mine = [scan for scan in mine if scan.name in wanted]
        if not mine:
            return RunReport(folder, (), {"seconds": 0.0})
        log = RunLog(place.log(shard), held=place.log(shard).exists())
        held.push(lambda kind, *_: log.release() if kind else None)
        opened = open_bundle(bundle, options)
        held.callback(opened.close)
        run = FolderRun(folder, Inputs(tuple(mine), chosen.notes), opened, options.ages, log, emit)
        run.announce()
        journal = Journal(path, handle, header(run.metadata((), False)))
        executor = executor_of(opened, stop)
        results: dict[int, ScanResult] = {}
        for index, result in executor.run(run.jobs(lambda scan: journal.begin(scan.name)), len(mine)):
            results[index] = result
            run.account(index, result)
            if result.reason != NOT_REACHED:
                journal.scan({**result.to_dict(), **options.ages.site_of(mine[index])})
                emit(Event("scan", result=result, done=len(results), total=len(mine)))
        journal.end(run.seconds, stop.is_set())
        problems = (
            (f"{FOLDER}/{path.name} could not be written: {journal.problem}",) if journal.problem else ()
        )
        scans = tuple(results[index] for index in range(len(mine)))
        report = RunReport(folder, scans, {"seconds": run.seconds}, stop.is_set(), problems)
        log.write(report.summary())
        run.account_for_end(report)
        return report
