"""The group page: its numbers against other ways to get them, its text, and when there is one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.errors import UsageError
from hz_runtime.report import render_group
from hz_runtime.report.plot import Line, Point, scatter
from hz_runtime.report.projection import project, site_share
from small_pages import HOSTILE, Page, make_figure


def a_group(sites=("A", "A", "B", "B"), **more):
    """A run of one scan a site given: predicted 30, 34, 38 ..., known 31, 32, 33 ..."""
    scans = [
        {
            "name": f"s{n}",
            "input": f"s{n}.nii",
            "status": "ok",
            "outputs": ["x"],
            "site": site,
            "age_raw": 30.0 + 4 * n,
            "age": 31.0 + n,
        }
        for n, site in enumerate(sites)
    ]
    return {"scans": scans, **more}


@pytest.fixture(scope="module")
def figures():
    return {f"s{n}": make_figure(0.3 + 0.05 * n, 0.1 * (n % 2)) for n in range(4)}


def test_projection_is_the_classical_one():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(9, 40)), rng.normal(size=(9, 40)) * 0.3 + 5
    found = project(before, after)
    pooled = np.concatenate([before - before.mean(0), after - after.mean(0)])
    values, vectors = np.linalg.eigh(pooled.T @ pooled)  # a second way: eigenvectors of the covariance
    for k in (0, 1):
        along = vectors[:, -1 - k]
        column = np.concatenate([found.before[:, k], found.after[:, k]])
        assert abs(np.corrcoef(column, pooled @ along)[0, 1]) == pytest.approx(1.0)
        assert found.variance_shares[k] == pytest.approx(values[-1 - k] / values.sum())
    np.testing.assert_allclose(found.before.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found.after.mean(0), 0, atol=1e-12)
    with pytest.raises(ValueError, match="3 or more"):
        project(before[:2], after[:2])
    assert np.isfinite(project(np.zeros((4, 8)), np.zeros((4, 8))).before).all()


def test_site_share_is_that_of_pairwise_distances():
    # Anderson 2001, eqs. 1-3: sums of squared distances between pairs over group sizes.
    rng = np.random.default_rng(1)
    sites = ["a"] * 5 + ["b"] * 3 + ["c"] * 4
    features = rng.normal(size=(12, 6)) + np.array([ord(s) for s in sites])[:, None] * 0.7
    squared = ((features[:, None] - features[None]) ** 2).sum(-1)
    total = np.triu(squared).sum() / 12
    within = 0.0
    for site in "abc":
        rows = [i for i, s in enumerate(sites) if s == site]
        within += np.triu(squared[np.ix_(rows, rows)]).sum() / len(rows)
    share, chance = site_share(features, sites)
    assert share == pytest.approx(1 - within / total)
    assert chance == pytest.approx(2 / 11)
    noise = [site_share(rng.normal(size=(12, 6)), list(rng.permutation(sites)))[0] for _ in range(400)]
    assert np.mean(noise) == pytest.approx(chance, abs=0.01)
    assert site_share(features, ["a"] * 12) is None
    assert site_share(features[:3], ["a", "b", "c"]) is None
    assert site_share(np.zeros((4, 2)), ["a", "a", "b", "b"]) is None


def test_page_compares_ages_and_sites(figures):
    text = render_group(a_group(age={"training_range": [32, 60]}), figures)
    page = Page(text)
    words = page.words
    gaps = np.array([-1.0, 2.0, 5.0, 8.0])  # predicted minus known
    spread = 1.96 * gaps.std(ddof=1)
    for expected in (
        "4 harmonized scans from 2 sites compared",
        "not for diagnosis",
        "of the variance lies between sites",
        "1 of the 4 known ages here lies outside",
        f"mean +{gaps.mean():.1f}",
        f"+{gaps.mean() + spread:.1f}",
        "\u2212" + f"{spread - gaps.mean():.1f}",
        "least-squares slope +3.00 a year",
    ):
        assert expected in words, expected
    rows = re.findall(r'<tr><td><span class="name">(\w+)</span></td>(.*?)</tr>', text)
    cells = {name: re.findall(r">([^<]*)</td>", row) for name, row in rows}
    assert cells["A"] == ["2", "31.5", "1.5", "+0.5", "2.1", ""]
    assert cells["all"] == ["4", "32.5", "4.0", "+3.5", "3.9", "1.00"]
    plots = [s for s in page.all("svg") if s.get("class") == "plot"]
    assert len(plots) == 6
    assert all(plot["aria-label"] for plot in plots)
    assert page.all("script") == []
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert "default-src 'none'" in policy and "script-src 'none'" in policy


def test_sites_and_names_are_text(figures):
    run = a_group((HOSTILE, HOSTILE, "\u202eB", None))
    page = Page(render_group(run, figures))
    assert HOSTILE in page.words and "no site given" in page.words
    assert page.all("script") == [] and page.all("img") == []
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_without_sites_or_ages_there_is_what_there_is(figures):
    run = a_group((None,) * 4)
    page = Page(render_group(run, figures))
    assert "No sites were given" in page.words and "lies between sites" not in page.words
    for scan in run["scans"]:
        del scan["age"]
    page = Page(render_group(run, figures))
    assert "--participants TSV" in page.words
    assert len([s for s in page.all("svg") if s.get("class") == "plot"]) == 2
    ages_only = Page(render_group(a_group(), {}))
    assert len([s for s in ages_only.all("svg") if s.get("class") == "plot"]) == 4


def test_sites_come_from_the_participants_table(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text(
        "participant_id\tage\tsite\nsub-1\t30\tA\nsub-2\tn/a\tB\nsub-3\t40\tn/a\nsub-4\t1\tA\nsub-4\t1\tB\n"
    )
    known = KnownAges.from_tsv(table)
    scans = [InputScan(Path(f"sub-{n}_T1w.nii.gz"), f"sub-{n}_T1w.nii.gz", f"sub-{n}") for n in range(1, 6)]
    assert [known.site_of(scan).get("site") for scan in scans] == ["A", "B", None, None, None]
    assert [known.of(scan) for scan in scans] == [30.0, None, 40.0, 1.0, None]
    table.write_text("file\tage\nsub-1_T1w.nii.gz\t30\n")
    assert KnownAges.from_tsv(table).site_of(scans[0]) == {}


def test_a_quote_swallows_no_rows(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text('participant_id\tnote\tage\nsub-1\t"left\t30\n2\tright" he said\t40\nsub-3\t\t50\n')
    scans = [InputScan(Path(f"sub-{n}_T1w.nii.gz"), f"sub-{n}_T1w.nii.gz", f"sub-{n}") for n in range(1, 4)]
    assert [KnownAges.from_tsv(table).of(scan) for scan in scans] == [30.0, 40.0, 50.0]
    table.write_text('"File"\t"Age"\t"Site"\n"sub-1_T1w.nii.gz"\t30\t"A"\n')  # as R writes tables
    known = KnownAges.from_tsv(table)
    assert (known.of(scans[0]), known.site_of(scans[0])) == (30.0, {"site": "A"})
    table.write_text("participant_id\tage\n")
    with pytest.raises(UsageError, match="no rows"):
        KnownAges.from_tsv(table)


def test_fewer_than_three_are_no_group(figures):
    assert render_group(a_group(("A", "B")), figures) is None
    assert render_group({}, {}) is None
    run = a_group()
    run["scans"][0]["status"] = "failed"
    run["scans"][1]["outputs"] = []
    assert render_group(run, figures) is None


def test_one_age_for_everybody_is_said_first():
    def page(n, predicted, known):
        run = a_group(("A",) * n)
        for k, scan in enumerate(run["scans"]):
            scan["age_raw"], scan["age"] = predicted(k), known(k)
        return render_group(run, {}) or ""

    words = Page(page(12, lambda k: 35 + 0.1 * k, lambda k: 20 + 5 * k)).words
    said = "and these people are 20 to 75 years old: the age network does not tell them apart"
    assert "Nearly the same age was predicted for all 12 scans" in words and said in words
    assert words.index(said) < words.index("Report scan by scan")
    assert said in Page(page(12, lambda k: 35 + 0.4 * k, lambda k: 20 + 5 * k)).words  # 4 of 50 years
    unknown = page(8, lambda k: 35 + 0.1 * k, lambda k: None)  # a page for the sake of this alone
    assert "only where all these people are of one age" in Page(unknown).words
    one_odd = Page(page(40, lambda k: 60 if k == 0 else 35, lambda k: 20 + k)).words
    assert "35.0 to 35.0 years in nine of ten" in one_odd
    for predicted, known in (
        (lambda k: 30 + 2 * k, lambda k: 20 + 5 * k),  # they differ
        (lambda k: 35 + 0.1 * k, lambda k: 34 + 0.2 * k),  # so do not these people
    ):
        assert "Nearly the same age" not in page(12, predicted, known)
    assert "Nearly the same age" not in page(7, lambda k: 35, lambda k: 20 + 5 * k)
    assert page(7, lambda k: 35, lambda k: None) == ""


def test_equal_scans_and_equal_ages_still_draw(figures):
    run = a_group()
    for scan in run["scans"]:
        scan.update(age=40.0, age_raw=40.0)
    same = {name: replace(figures["s0"]) for name in figures}
    text = render_group(run, same)
    assert "nan" not in text and "inf" not in Page(text).words.split()


@pytest.mark.parametrize("same", ["age", "age_raw"])
def test_equal_ages_have_no_correlation(same):
    run = a_group(("A",) * 6)
    for scan in run["scans"]:
        scan[same] = 63.7  # whose mean over six is not 63.7 in floats
    (cells,) = re.findall(r'<tr><td><span class="name">A</span></td>(.*?)</tr>', render_group(run, {}))
    assert re.findall(r">([^<]*)</td>", cells)[-1] == ""


def test_points_lie_where_their_values_are():
    points = [Point(0, 0, 0, "low"), Point(10, 5, 1, "high"), Point(5, 2.5, 2, "middle")]
    svg = scatter(points, "a <label>", ("x", "y"), [Line((0, 10), (0, 5))], ((0, 10), (0, 5)))
    assert 'aria-label="a &lt;label&gt;"' in svg
    at = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'class="mark s\d" d="M([\d.]+) ([\d.]+)m[^"]*"><title>(\w+)', svg)
    }
    assert at["low"][0] < at["middle"][0] < at["high"][0]
    assert at["low"][1] > at["middle"][1] > at["high"][1]  # up is more
    np.testing.assert_allclose(at["middle"], np.mean([at["low"], at["high"]], axis=0), atol=0.11)
    start, end = re.search(r'class="line" d="M([\d.]+ [\d.]+)L([\d.]+ [\d.]+)"', svg).groups()
    assert tuple(map(float, start.split())) == at["low"] and tuple(map(float, end.split())) == at["high"]
