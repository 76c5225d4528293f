"""Numbers of the tables against hand computation and second implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")

from hz_train.scores import age_scores, auc, diagnosis_scores
from hz_train.studies.page import render
from hz_train.studies.predictors import ridge
from hz_train.studies.result import Column, Metric, Prediction, Row, StudyResult, Table, write_result
from hz_train.studies.tables import age_metrics, auc_metrics, scored, summarised

AGES = np.array([20.0, 30.0, 30.0, 41.0, 55.0, 62.0])
SAID = np.array([25.0, 28.0, 34.0, 41.0, 50.0, 70.0])
WHO = ["a", "b", "b", "c", "d", "e"]


def test_errors_by_hand() -> None:
    found = age_metrics(AGES, SAID, WHO, raw=AGES + 4)
    # Subject b has two scans, with errors 2 and 4: one subject with error 3 and squared error 10.
    assert found["mae"].value == pytest.approx((5 + 3 + 0 + 5 + 8) / 5)
    assert found["mse"].value == pytest.approx((25 + 10 + 0 + 25 + 64) / 5)
    assert found["r"].value == pytest.approx(np.corrcoef(AGES, SAID)[0, 1])
    assert found["change"].value == pytest.approx((1 - 1 - 4 + 1 + 4) / 5)


@pytest.mark.parametrize("n", [1, 3, 4, 6])
@pytest.mark.parametrize("said", [SAID, np.full(6, 40.0)])
def test_a_checkpoint_and_a_table_say_the_same(n: int, said: np.ndarray) -> None:
    truth, said, who = AGES[:n], said[:n], WHO[:n]

    def same(metric: Metric, stored: dict) -> bool:
        return metric == Metric(stored["value"], stored["ci95"] and tuple(stored["ci95"]))

    ours, theirs = age_metrics(truth, said, who), age_scores(truth, said, who, "")
    for one, other in (("mae", "mae_years"), ("mse", "mse_years2"), ("r", "pearson_r")):
        assert same(ours[one], theirs[other])
    older = truth > 29
    stored = diagnosis_scores(older, said, who, "")["auc"]
    assert same(auc_metrics(older.astype(float), said, who)["auc"], stored)


def test_a_correlation_needs_three_people_and_some_spread() -> None:
    assert age_metrics(AGES[:3], SAID[:3], WHO[:3])["r"].value is None
    assert age_metrics(AGES, np.full(6, 40.0), WHO)["r"].value is None


def test_a_predictor_that_collapsed_ends_no_study(tmp_path: Path) -> None:
    truth = np.linspace(20, 80, 40)
    said = np.full(40, np.float32(50.1))
    said[3] = np.nextafter(said[3], np.float32(100))  # 4e-6 years above the others
    found = age_metrics(truth, said.astype(np.float64), [f"s{k}" for k in range(40)])
    assert found["r"] == Metric(None)
    broken = age_metrics(truth, np.full(40, np.nan), [f"s{k}" for k in range(40)], raw=said)
    assert set(broken.values()) == {Metric(None)}
    areas = auc_metrics(truth > 50, np.full(40, np.nan), [f"s{k}" for k in range(40)], raw=said)
    assert set(areas.values()) == {Metric(None)}
    rows = (Row("new", "rome", found, 40, 0), Row("old", "rome", broken, 40, 0))
    table = Table("age", "Age", "", (Column("r", "r"),), rows)
    study = StudyResult("transfer", "Transfer", "?", (table,))
    write_result(study, tmp_path)
    assert ">nan" not in render(study).lower() and "NaN" not in (tmp_path / "transfer.json").read_text()


def test_one_person_gives_no_interval() -> None:
    found = age_metrics(AGES[1:3], SAID[1:3], WHO[1:3], raw=AGES[1:3])  # two scans of b
    assert found["mae"] == Metric(3.0) and found["change"] == Metric(3.0)
    labels = np.array([0.0, 0.0, 0.0, 1.0])
    areas = auc_metrics(labels, np.array([0.1, 0.2, 0.3, 0.9]), list("abcd"), raw=labels)
    assert areas == {"auc": Metric(1.0), "change": Metric(0.0)}
    assert auc_metrics(np.repeat([0.0, 1.0], 2), np.arange(4.0), list("abcd"))["auc"].ci95 == (1.0, 1.0)


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    rng = np.random.default_rng(0)
    truth = np.full(400, 50.0)
    said = truth + rng.exponential(6, 400)
    low, high = age_metrics(truth, said, [str(i) for i in range(400)])["mae"].ci95 or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * np.std(said) / 20, rel=0.1)


def test_area_under_the_curve_by_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(60) > 0.6
    scores = np.round(rng.normal(size=60) + labels, 1)
    pairs = [(p, n) for p in scores[labels] for n in scores[~labels]]
    wanted = np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])
    assert auc(scores, labels) == pytest.approx(wanted)
    found = auc_metrics(labels.astype(float), scores, [str(i) for i in range(60)], raw=-scores)
    assert found["auc"].value == pytest.approx(wanted)
    assert found["change"].value == pytest.approx(2 * wanted - 1)
    low, high = found["auc"].ci95 or (0, 1)
    # Hanley & McNeil 1982, an independent estimate of the standard error.
    q1, q2 = wanted / (2 - wanted), 2 * wanted**2 / (1 + wanted)
    a, p, n = wanted, labels.sum(), (~labels).sum()
    error = np.sqrt((a * (1 - a) + (p - 1) * (q1 - a**2) + (n - 1) * (q2 - a**2)) / (p * n))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_one_label_has_no_area_and_scans_of_one_subject_are_averaged() -> None:
    assert auc_metrics([1, 1], [0.2, 0.3], ["a", "b"])["auc"].value is None
    found = auc_metrics([1, 1, 0, 0], [0.9, 0.1, 0.4, 0.3], ["a", "a", "b", "c"])
    assert found["auc"].value == 1.0  # a's mean of 0.5 lies above both


def test_seeds_are_summarised_by_mean_and_range() -> None:
    rows = [
        Row("raw", "rome", {"mae": Metric(4.0, (3.0, 5.0))}, 9, 0),
        Row("Nyul", "rome", {"mae": Metric(2.0, (1.0, 3.0))}, 9, 0),
        Row("raw", "rome", {"mae": Metric(7.0, (5.0, 8.0))}, 9, 1),
    ]
    found = summarised(rows)
    assert [(r.method, r.seed) for r in found] == [("raw", None), ("raw", 0), ("raw", 1), ("Nyul", 0)]
    assert found[0].metrics["mae"] == Metric(5.5, None, (4.0, 7.0))


def test_rows_of_predictions_compare_the_same_scans() -> None:
    def said(method: str, error: float, seed: int) -> list[Prediction]:
        return [
            Prediction(method, site, who, 40.0, 40.0 + error + k, seed, {"predictor": "x"})
            for k, (site, who) in enumerate([("rome", "a"), ("bonn", "b"), ("bonn", "c")])
        ]

    predictions = [*said("raw", 10, 0), *said("new", 1, 0), *said("raw", 20, 1), *said("new", 2, 1)]
    tested = {"both": ("rome", "bonn"), "bonn": ("bonn",), "oslo": ("oslo",)}
    rows = scored(predictions, tested, age_metrics, {"new": "raw", "raw": "raw"}, "how")
    assert [(r.method, r.site, r.seed, r.n) for r in rows] == [
        (m, s, k, n) for k in (0, 1) for m in ("raw", "new") for s, n in (("both", 3), ("bonn", 2))
    ]
    changes = [r.metrics["change"].value for r in rows if r.method == "new"]
    assert changes == pytest.approx([-9, -9, -18, -18])
    assert "change" not in rows[0].metrics


def test_ridge_against_normal_equations_and_left_out_fits() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 12)) * rng.uniform(0.5, 3, 12) + 1
    y = x @ rng.normal(size=12) + rng.normal(0, 0.5, 30) + 40
    predict = ridge(x, y)
    z = (x - x.mean(0)) / x.std(0)

    def plain(rows: np.ndarray, penalty: float, at: np.ndarray) -> np.ndarray:
        own = z[rows] - z[rows].mean(0)
        weights = np.linalg.solve(own.T @ own + penalty * np.eye(12), own.T @ (y[rows] - y[rows].mean()))
        return (z[at] - z[rows].mean(0)) @ weights + y[rows].mean()

    everyone = np.arange(30)
    errors = {}
    for penalty in np.logspace(-2, 6, 33):
        left = [y[i] - plain(np.delete(everyone, i), penalty, np.array([i]))[0] for i in everyone]
        errors[penalty] = np.mean(np.square(left))
    best = min(errors, key=errors.__getitem__)
    np.testing.assert_allclose(predict(x), plain(everyone, best, everyone), atol=1e-8)
