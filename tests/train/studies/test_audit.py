"""The audit on cohorts whose site effects, truth and tissues are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw with matplotlib")

import small_study
from hz_runtime.model_space.recipe import Recipe
from hz_train.cohort import read_participants
from hz_train.datasets import load
from hz_train.studies import audit as study
from hz_train.studies import comparison, predictability
from hz_train.studies import truth as known_truth
from hz_train.studies.baselines import ComBat, Raw, ZScore
from hz_train.studies.classifier import Training
from hz_train.studies.comparison import BETWEEN, Known, rescan_rows
from hz_train.studies.page import write_page
from hz_train.studies.predictability import AuditPlan
from small_study import Eroding, Perfect, cohort, resample_less, settings, table, value

METHODS = ("raw", "z-score", Perfect.name, Eroding.name)
PLAN = AuditPlan(Training(epochs=1, width=4), longest=2, folds=2)


def run(prepared, where, truth, labels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "compared", lambda _, __: [Raw(), ZScore(), ComBat(), Perfect(), Eroding()])
        patch.setattr(study, "truths", lambda *_: truth)
        patch.setattr(study, "label_maps", lambda *_: labels)
        patch.setitem(study.PLANS, "quick", PLAN)
        resample_less(patch, comparison, predictability)
        return study.audit(prepared, settings(where))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    prepared = cohort(per_site=10, rescans=5)
    labels = small_study.label_maps(prepared)
    return run(prepared, tmp_path_factory.mktemp("study"), small_study.truths(prepared), labels)


def test_the_site_is_told_from_raw_scans_and_not_from_perfect_ones(result):
    linear = {m: value(result, "site", m, "all sites", "linear", sites="real") for m in (*METHODS, "truth")}
    assert linear["raw"] > 0.9
    assert linear[Perfect.name] < 0.7 and linear["truth"] == pytest.approx(linear[Perfect.name], abs=0.01)
    assert value(result, "site", "raw", "all sites", "chance", sites="real") == pytest.approx(1 / 3)
    assert value(result, "site", "raw", "all sites", "linear", sites="scrambled") < 0.65


def test_all_classifiers_answer_for_volumes_and_the_linear_ones_for_features(result):
    rows = {(r.method, r.columns["sites"]): set(r.metrics) for r in table(result, "site").rows}
    linear, networks = {"linear_frozen", "linear"}, {"frozen", "reseeded", "converged"}
    assert rows["raw", "real"] == {*linear, *networks, "chance", "settled"}
    assert rows["raw", "scrambled"] == {"converged", "linear", "chance"}
    assert rows[ComBat.name, "real"] == {*linear, "chance"}
    assert rows[ComBat.name, "scrambled"] == {"linear", "chance"}
    assert {r.site for r in table(result, "recall").rows} == {"bonn", "oslo", "rome"}


def test_frozen_and_anew_are_the_same_question_on_raw_scans(result):
    for place in ("bonn", "oslo", "rome"):
        frozen = value(result, "recall", "raw", place, "linear_frozen")
        assert frozen == value(result, "recall", "raw", place, "linear")


def test_errors_against_the_truth(result):
    assert value(result, "paired", "raw", "all other sites", "ratio") == pytest.approx(1)
    assert value(result, "paired", Perfect.name, "all other sites", "ratio") < 1e-3
    assert value(result, "paired", Perfect.name, "all other sites", "ssim") == pytest.approx(1, abs=1e-4)
    eroded = value(result, "paired", Eroding.name, "all other sites", "ratio")
    assert 0.01 < eroded < 1
    assert {r.site for r in table(result, "paired").rows} == {"all other sites", "bonn", "rome"}


def test_lost_white_matter_is_reported_however_good_the_contrast(result):
    for against in ("truth", "label map"):
        kept, lost = (
            value(result, "anatomy", m, "all other sites", "white", **{"compared with": against})
            for m in (Perfect.name, Eroding.name)
        )
        assert abs(kept) < 1.5 and lost < -10, against
    assert value(result, "anatomy", Eroding.name, "bonn", "boundary", **{"compared with": "truth"}) > 0.5
    assert value(result, "anatomy", Perfect.name, "bonn", "boundary", **{"compared with": "truth"}) < 0.01


def test_what_says_nothing_is_left_out(result):
    pairs = {(r.method, r.columns["compared with"]) for r in table(result, "anatomy").rows}
    assert ("raw", "own raw scan") not in pairs and ("truth", "truth") not in pairs
    assert ("truth", "label map") in pairs and ("raw", "truth") in pairs


def test_rescans_agree(result):
    rows = {r.method: r for r in table(result, "rescans").rows if r.site == "all rescans"}
    for method in METHODS:
        assert rows[method].metrics["fingerprint"].value < 0.5  # noise apart, strangers differ in size
        assert rows[method].metrics["volume"].value < 2


def test_figures_and_report(result, tmp_path):
    page = write_page(result, tmp_path).read_text(encoding="utf-8")
    names = [f.name for f in result.figures]
    assert names == ["site_accuracy", "error_ratio", "volumes", "examples"]
    assert "no truth" not in page and "scrambled" in page


def test_a_cohort_without_truth_says_so(tmp_path):
    found = run(cohort(per_site=6), tmp_path, {}, {})
    assert {t.name for t in found.tables} == {"site", "recall", "anatomy"}
    text = " ".join(found.remarks)
    assert "has no truth" in text and "no label maps" in text and "scanned twice" in text


def test_travelling_heads_are_pairs_between_sites():
    prepared = cohort(per_site=4)
    scans = tuple(
        type(s)(s.path, s.subject.split("/")[1], s.site, s.age, s.sex, s.group) for s in prepared.scans
    )
    heads = [small_study.brain(int(s.subject))[1] for s in scans]  # the same head at every site
    curved = np.stack([h ** small_study.SITES[s.site] for h, s in zip(heads, scans, strict=True)])
    travelling = type(prepared)(scans, curved.astype(np.float32), prepared.features, prepared.sha256)
    known = Known.of(travelling, "oslo", {}, {})
    (raw,) = rescan_rows("raw", travelling.grids, known, 0)
    (made,) = rescan_rows("p", Perfect().apply(travelling.grids, [s.site for s in scans]), known, 0)
    assert raw.site == BETWEEN and raw.n == 4
    assert made.metrics["gap"].value < 1e-5 < 0.05 < raw.metrics["gap"].value
    assert made.metrics["fingerprint"].value < 1e-3 < raw.metrics["fingerprint"].value


def test_truth_and_labels_from_a_table(tmp_path):
    """The optional columns, read, prepared like scans, and laid on a scan's grid."""
    from hz_runtime.io.volume import Geometry, write_volume
    from small_scans import SHAPE, small_head

    lines = ["file\tparticipant_id\tsite\tage\tsex\tgroup\ttruth\tlabels"]
    for n, truth in enumerate(("truth-0.nii.gz", "n/a")):
        data, affine = small_head(n)
        labels = np.where(data > 0, 2 + (data > 650), 0).astype(np.float32)
        for name, array in ((f"scan-{n}", data**1.3), (f"truth-{n}", data), (f"labels-{n}", labels)):
            geometry = Geometry.from_affine(SHAPE, affine)
            write_volume(tmp_path / f"{name}.nii.gz", np.asfortranarray(array, np.float32), geometry)
        lines.append(f"scan-{n}.nii.gz\ts{n}\tbonn\t30\tF\tcontrol\t{truth}\tlabels-{n}.nii.gz")
    (tmp_path / "participants.tsv").write_text("\n".join(lines) + "\n")
    prepared = load(read_participants(tmp_path / "participants.tsv"), Recipe(grid_shape=(32, 32, 32)))
    recipe = Recipe(grid_shape=(32, 32, 32))
    found = known_truth.truths(prepared, recipe, n4=False)
    first, second = prepared.scans
    assert set(found) == {first.path}
    brain = prepared.grids[0] > 0.3
    correlation = np.corrcoef(found[first.path][brain], prepared.grids[0][brain] ** (1 / 1.3))[0, 1]
    assert correlation > 0.98
    maps = known_truth.label_maps(prepared, recipe)
    assert set(maps) == {first.path, second.path}
    air, grey, white = (prepared.grids[1][maps[second.path] == k].mean() for k in (0, 2, 3))
    assert air < 0.05 and grey < 0.6 < white


def test_a_missing_truth_file_is_named(tmp_path):
    from hz_runtime.errors import UsageError

    (tmp_path / "a.nii").write_bytes(b"x")
    (tmp_path / "p.tsv").write_text(
        "file\tsite\tage\tsex\tgroup\ttruth\na.nii\tbonn\t30\tF\tcontrol\tgone.nii\n"
    )
    with pytest.raises(UsageError, match=r"line 2: truth 'gone\.nii' does not exist"):
        read_participants(tmp_path / "p.tsv")
