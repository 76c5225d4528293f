"""Site classifiers: what they must find, what they must not, and what a frozen one misses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch", reason="the classifiers are torch networks")

from hz_runtime.model_space.foreground import block_means
from hz_train.studies.classifier import Training, fit_cnn, fit_linear, scrambled, subject_folds

SIZE = 16
SHORT = Training(width=4)


def heads(n: int, seed: int) -> np.ndarray:
    """(n, 16, 16, 16): balls of noise whose size and brightness vary from head to head."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIZE)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    made = [
        np.where(
            radius < rng.uniform(0.7, 0.9),
            rng.uniform(0.45, 0.55) + 0.03 * rng.standard_normal(radius.shape),
            0,
        )
        for _ in range(n)
    ]
    return np.stack(made).astype(np.float32)


def two_sites(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Volumes and codes; the second site's brains are a fifth brighter."""
    volumes, codes = heads(n, seed), np.arange(n) % 2
    volumes[codes == 1] *= 1.2
    return volumes, codes


def accuracy(predicted, codes):
    return float((predicted == codes).mean())


def features(volumes):
    return block_means(volumes).reshape(len(volumes), -1).astype(np.float64)


def test_a_frozen_classifier_is_fooled_by_a_constant_that_a_converged_one_reads():
    """The reason for the audit: every scan a third brighter, site difference and all, and the frozen
    classifier answers one site for everybody, as if harmonized; one that learns anew reads the site."""
    learn, codes = two_sites(48, 0)
    ask, wanted = two_sites(48, 1)
    frozen = fit_cnn(learn, codes, 2, SHORT, seed=0, device="cpu")
    assert accuracy(frozen.predict(ask), wanted) > 0.8
    gain = np.float32(1.35)
    assert accuracy(frozen.predict(gain * ask), wanted) < 0.65
    converged = fit_cnn(gain * learn, codes, 2, SHORT.converged(80), seed=1, device="cpu")
    assert accuracy(converged.predict(gain * ask), wanted) > 0.8
    frozen_line = fit_linear(features(learn), codes, 2)
    line = fit_linear(features(gain * learn), codes, 2)
    assert accuracy(frozen_line.predict(features(ask)), wanted) > 0.9
    assert accuracy(frozen_line.predict(features(gain * ask)), wanted) < 0.65
    assert accuracy(line.predict(features(gain * ask)), wanted) > 0.9


def test_a_converged_classifier_says_so_and_starts_differ():
    volumes, codes = two_sites(16, 2)
    done = fit_cnn(volumes, codes, 2, SHORT.converged(200), 0, "cpu")
    assert done.settled and done.epochs < 200
    assert not fit_cnn(
        volumes, np.random.default_rng(0).permutation(codes), 2, SHORT.converged(2), 0, "cpu"
    ).settled
    again = fit_cnn(volumes, codes, 2, SHORT, 0, "cpu").network.state_dict()
    same, other = (fit_cnn(volumes, codes, 2, SHORT, s, "cpu").network.state_dict() for s in (0, 1))
    assert all((again[k] == same[k]).all() for k in again)
    assert any((again[k] != other[k]).any() for k in again)


def test_scrambled_sites_are_at_chance():
    """Twenty scramblings of sites that a classifier tells perfectly: accuracy around one half."""
    x, codes = two_sites(60, 3)
    x, subjects = features(x), [f"s{k}" for k in range(60)]
    sites = ["ab"[c] for c in codes]
    found = []
    for seed in range(20):
        false = np.array(["ab".index(s) for s in scrambled(sites, subjects, seed)])
        for learn, ask in subject_folds(sites, subjects, 3, seed):
            found.append(accuracy(fit_linear(x[learn], false[learn], 2).predict(x[ask]), false[ask]))
    assert abs(np.mean(found) - 0.5) < 0.06


def test_linear_is_the_optimum():
    """Against a plain Newton iteration on the same penalised, weighted likelihood of two classes."""
    rng = np.random.default_rng(4)
    x, codes = rng.standard_normal((40, 5)) * [1, 2, 3, 4, 5] + 7, (np.arange(40) < 10).astype(np.int64)
    x[:, 0] += codes
    fitted = fit_linear(x, codes, 2, penalty=0.7)
    z = np.c_[(x - x.mean(0)) / x.std(0), np.ones(40)]
    w = np.where(codes == 1, 40 / (2 * 10), 40 / (2 * 30))
    # Two classes with symmetric weights b/2 and -b/2: the penalty on the difference b is a half of it.
    ridge, b = np.diag([0.7 / 2] * 5 + [0.0]), np.zeros(6)
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ b))
        b += np.linalg.solve(z.T * (w * p * (1 - p)) @ z + ridge, z.T @ (w * (codes - p)) - ridge @ b)
    got = np.append(fitted.weights[:, 1] - fitted.weights[:, 0], fitted.bias[1] - fitted.bias[0])
    np.testing.assert_allclose(got, b, atol=1e-4)


def test_linear_against_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(5)
    x, codes = rng.standard_normal((60, 200)), np.repeat([0, 1, 2], [35, 15, 10])
    x[:, :3] += np.eye(3)[codes]
    x[:, 7] = 0.3  # a block of air
    z = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1)
    theirs = linear_model.LogisticRegression(C=1.0, class_weight="balanced", tol=1e-8, max_iter=5000).fit(
        z, codes
    )
    ours = fit_linear(x, codes, 3)
    np.testing.assert_allclose(ours.weights.T, theirs.coef_, atol=1e-3)
    fresh = rng.standard_normal((30, 200))
    np.testing.assert_array_equal(
        ours.predict(fresh), theirs.predict((fresh - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1))
    )


def test_folds_keep_subjects_whole_and_sites_spread():
    sites = ["a"] * 30 + ["b"] * 12 + ["c"] * 4
    subjects = [f"{site}{k // 2}" for k, site in enumerate(sites)]  # everyone twice
    folds = subject_folds(sites, subjects, 3, seed=0)
    assert sorted(r for _, scored in folds for r in scored) == list(range(46))
    for learn, scored in subject_folds(sites, subjects, 5, seed=1):
        assert not {subjects[r] for r in learn} & {subjects[r] for r in scored}
        assert {sites[r] for r in learn} == {"a", "b", "c"}
    assert len(subject_folds(sites, subjects, 5, seed=0)) == 2  # site c has two subjects


def test_scrambling_keeps_sizes_and_people():
    sites, subjects = ["a"] * 20 + ["b"] * 10, [f"s{k // 2}" for k in range(30)]
    made = scrambled(sites, subjects, 0)
    assert Counter(made) == Counter(sites) and made != sites
    assert all(made[2 * k] == made[2 * k + 1] for k in range(15))


def test_scrambling_travelling_subjects():
    sites, subjects = ["a", "b", "c"] * 30, [f"s{k // 3}" for k in range(90)]
    made = scrambled(sites, subjects, 0)
    assert all(sorted(made[3 * k : 3 * k + 3]) == ["a", "b", "c"] for k in range(30))
    assert 0.15 < np.mean([m == s for m, s in zip(made, sites, strict=True)]) < 0.55
