"""The report page: complete, escaped, readable without scripts or network."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from hz_runtime.histogram import histogram_svg
from hz_runtime.report import figure_data, render_report, write_report

VOID = {"meta", "img", "br", "link", "input", "rect", "path"}
HOSTILE = '<script>alert("1")</script>&\'.nii.gz'


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def figure():
    data = np.zeros((20, 24, 18), np.float32)
    data[4:16, 4:20, 4:14] = 0.5
    volume = SimpleNamespace(data=data, affine=np.eye(4))
    prepared = SimpleNamespace(grid=data, grid_affine=np.eye(4), low=0.0, high=1.0)
    return figure_data(volume, prepared, data * np.float32(1.2), data)


def a_run(**more):
    scans = [
        {
            "input": "sub-01_T1w.nii.gz",
            "name": "sub-01",
            "status": "ok",
            "reason": "",
            "outputs": ["sub-01_desc-harmonized_T1w.nii.gz"],
            "age_raw": 41.26,
            "age_corrected": 44.04,
            "age": 40.0,
            "flags": [],
        },
        {
            "input": "sub-02_T1w.nii.gz",
            "name": "sub-02",
            "status": "flagged",
            "outputs": [],
            "age_raw": None,
            "flags": ["age-out-of-range", "the brain lay 14 mm away"],
        },
        {"input": HOSTILE, "name": "bad", "status": "failed", "reason": "Truncated <gzip> & more."},
    ]
    run = {
        "hz_version": "0.1.0",
        "bundle": {
            "name": "reference",
            "id": "sha256:" + "0123456789abcdef" * 4,
            "path": "/secret/place/r.hz",
        },
        "backend": {
            "name": "onnxruntime",
            "provider": "CPUExecutionProvider",
            "device": "cpu",
            "version": "1.31",
            "ladder": ["openvino: not installed"],
        },
        "options": {"space": "native", "out": "/secret/place/hz-out"},
        "counts": {"ok": 1, "flagged": 1, "failed": 1, "skipped": 0},
        "timings": {"wall_s": 3.5, "stages": {"read": {"total_s": 1.25, "median_s": 0.4}, "write": 2.0}},
        "scans": scans,
    }
    return {**run, **more}


def test_page_says_what_happened(figure):
    page = Page(render_report(a_run(), {"sub-01": figure, "sub-02": figure}))
    words = page.words
    for expected in (
        "not for diagnosis or any other clinical use",
        "2 of 3 scans harmonized",
        "1 ok",
        "1 flagged",
        "1 failed",
        "reference",
        "0123456789ab",
        "onnxruntime 1.31",
        "CPUExecutionProvider",
        "openvino: not installed",
        "3.5 s",
        "1.25",
        "41.3",
        "44.0",
        "+4.0",
        "age out of range",
        "the brain lay 14 mm away",
        "Truncated <gzip> & more.",
        "sub-01_desc-harmonized_T1w.nii.gz",
    ):
        assert expected in words, expected
    assert page.all("html")[0]["lang"] == "en"
    assert "0 skipped" not in words


def test_pictures_are_inline_and_described(figure):
    page = Page(render_report(a_run(), {"sub-01": figure, "sub-02": figure}))
    images = page.all("img")
    assert len(images) == 6
    assert all(image["alt"] and image["width"] and image["loading"] == "lazy" for image in images)
    data = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images[:3]]
    assert data == [figure.before, figure.after, figure.difference]
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") for svg in page.all("svg"))


def test_failed_scans_have_a_reason_and_no_picture(figure):
    run = a_run()
    page = Page(render_report({**run, "scans": run["scans"][2:]}, {"bad": figure}))
    assert page.all("img") == []
    assert page.words.count("Truncated <gzip> & more.") == 2


def test_every_link_leads_to_a_panel(figure):
    page = Page(render_report(a_run(), {"sub-01": figure}))
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [a["href"] for a in page.all("a") if a["href"].startswith("#")]
    assert len(links) == 3
    assert {link[1:] for link in links} <= targets


def test_hostile_text_stays_text(figure):
    run = a_run(bundle={"name": HOSTILE, "id": '"><img src=x onerror=y>'}, hz_version="<b>")
    scan = dict(run["scans"][0], input=HOSTILE, name=HOSTILE, flags=[HOSTILE], status='"><script>')
    scan["outputs"] = ["javascript:alert(1)", '"onmouseover="x', "//elsewhere/x"]
    text = render_report({**run, "scans": [scan]}, {HOSTILE: figure})
    page = Page(text)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 3
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert HOSTILE in page.words
    outside = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert outside == ["./javascript%3Aalert%281%29", "./%22onmouseover%3D%22x", "./elsewhere/x"]


def test_direction_and_control_characters_are_shown_as_such():
    run = {"scans": [{"input": "a\u202egpj.nii\n\x1b[2J", "status": "ok"}]}
    text = render_report(run, {})
    assert "\u202e" not in text and "\x1b" not in text
    assert "a\ufffdgpj.nii" in text


def test_nothing_is_loaded_and_only_this_script_may_run(figure):
    text = render_report(a_run(), {"sub-01": figure})
    page = Page(text)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|url\(|@import", text)
    assert not any(
        attrs.get(key, "data:").split(":")[0] != "data" for _, attrs in page.tags for key in ("src", "srcset")
    )
    assert all("style" not in attrs for _, attrs in page.tags)  # the policy would drop inline styles


def test_no_folders_of_this_machine():
    run = a_run()
    run["scans"][0]["input"] = "/secret/place/sub-01_T1w.nii.gz"
    text = render_report(run, {})
    assert "secret" not in text
    assert "sub-01_T1w.nii.gz" in text


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"scans": []},
        {"scans": [{}]},
        {"scans": [None, 3]},
        {"scans": "no", "bundle": None, "backend": [], "timings": {"stages": {"read": None}, "wall_s": "x"}},
        {"scans": [{"status": "ok", "age_raw": float("nan"), "age": True, "flags": None, "outputs": 3}]},
        {"counts": {"ok": None, "weird": 3}, "timings": {"wall_s": float("inf")}},
    ],
)
def test_missing_and_odd_keys_leave_gaps(run):
    words = Page(render_report(run, {})).words
    assert "Harmonization report" in words
    assert "nan" not in words.split()
    assert "None" not in words


def test_long_runs_are_folded_and_say_where_to_look(figure):
    scan = a_run()["scans"]
    scans = [{**scan[1 if i == 40 else 0], "input": f"s{i}.nii", "name": f"s{i}"} for i in range(60)]
    text = render_report({"scans": scans}, {f"s{i}": figure for i in range(60)})
    page = Page(text)
    panels = [d for d in page.all("details") if d.get("class") == "panel"]
    assert len(panels) == 60
    assert sum("open" in d for d in panels) == 20
    assert "Look at these first" in page.words
    # Target inside the fold: a browser opens it when a link leads there.
    assert re.search(
        r'<details[^>]*data-scan="60"[^>]*>\s*<summary>.*?</summary>\s*<div class="body" id="scan-60"', text
    )


def test_resumed_scans_show_their_earlier_verdict(figure):
    scan = {**a_run()["scans"][1], "status": "skipped", "recorded": "flagged", "reason": "done before"}
    scan["outputs"] = ["x.nii.gz"]
    page = Page(render_report({"scans": [scan]}, {"sub-02": figure}))
    assert "0 of 1 scan harmonized in this run. 1 had been done before." in page.words
    assert "done before; age out of range" in page.words
    assert len(page.all("img")) == 3


def test_written_whole_and_reproducibly(tmp_path, figure):
    run = a_run()
    run["scans"][0]["input"] = "caf\u00e9_\udcff.nii.gz"  # an undecodable byte in a file name
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, run, {"sub-01": figure})
    first = (tmp_path / "a.html").read_bytes()
    assert first == (tmp_path / "b.html").read_bytes()
    assert first.decode("utf-8").endswith("</html>\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_histogram_curve_follows_the_counts():
    counts = [0] * 64
    counts[16], counts[48] = 10, 5
    svg = histogram_svg([counts], [], 'a "label" <x>')
    assert 'aria-label="a &quot;label&quot; &lt;x&gt;"' in svg
    path = re.search(r'class="before" d="([^"]+)"', svg).group(1)
    heights = [float(v) for v in re.findall(r"V([\d.]+)H", path)]
    base = max(heights)
    drawn = [base - h for h in heights]
    assert len(drawn) == 64
    assert drawn[16] == pytest.approx(2 * drawn[48])
    assert drawn[16] > 50
    assert sum(h > 0 for h in drawn) == 2
    assert "class" in histogram_svg([], [], "nothing")
    assert "nan" not in histogram_svg([[0] * 64], [], "empty")
