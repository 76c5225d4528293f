"""What is said of written scans, of brains whose site effects are known and of harmonizers with known
answers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")
pytest.importorskip("sklearn", reason="discriminants are scikit-learn's")

from hz_runtime.errors import UsageError
from hz_runtime.io.volume import Volume, read_volume
from hz_train.studies import appearance, native_appearance, native_scans
from hz_train.studies.native_appearance import COMBAT, UNSEEN, combat_features, written_tables
from hz_train.studies.native_scans import all_mapped, tissue_features
from small_native import judged, leave_fields, write_brains
from small_study import SITES, settings, table, value

PEOPLE = {"bonn": 6, "oslo": 10, "rome": 6}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("brains")
    cohort = write_brains(folder, PEOPLE)
    site_of = {read_volume(s.path).sha256: s.site for s in cohort.scans}

    def perfect(volume: Volume) -> np.ndarray:
        """Knows the tone curves, and writes every scan on one scale."""
        data = volume.data / volume.data.max()
        return np.asarray(0.9 * data ** (1 / SITES[site_of[volume.sha256]]), np.float32)

    with pytest.MonkeyPatch.context() as patch:
        leave_fields(patch, native_scans)
        patch.setattr(native_appearance, "TrainedHarmonizer", judged(perfect, frozenset({"oslo", "rome"})))
        patch.setattr(native_appearance, "RESAMPLES", 50)
        yield appearance.written(cohort, settings(folder, harmonizer=folder / "some.hz"))


def test_a_perfect_harmonizer_beats_what_needs_no_training(result) -> None:
    of = {m: value(result, "native_written", m, "all sites", "grey_white_cv") for m in ("raw", "judged")}
    assert of["raw"] > 15 and of["judged"] < 3
    for method in ("raw", "N4, mean", "N4, z-score", "N4, WhiteStripe"):
        assert value(result, "native_written", method, "all sites", "distance") > 3 * value(
            result, "native_written", "judged", "all sites", "distance"
        ), method
    assert value(result, "native_written", "N4, mean", "all sites", "accuracy") == 1
    assert value(result, "native_written", "N4, mean", UNSEEN, "auc") == 1
    assert value(result, "native_parts", "raw", "all sites", "grey_white_between") > 15


def test_own_scans_of_the_target_stay_what_they_are(result) -> None:
    for metric in ("own_ratio", "own_ratio_worst"):
        assert value(result, "native_written", "judged", "all sites", metric) == pytest.approx(0, abs=1e-3)
        assert value(result, "native_written", "N4, mean", "all sites", metric) == pytest.approx(0, abs=1e-9)
    # The raw scans' gains differ by as much as they were made to, the harmonizer's scale does not.
    assert value(result, "native_written", "raw", "all sites", "own_level_worst") > 8
    assert value(result, "native_written", "judged", "all sites", "own_level_worst") < 4


def test_rows_are_of_all_sites_and_of_those_that_were_not_seen(result) -> None:
    rows = table(result, "native_written").rows
    assert {r.site for r in rows} == {"all sites", UNSEEN}
    counts = {(r.method, r.site): r.n for r in rows}
    assert counts["judged", "all sites"] == 6 + 6 + 5  # half of the target's are scored
    assert counts["judged", UNSEEN] == 6 and counts[COMBAT, UNSEEN] == 6
    assert [r.method for r in rows][::2] == [
        "raw", "N4, mean", "N4, z-score", "N4, WhiteStripe", "N4, Nyul", COMBAT, "judged"
    ]  # fmt: skip
    unseen = next(r for r in rows if (r.method, r.site) == ("judged", UNSEEN))
    assert unseen.metrics["grey_white_cv"].ci95 is not None and unseen.metrics["distance"].ci95 is not None
    assert value(result, "native_parts", "judged", UNSEEN, "grey_white_between") is None  # it is one site
    assert {t.name for t in result.tables} == {"native_written", "native_parts", "native_means"}  # no rescans


def test_features_by_hand() -> None:
    volume = np.array([0.1, 0.3, 0.6, 0.8, 1.0, 1.2], np.float32)
    found = tissue_features(volume, np.array([1, 1, 2, 2, 3, 3], np.uint8))
    pooled = np.sqrt((2 * 0.01 + 2 * 0.01) / 4 * 4 / 2)  # variances about the means: .01 each, n - 2 = 2
    np.testing.assert_allclose(found, [0.7 / 1.1, 0.2 / 1.1, 0.4 / pooled, 1.1], rtol=1e-6)
    assert np.isnan(tissue_features(volume, np.array([2, 2, 2, 2, 3, 3], np.uint8))).all()


def test_label_maps_serve_all_scans_or_none(tmp_path) -> None:
    with_maps = write_brains(tmp_path, {"oslo": 2}, labels=True).scans
    assert all_mapped(with_maps)
    assert not all_mapped((*with_maps, *write_brains(tmp_path, {"rome": 1}).scans))


def test_combat_moves_nobody_by_themselves(tmp_path) -> None:
    """A person who is unlike the rest of the site stays so: the fit has not seen them."""
    rng = np.random.default_rng(0)
    scans = write_brains(tmp_path, {"oslo": 8, "rome": 8, "bonn": 2}).scans
    features = rng.normal(1, 0.05, (18, 4)) + np.array([0.0] * 8 + [0.6] * 8 + [0.0] * 2)[:, None]
    features[8] += 5
    method = native_appearance.MethodScans("any", features, tuple(range(18)))
    made = combat_features(method, scans, "oslo")
    assert made is not None and made.rows == tuple(range(16))  # two people of a site are too few
    np.testing.assert_array_equal(made.features[:8], features[:8])
    assert np.abs(made.features[9:].mean(axis=0) - 1).max() < 0.6
    assert (made.features[8] > 3).all()


def test_a_reference_site_that_cannot_be_divided_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native_appearance, "TrainedHarmonizer", judged(lambda v: v.data))
    cohort = write_brains(tmp_path, {"oslo": 2, "rome": 3})
    with pytest.raises(UsageError, match="2 subjects of oslo cannot be divided"):
        written_tables(cohort, settings(tmp_path, harmonizer=tmp_path / "some.hz"))
