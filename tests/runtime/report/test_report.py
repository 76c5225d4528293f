"""The report page: complete, escaped, readable without scripts or network."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from importlib import resources

import pytest

from hz_runtime.report import figures_of, remove_pages, render_report, write_pages
from hz_runtime.report.age_scale import AgeScale
from hz_runtime.report.histogram import histogram_svg
from hz_runtime.report.row_picture import row_picture
from hz_runtime.report.viewer import niivue
from small_pages import HOSTILE, Page, make_figure


@pytest.fixture(scope="module")
def figure():
    return make_figure()


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
    assert [image["class"] for image in images] == ["in-row"] * 2 + ["strip"] * 6
    assert all(image["alt"] and image["width"] and image["loading"] == "lazy" for image in images)
    data = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images[2:5]]
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
    assert len(links) == 6  # two to look at first, the table's three, and one to the viewer
    assert {link[1:] for link in links} <= targets


def test_hostile_text_stays_text(figure):
    run = a_run(bundle={"name": HOSTILE, "id": '"><img src=x onerror=y>'}, hz_version="<b>")
    scan = dict(run["scans"][0], input=HOSTILE, name=HOSTILE, flags=[HOSTILE], status='"><script>')
    scan["outputs"] = ["javascript:alert(1)", '"onmouseover="x', "//elsewhere/x"]
    text = render_report({**run, "scans": [scan]}, {HOSTILE: figure})
    page = Page(text)
    assert len([s for s in page.all("script") if "type" not in s]) == 2  # the others are data
    assert len(page.all("img")) == 4
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert HOSTILE in page.words
    outside = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert outside == ["./javascript%3Aalert%281%29", "./%22onmouseover%3D%22x", "./elsewhere/x"]


def test_direction_and_control_characters_are_shown_as_such():
    run = {"scans": [{"input": "a\u202egpj.nii\n\x1b[2J", "status": "ok"}]}
    text = render_report(run, {})
    assert "\u202e" not in text and "\x1b" not in text
    assert "a\ufffdgpj.nii" in text


def test_nothing_is_loaded_and_only_these_scripts_may_run(figure):
    text = render_report(a_run(), {"sub-01": figure})
    page = Page(text)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy and "blob:" not in policy and "*" not in policy
    bodies = [*re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.S), niivue()]
    hashes = {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies}
    assert len(hashes) == 4
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    without_data = re.sub(r'<script type="application/[a-z]+".*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?:|url\(|@import", without_data)
    assert not any(
        attrs.get(key, "data:").split(":")[0] != "data" for _, attrs in page.tags for key in ("src", "srcset")
    )
    assert all("style" not in attrs for _, attrs in page.tags)  # the policy would drop inline styles


def test_a_page_without_small_volumes_has_no_viewer(figure):
    plain = replace(figure, small_before=b"", small_after=b"")
    text = render_report(a_run(), {"sub-01": plain})
    page = Page(text)
    assert len(page.all("script")) == 1 and "viewer" not in page.words
    assert len(text) < 120_000
    assert "'sha256-" + base64.b64encode(hashlib.sha256(niivue().encode()).digest()).decode() not in text


def test_the_viewer_is_the_one_that_was_pinned_and_its_licences_travel():
    folder = resources.files("hz_runtime.report").joinpath("niivue")
    licences = folder.joinpath("LICENSES.txt").read_text(encoding="utf-8")
    assert "BSD 2-Clause License" in licences and "Copyright (c) 2021, Niivue" in licences
    assert "@niivue/niivue@0.69.0" in folder.joinpath("build.sh").read_text(encoding="utf-8")
    assert not re.search(r"WebAssembly|\beval\(|new Function", niivue())


def a_folder(path, figures):
    (path / "figures").mkdir()
    scans = []
    for name, figure in figures.items():
        (path / f"figures/{name}.json").write_bytes(figure.to_bytes())
        scans.append({"name": name, "status": "ok", "outputs": ["x"], "figure": f"figures/{name}.json"})
    return scans


def test_a_page_holds_volumes_up_to_a_limit_and_flagged_ones_first(tmp_path, figure):
    scans = a_folder(tmp_path, dict.fromkeys(("a", "b", "c"), figure))
    scans[2]["status"] = "flagged"
    (tmp_path / "figures/b.json").write_bytes(b"damaged")
    size = len(figure.small_before) + len(figure.small_after)
    found = figures_of(tmp_path, [*scans, {"name": "d", "figure": None}], limit=size)
    assert set(found) == {"a", "c"}
    assert found["c"] == figure
    assert found["a"] == replace(figure, small_before=b"", small_after=b"", row=row_picture(figure))
    assert found["a"].row.startswith(b"\x89PNG")
    text = render_report({"scans": scans}, found)
    assert text.count('id="volume-') == 2 and 'id="volume-3-before"' in text
    assert "holds 1 of 2 scans, flagged ones first" in Page(text).words


GATES = [
    {"gate": "size", "passed": True, "value": 1.1, "limits": [0.72, 1.45], "unit": "times"},
    {"gate": "similarity", "passed": False, "value": 0.12, "limits": [0.4, None], "unit": "correlation"},
    {"gate": HOSTILE, "passed": "yes", "value": None, "limits": "no", "unit": None},
]


def test_gates_are_lights_also_of_failed_scans(figure):
    run = a_run()
    run["scans"][0]["gates"] = GATES[:1]
    run["scans"][2]["gates"] = GATES
    page = Page(render_report(run, {"sub-01": figure}))
    lights = [s["aria-label"] for s in page.all("svg") if "light" in (s.get("class") or "")]
    # the table's two, then one of the first panel and three of the last, failed ones first
    assert lights == ["passed", "failed", "passed", "failed", "failed", "passed"]
    assert "all 1" in page.words
    assert "similarity 0.12 correlation (at least 0.4 wanted)" in page.words
    assert "size 1.1 times (0.72 to 1.45 wanted)" in page.words
    assert f"{HOSTILE} not measurable" in page.words
    assert "Gates" not in Page(render_report(a_run(), {})).words


def test_age_scale_puts_ages_where_they_belong():
    run = a_run(age={"training_range": [20, 80], "age_interval_coverage": 0.9})
    run["scans"][0]["age_interval"] = [35.0, 53.0]
    page = Page(render_report(run, {}))
    (scale,) = [s for s in page.all("svg") if s.get("class") == "age-scale"]
    assert scale["aria-label"] == (
        "predicted age 44.0 years, training ages 20 to 80, 90 % interval 35.0 to 53.0, known age 40.0"
    )
    assert "35.0 to 53.0 years" in page.words and "90 % interval" in page.words
    scale = AgeScale(20.0, 80.0, (20.0, 80.0), 0.9)
    svg = scale.svg({"age_raw": 50.0, "age": 20.0, "age_interval": [35.0, 65.0]})
    assert float(re.search(r'cx="([\d.]+)"', svg).group(1)) == 160.0  # the middle of 320
    low, high = re.search(r'class="interval" d="M([\d.]+) \d+H([\d.]+)', svg).groups()
    assert float(low) + float(high) == 320.0
    assert scale.svg({"age": 30.0}) == ""
    assert "nan" not in AgeScale.of({"scans": [{"age_raw": 1e9, "age": -5, "age_interval": [3, 1]}]}).svg(
        {"age_raw": 1e9}
    )


def test_pages_of_an_earlier_run_go(tmp_path):
    run, scan = a_run(), a_run()["scans"][0]
    scans = [{**scan, "name": name} for name in "abc"]
    write_pages(tmp_path, {**run, "scans": scans}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["group.html", "report.html"]
    assert 'href="./group.html"' in (tmp_path / "report.html").read_text()
    write_pages(tmp_path, {**run, "scans": scans[:1]}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    remove_pages(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_pages(tmp_path)


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
    assert len(page.all("img")) == 4


CAVEAT = "the 90% age interval was not made for such a scan: it may not hold the age"
FLAGS = (
    ("shifted", ["sd 0.5 is unlike the training scans: look at it", CAVEAT]),
    ("old", ["known age 82 is outside the ages of the age network's training", CAVEAT]),
    ("cut", ["4% of the brain lies outside the template's field of view", "sd is unlike the others", CAVEAT]),
    ("dark", ["sd is unlike the others", "no age: much fluid", "slices of 5 mm", CAVEAT]),
)


def flagged_run():
    scans = [{"input": "good", "name": "good", "status": "ok"}]
    for name, flags in FLAGS:
        found = {"status": "flagged", "reason": "; ".join(flags), "flags": flags}
        scans.append({"input": name, "name": name, **found})
    return {"scans": [*scans, {"input": "bad", "name": "bad", "status": "failed", "reason": "Truncated."}]}


def test_the_most_harmful_scans_are_looked_at_first():
    text = render_report(flagged_run(), {})
    listed = text[text.index("<h2>Look at these first") : text.index("<h2>Scans</h2>")]
    assert re.findall(r'<a class="name"[^>]*>(\w+)</a>', listed) == ["bad", "dark", "old", "cut", "shifted"]
    assert "no age: much fluid (and 2 more)" in Page(listed).words
    alone = {"scans": flagged_run()["scans"][1:2]}
    assert "Look at these first" not in render_report(alone, {})


def test_a_row_shows_the_worst_flag_and_folds_the_others(figure):
    text = render_report(flagged_run(), {"dark": figure})
    rows = re.findall(r'<tr data-scan="\d">.*?</tr>', text.replace(' data-status="flagged"', ""), re.DOTALL)
    dark = next(row for row in rows if ">dark<" in row)
    assert re.search(
        r"<td>no age: much fluid<details><summary>and 2 more</summary><ul><li>slices of 5 mm</li>", dark
    )
    assert dark.count("<img") == 1 and sum(row.count("<img") for row in rows) == 1
    assert "more</summary>" not in next(row for row in rows if ">old<" in row)


def test_what_flags_mean_for_intervals_is_said_once(figure):
    words = Page(render_report(flagged_run(), {"dark": figure})).words
    assert "was not made for such a scan" not in words
    assert words.count("of a flagged scan it may not hold the age") == 1
    assert "flagged scan it may not" not in Page(render_report(a_run(), {})).words


def test_written_whole_and_reproducibly(tmp_path, figure):
    run = a_run()
    run["scans"][0]["input"] = "caf\u00e9_\udcff.nii.gz"  # an undecodable byte in a file name
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_pages(tmp_path / name, run, {"sub-01": figure})
    first = (tmp_path / "a" / "report.html").read_bytes()
    assert first == (tmp_path / "b" / "report.html").read_bytes()
    assert first.decode("utf-8").endswith("</html>\n")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["report.html"]  # one scan is no group


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
