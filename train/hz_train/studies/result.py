"""What a study found, as frozen rows, and its files of numbers: TSV, JSON and pictures, each whole or absent.

The page for readers is `page`'s; nothing here knows of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hz_runtime.io.atomic import atomic_write_bytes

SCHEMA = "1.0"


@dataclass(frozen=True)
class Metric:
    """One number. value : None where it is not defined, such as a correlation with a constant.

    ci95 : 95 % bootstrap interval over subjects of one seed.  range : smallest and largest value over
    seeds, in a row that summarises several; its value is their mean.
    """

    value: float | None
    ci95: tuple[float, float] | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One method, tested on one site (or several together).

    n : subjects scored.  seed : None where the row summarises several seeds.
    columns : whatever else tells this row from its neighbours, such as "trained on"; the same keys in
    every row of a table.  how : how the numbers came about.
    """

    method: str
    site: str
    metrics: Mapping[str, Metric]
    n: int = 0
    seed: int | None = None
    how: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A metric's column. better : "lower", "higher" or "" where neither is."""

    name: str
    title: str
    unit: str = ""
    digits: int = 2
    better: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that belong together. name : file-safe, unique in the study."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Figure:
    """A picture. name : file-safe.  data : the bytes of a PNG or SVG file, as `kind` says."""

    name: str
    title: str
    caption: str
    data: bytes
    kind: str = "png"


@dataclass(frozen=True)
class Prediction:
    """One scored scan, so that every number of a table can be computed again."""

    method: str
    site: str
    subject: str
    truth: float
    predicted: float
    seed: int
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """A whole study.

    question : what it asks, in one sentence.  settings : plain JSON types.  cohort : as
    `datasets.describe`.  remarks : sentences that the reader needs to judge the numbers.
    """

    study: str
    title: str
    question: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    cohort: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; figures by their file names, predictions left to their own file."""
        stored = asdict(self)
        del stored["predictions"]
        stored["figures"] = [
            {"file": figure_file(self, f), "title": f.title, "caption": f.caption} for f in self.figures
        ]
        return {"schema": SCHEMA, **stored}


def figure_file(result: StudyResult, figure: Figure) -> str:
    """The name a figure is written under, beside the report."""
    return f"{result.study}_{figure.name}.{figure.kind}"


def write_result(result: StudyResult, out: Path) -> None:
    """Write the pictures, STUDY_predictions.tsv, STUDY.tsv, and STUDY.json last.

    Each file is whole or absent. Raises HzError where `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for figure in result.figures:
        atomic_write_bytes(out / figure_file(result, figure), figure.data)
    if result.predictions:
        atomic_write_bytes(out / f"{result.study}_predictions.tsv", predictions_tsv(result).encode())
    atomic_write_bytes(out / f"{result.study}.tsv", rows_tsv(result).encode())
    text = json.dumps(result.to_dict(), indent=1, sort_keys=True, allow_nan=False)
    atomic_write_bytes(out / f"{result.study}.json", (text + "\n").encode())


def rows_tsv(result: StudyResult) -> str:
    """Every table one below the other in long form: one line a row and metric; n/a for what is missing."""
    extra = _keys(row.columns for table in result.tables for row in table.rows)
    header = ["table", "method", *extra, "site", "seed", "n", "metric", "value", "ci95_low", "ci95_high"]
    lines: list[list[object]] = [[*header, "range_low", "range_high"]]
    for table in result.tables:
        for row in table.rows:
            first = [table.name, row.method, *(row.columns.get(k, "n/a") for k in extra), row.site]
            seed = "all" if row.seed is None else row.seed
            for name, metric in row.metrics.items():
                ends = [*(metric.ci95 or (None, None)), *(metric.range or (None, None))]
                lines.append([*first, seed, row.n, name, metric.value, *ends])
    return _tsv(lines)


def predictions_tsv(result: StudyResult) -> str:
    """One line a scored scan."""
    extra = _keys(p.columns for p in result.predictions)
    lines: list[list[object]] = [["method", *extra, "site", "seed", "subject", "truth", "predicted"]]
    for p in result.predictions:
        more = [p.columns.get(k, "n/a") for k in extra]
        lines.append([p.method, *more, p.site, p.seed, p.subject, p.truth, p.predicted])
    return _tsv(lines)


def _keys(columns: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for one in columns for key in one))


def _tsv(lines: list[list[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(
        [["n/a" if cell is None or cell == "" else _cell(cell) for cell in line] for line in lines]
    )
    return stream.getvalue()


def _cell(value: object) -> object:
    # repr gives the shortest digits that read back as the same number.
    return repr(float(value)) if isinstance(value, float) else value
