"""The appearance study on cohorts whose site effects are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw with matplotlib")
pytest.importorskip("sklearn", reason="t-SNE is scikit-learn's")

from hz_runtime.errors import UsageError
from hz_runtime.report.png import png_size
from hz_train.cohort import Cohort, Scan
from hz_train.studies import appearance as study
from hz_train.studies.baselines import ComBat, Nyul, Raw
from hz_train.studies.page import write_page
from small_study import Perfect, cohort, resample_less, settings, table, value


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "compared", lambda _, __: [Raw(), Nyul(), ComBat(), Perfect()])
        resample_less(patch, study)
        yield study.appearance(cohort(), settings(tmp_path_factory.mktemp("study")))


def test_a_perfect_method_mixes_the_sites(result):
    purity = {m: value(result, "overlap", m, "all sites", "purity") for m in ("raw", Perfect.name)}
    energy = {m: value(result, "overlap", m, "all sites", "energy") for m in ("raw", Perfect.name)}
    assert purity["raw"] > 0.8 and abs(purity[Perfect.name]) < 0.3
    assert energy["raw"] > 0.4 and abs(energy[Perfect.name]) < 0.15


def test_a_perfect_method_looks_like_the_reference(result):
    for metric in ("w0", "w1", "w2", "w3", "mean"):
        before = value(result, "likeness", "raw", "all other sites", metric)
        after = value(result, "likeness", Perfect.name, "all other sites", metric)
        assert after < 0.35 * before, metric


def test_every_number_has_its_interval_and_count(result):
    rows = [r for t in result.tables for r in t.rows]
    assert {r.site for r in table(result, "overlap").rows} == {"all sites", "bonn", "oslo", "rome"}
    for row in rows:
        assert row.n == {"all sites": 18, "all other sites": 12}.get(row.site, 6) and row.seed == 0
        for metric in row.metrics.values():
            assert metric.value is not None and metric.ci95 is not None and metric.ci95[0] <= metric.ci95[1]


def test_methods_on_features_have_no_volumes_to_compare(result):
    assert {r.method for r in table(result, "overlap").rows} == {"raw", "Nyul", ComBat.name, Perfect.name}
    assert {r.method for r in table(result, "likeness").rows} == {"raw", "Nyul", Perfect.name}


def test_pictures_and_report(result, tmp_path):
    page = write_page(result, tmp_path).read_text(encoding="utf-8")
    assert [f.name for f in result.figures] == ["histograms", "maps", "tsne"]
    for figure in result.figures:
        width, height = png_size(figure.data)
        assert 300 < width < 2000 and 200 < height < 2000 and figure.title in page


def test_earth_movers_distance_of_shifted_sites():
    """Every scan of one site is the reference's, a constant brighter: the distance is that constant."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.6, (8, 4000))
    volumes = np.concatenate([base, base + 0.15]).reshape(16, 20, 20, 10).astype(np.float32)
    masks = np.ones(volumes.shape, bool)
    scans = tuple(Scan(None, f"s{k}", "ab"[k // 8], None, "", "") for k in range(16))
    scored = study.Scored(scans, masks.astype(np.uint8), masks[0], ("a", "b"))
    shares = study.cumulated(volumes, masks, (0.0, 1.0), bins=400)
    gaps = study.histogram_gaps(shares, (0.0, 1.0), scored, "a")(np.ones(16))
    np.testing.assert_allclose(gaps, [0.15, 0.15], atol=2e-3)
    again = study.histogram_gaps(shares, (0.0, 1.0), scored, "a")(np.r_[np.zeros(8), np.ones(8)])
    assert np.isnan(again).all()  # nobody of the reference site was drawn


def test_map_gaps_are_differences_of_means_and_sds():
    values = np.array([[0.0, 0.2], [0.4, 0.2], [0.5, 0.5], [0.5, 0.9]])
    scans = tuple(Scan(None, f"s{k}", "aabb"[k], None, "", "") for k in range(4))
    scored = study.Scored(scans, np.zeros((4, 1, 1, 1), np.uint8), np.ones((1, 1, 1), bool), ("a", "b"))
    found = study.map_gaps(values.astype(np.float32), scored, "a")(np.ones(4))
    np.testing.assert_allclose(found, [0.4, 0.4, 0.2, 0.2], atol=1e-6)  # means .2 .2 | .5 .7; sds .2 0 | 0 .2


def test_too_few_to_hold_out(tmp_path):
    few = cohort(per_site=4)
    with pytest.raises(UsageError, match="no two to be scored"):
        study.check(Cohort(few.scans), settings(tmp_path, held_out=0.2))
