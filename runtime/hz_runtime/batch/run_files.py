"""A run's own files: run.json, predictions.tsv, dataset_description.json and the pages of its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hz_runtime.batch.failures import scrub
from hz_runtime.errors import HzError
from hz_runtime.io.atomic import atomic_write_bytes
from hz_runtime.io.json_text import to_json
from hz_runtime.results.output_columns import RunOutputs
from hz_runtime.results.predictions_tsv import predictions_tsv
from hz_runtime.results.run_report import dataset_description
from hz_runtime.results.scan_result import ScanResult


def write_run_files(
    out: Path, scans: Sequence[ScanResult], run: Mapping[str, Any], report: bool
) -> list[str]:
    """Write the run's own files; what cannot be written is returned, one line each.

    run : the object of run.json.  report : whether there are to be pages; else those of before go.
    """
    problems: list[str] = []

    @contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = error.one_line if isinstance(error, HzError) else f"{type(error).__name__}: {error}"
            problems.append(scrub(f"{name} could not be written: {text}", None, out))

    with attempt("predictions.tsv"):
        atomic_write_bytes(out / "predictions.tsv", predictions_tsv(scans, RunOutputs.of(run)))
    with attempt("dataset_description.json"):
        atomic_write_bytes(out / "dataset_description.json", to_json(dataset_description()))
    with attempt("run.json"):
        atomic_write_bytes(out / "run.json", to_json(run))
    if report:
        with attempt("report.html"):
            from hz_runtime.report import figures_of, write_pages

            write_pages(out, run, figures_of(out, run["scans"]))
    else:
        from hz_runtime.report import remove_pages

        remove_pages(out)
    return problems
