"""predictions.tsv: what a run says of every scan, as a table. Which columns, `output_columns` says."""

from __future__ import annotations

from collections.abc import Sequence

from hz_runtime.results.output_columns import Row, RunOutputs, columns_of
from hz_runtime.results.scan_result import ScanResult

FIRST, LAST = ("input", "status"), ("flags",)  # around the columns of the predictions


def predictions_tsv(scans: Sequence[ScanResult], run: RunOutputs) -> bytes:
    """predictions.tsv, one row a scan in input order, n/a where there is no value.

    The status of a scan that an earlier run did is the one it got then, so that a resumed run's table
    equals an undisturbed one's.
    """
    columns = columns_of(run)
    lines = ["\t".join([*FIRST, *(name for column in columns for name in column.names), *LAST])]
    for scan in scans:
        row = Row(scan.prediction, scan.age, run, scan.quality)
        cells = [cell for column in columns for cell in column.cells(row)]
        flags = " ".join(("; ".join(scan.flags) or "n/a").split())
        lines.append("\t".join([scan.input, scan.recorded or scan.status, *cells, flags]))
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
