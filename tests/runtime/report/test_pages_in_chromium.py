"""The pages in a real browser: they load, log nothing, ask the network for nothing, and the viewer works."""

from __future__ import annotations

import re

import numpy as np
import pytest

from browser import NO_WEBGL, WEBGL, browser
from hz_runtime.report import write_pages
from hz_runtime.report.png import png_size
from small_pages import make_figure

GATE = {"gate": "size", "passed": True, "value": 1.1, "limits": [0.72, 1.45], "unit": "times"}

PIXELS = """new Promise(done => {
  document.querySelector('[data-show=%s]').click();
  requestAnimationFrame(() => {
    const shown = document.getElementById('viewer-canvas'), copy = document.createElement('canvas');
    [copy.width, copy.height] = [shown.width, shown.height];
    const pen = copy.getContext('2d');
    pen.drawImage(shown, 0, 0);
    done([...pen.getImageData(0, 0, copy.width, copy.height).data].filter((_, i) => i %% 4 < 3));
  });
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folder with both pages of a run of twelve scans, one of which failed."""
    out = tmp_path_factory.mktemp("pages")
    figures, scans = {}, []
    for n in range(12):
        scan = {"name": f"s{n}", "input": f"s{n}.nii.gz", "site": f"site {n % 3}", "gates": [GATE]}
        if n == 4:
            scans.append({**scan, "status": "failed", "reason": "refused by the gate size"})
            continue
        figures[f"s{n}"] = make_figure(0.3 + 0.03 * n, 0.1 * (n % 2))
        interval = [22.0 + n, 42.0 + n]
        ages = {"age_raw": 30.0 + n, "age_corrected": 32.0 + n, "age_interval": interval, "age": 29.0 + 2 * n}
        scans.append({**scan, **ages, "status": "ok", "outputs": [f"s{n}.nii.gz"]})
    age = {"training_range": [20, 70], "age_interval_coverage": 0.9}
    write_pages(out, {"scans": scans, "age": age, "bundle": {"name": "tiny"}}, figures)
    return out


def only_the_page(tab, path) -> bool:
    return [r for r in tab.requests if not r.startswith("data:")] == [path.resolve().as_uri()]


@pytest.mark.slow
def test_the_viewer_shows_both_sides_and_moves(pages):
    with browser(*WEBGL) as tab:
        tab.open(pages / "report.html")
        assert tab.evaluate("document.querySelectorAll('#scans tbody tr').length") == 12
        assert tab.evaluate("document.querySelectorAll('.panel').length") == 12
        assert tab.evaluate("typeof niivue") == "undefined"  # unpacked on demand
        tab.evaluate("document.querySelector('[data-view=\"4\"]').click()")
        tab.until("document.getElementById('viewer-canvas').dataset.shown === '4'")
        note = "document.getElementById('viewer-note').textContent"
        tab.evaluate("document.getElementById('viewer-canvas').focus()")
        seen = []
        for key in ("ArrowLeft", "ArrowRight", "ArrowRight", "ArrowUp"):
            old = tab.evaluate(note)
            tab.key(key)
            tab.until(f"{note} !== {old!r}")
            seen.append([float(x) for x in re.findall(r"(?:before|after) ([\d.]+)", tab.evaluate(note))])
        np.testing.assert_allclose([b * 1.2 for b, _ in seen], [a for _, a in seen], atol=0.02)
        assert seen[0][0] < seen[1][0] < seen[2][0] == seen[3][0]  # the phantom is brighter to the right
        before, after, change = (
            np.array(tab.evaluate(PIXELS % side)).reshape(-1, 3) for side in ("before", "after", "difference")
        )
        levels = [np.percentile(side[side[:, 0] > 60, 0], 90) for side in (before, after)]  # no crosshair
        assert min(levels) > 180  # each side is shown in its own narrow window, to full white
        assert (np.ptp(after, axis=1) > 60).mean() < 0.1 < (np.ptp(change, axis=1) > 10).mean()
        assert (change[:, 0] > change[:, 2] + 10).sum() > 1000  # red: harmonized is brighter
        tab.evaluate("const s = document.getElementById('viewer-scan'); s.value = '1';"
                     "s.dispatchEvent(new Event('change'))")  # fmt: skip
        tab.until("document.getElementById('viewer-canvas').dataset.shown === '1'")
        assert tab.errors == []
        assert only_the_page(tab, pages / "report.html")


@pytest.mark.slow
def test_pages_without_webgl(pages):
    with browser(*NO_WEBGL) as tab:
        for width in (1280, 380):
            for name in ("report.html", "group.html"):
                tab.requests.clear()
                tab.open(pages / name, width)
                # nothing sticks out to the side, and pictures and plots have been drawn
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 0 || !i.complete)")
                assert tab.evaluate("[...document.querySelectorAll('svg')].length") > 5
                assert png_size(tab.picture())[0] == width
                assert only_the_page(tab, pages / name)
        tab.open(pages / "report.html")
        tab.evaluate("document.getElementById('viewer-open').click()")
        tab.until("document.getElementById('viewer-note').textContent.includes('needs WebGL 2')")
        sort = "document.querySelector('#scans th button').click()"
        tab.evaluate(f"{sort}; {sort}")
        assert tab.evaluate("document.querySelector('#scans tbody tr').textContent").startswith("s11")
        tab.evaluate("[...document.querySelectorAll('.tools button')]"
                     ".find(b => b.textContent === 'only failed').click()")  # fmt: skip
        assert tab.evaluate("document.querySelectorAll('.panel:not([hidden])').length") == 1
        assert tab.errors == []


@pytest.mark.slow
def test_the_policy_stops_what_is_not_ours(pages, tmp_path):
    text = (pages / "group.html").read_text()
    planted = '<script>document.title = "run"</script><img src="http://127.0.0.1:9/x.png">'
    (tmp_path / "planted.html").write_text(text.replace("</main>", planted + "</main>"))
    with browser(*NO_WEBGL) as tab:
        tab.open(tmp_path / "planted.html")
        assert tab.evaluate("document.title").startswith("Group report")
        assert len(tab.errors) == 2  # so the other tests' empty lists mean something
