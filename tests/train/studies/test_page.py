"""The files of a study: TSV, JSON, pictures, and a page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw figures")

from hz_train.studies import charts
from hz_train.studies.page import render, write_page
from hz_train.studies.result import Column, Metric, Prediction, Row, StudyResult, Table, write_result

PNG = b"\x89PNG\r\n\x1a\n"
MAE = Column("mae", "MAE", "years", 2, "lower")
NASTY = '<script>alert("x")</script>'


def a_study() -> StudyResult:
    predictions = tuple(
        Prediction("raw", site, f"s{i}", 20.0 + i, 25.0 + i * 0.5, 0, {"predictor": "ridge"})
        for i, site in enumerate(["oslo", "rome", NASTY] * 4)
    )
    rows = (
        Row("raw", "rome", {"mae": Metric(4.0, range=(3.5, 4.5))}, 9, None, "mean over seeds 0, 1"),
        Row("raw", "rome", {"mae": Metric(3.5, (3.0, 5.0))}, 9, 0, "held out"),
        Row("raw", "rome", {"mae": Metric(4.5, (3.0, 6.0))}, 9, 1, "held out"),
        Row("Nyul", "rome", {"mae": Metric(2.0, range=(1.0, 3.0))}, 9, None),
        Row("Nyul", "rome", {"mae": Metric(None)}, 9, 0),
        Row(NASTY, "rome", {"mae": Metric(2.001, range=(-0.001, 3.0))}, 9, None),
    )
    scatter = charts.scatter({"raw": predictions}, ["oslo", "rome", NASTY], "A caption.")
    dots = charts.intervals(rows, MAE, "mae", "Errors", "Another caption.")
    assert dots is not None
    return StudyResult(
        "example",
        f"Title {NASTY}",
        "A question?",
        (Table("errors", "Errors", "Caption.", (MAE,), rows),),
        (scatter, dots),
        {"reference": "oslo", "seeds": [0, 1], "harmonizer": None, "preset": {"recipe": {"grid": [16] * 3}}},
        {"sites": {"oslo": {"subjects": 4, "scans": 5, "age_range": [20.0, 31.5]}}},
        ("A remark.",),
        predictions,
    )


class Page(HTMLParser):
    """Tags, attributes and text; tags must close in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_loads_and_runs_nothing() -> None:
    text = render(a_study())
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert tag == "img" and (value or "").startswith("data:image/png;base64,")
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    assert 'alert("x")' in page.words  # shown, not run


def test_the_page_shows_the_numbers_and_the_pictures() -> None:
    study = a_study()
    text = render(study)
    page = Page(text)
    for wanted in ("4.00", "3.50 to 4.50", "(3.00 to 5.00)", "[1.00 to 3.00]", "MAE, years ↓", "A remark."):
        assert wanted in page.words
    assert "20.0 to 31.5" in page.words
    sources = [str(a["src"]).split(",")[1] for t, a in page.tags if t == "img"]
    assert [base64.b64decode(s) for s in sources] == [f.data for f in study.figures]
    # The best of a place, as shown, is bold: not raw's summary, and no seed by itself, which has no rival.
    assert re.findall(r'<td class="num best">([^ <]+)', text) == ["2.00", "2.00"]
    assert "-0.00" not in page.words


def test_files_hold_everything_and_nothing_half_written(tmp_path: Path) -> None:
    study = a_study()
    write_result(study, tmp_path / "new")
    page = write_page(study, tmp_path / "new")
    assert page.name == "example.html"
    names = {p.name for p in page.parent.iterdir()}
    assert names == {
        "example.html",
        "example.json",
        "example.tsv",
        "example_predictions.tsv",
        "example_scatter.png",
        "example_mae.png",
    }
    assert (page.parent / "example_scatter.png").read_bytes().startswith(PNG)
    stored = json.loads((page.parent / "example.json").read_text())
    assert stored["tables"][0]["rows"][1]["metrics"]["mae"] == {
        "value": 3.5,
        "ci95": [3.0, 5.0],
        "range": None,
    }
    assert stored["figures"][0]["file"] == "example_scatter.png"
    with open(page.parent / "example.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(r["method"], r["seed"], r["value"]) for r in rows[:3]] == [
        ("raw", "all", "4.0"),
        ("raw", "0", "3.5"),
        ("raw", "1", "4.5"),
    ]
    assert rows[0]["range_low"] == "3.5" and rows[1]["ci95_high"] == "5.0"
    assert rows[4]["value"] == "n/a"
    with open(page.parent / "example_predictions.tsv", newline="") as stream:
        said = list(csv.DictReader(stream, delimiter="\t"))
    assert [float(r["predicted"]) for r in said] == [p.predicted for p in study.predictions]


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        write_result(a_study(), folder)
        write_page(a_study(), folder)
    files = sorted(path.name for path in first.iterdir())
    assert len(files) > 1 and files == sorted(path.name for path in second.iterdir())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
