"""The ensemble of a CNN and a ridge regression: closed forms, symmetry, and what training leaves behind."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hz_train.age_ensemble import PENALTIES, AgeEnsemble, TissueRidge, dual_ridge  # noqa: E402
from hz_train.age_task import AgeSettings, AgeTask  # noqa: E402
from hz_train.fit import Run, Schedule  # noqa: E402

GRID = (16, 16, 16)


def people(count: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, 16, 16, 16) brains whose fluid grows with age, and their (n,) ages."""
    rng = np.random.default_rng(seed)
    ages = np.linspace(20, 80, count).astype(np.float32)
    volumes = rng.normal(0.55, 0.01, (count, *GRID)).astype(np.float32)
    for volume, age in zip(volumes, ages, strict=True):
        depth = 2 + round(float(age) / 16)
        volume[8 - depth // 2 : 8 + depth // 2, 6:10, 6:10] = 0.3
        volume[:2] = volume[-2:] = 0
    return volumes, ages


def test_the_ridge_is_the_one_of_the_normal_equations_and_its_errors_those_of_refits() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(9, 5)).astype(np.float32)
    features -= features.mean(axis=0)
    targets = features @ rng.normal(size=5) + rng.normal(scale=0.3, size=9)
    who = ["a", "a", "b", "c", "d", "e", "e", "f", "g"]
    weights, penalty = dual_ridge(features, targets, who)

    def solved(x: np.ndarray, y: np.ndarray, amount: float) -> np.ndarray:
        return np.linalg.solve(x.T @ x + amount * np.eye(x.shape[1]), x.T @ y)

    x = features.astype(np.float64)
    unit = float((x**2).sum()) / len(x)
    assert np.allclose(weights, solved(x, targets - targets.mean(), penalty * unit), atol=1e-8)

    def error(amount: float) -> float:
        total = 0.0
        for name in set(who):
            out = np.array([w == name for w in who])
            # The mean is fitted without a penalty: as a column of its own, among the people who stay.
            columns = np.column_stack([np.ones(len(x)), x])
            shrink = np.diag([0.0] + [amount * unit] * x.shape[1])
            stay = columns[~out]
            fitted = np.linalg.solve(stay.T @ stay + shrink, stay.T @ targets[~out])
            total += float(np.square(targets[out] - columns[out] @ fitted).sum())
        return total

    assert penalty == min(PENALTIES, key=error)


def test_tissue_maps_are_shares_and_the_ridge_sees_a_mirrored_head_as_the_same() -> None:
    volumes, ages = people()
    ridge = TissueRidge(GRID, level=0.55)
    maps = ridge.maps(torch.tensor([0.0, 0.28, 0.47, 0.58]).reshape(1, 1, 1, 1, 4))[0, :, 0, 0]
    assert torch.allclose(maps.sum(0), torch.tensor([0.0, 1.0, 1.0, 1.0]), atol=0.01)
    assert maps.argmax(0).tolist()[1:] == [0, 1, 2]  # fluid, grey, white
    ridge.fit(volumes, (ages - ages.mean()) / ages.std(), [str(i) for i in range(len(ages))])
    x = torch.from_numpy(volumes[:, None])
    x[3, 0, 12, 5, 5] = 0.3
    seen, mirrored = (ridge(ridge.pooled_maps(way)) for way in (x, x.flip(2)))
    assert torch.allclose(seen, mirrored, atol=1e-4)
    assert np.corrcoef(seen[:, 0].numpy(), ages)[0, 1] > 0.95


def test_the_answer_is_the_mean_of_both_members() -> None:
    volumes, ages = people()
    torch.manual_seed(0)
    network = AgeEnsemble(width=2, grid=GRID).eval()
    network.set_ages(torch.from_numpy(ages))
    x = torch.from_numpy(volumes[:, None])
    with torch.no_grad():
        alone = network(x)
        network.combine(volumes, ages, [str(i) for i in range(len(ages))])
        ridge = network.tissue(network.tissue.pooled_maps(x)) * network.sd + network.mean
        assert torch.allclose(network(x), (alone + ridge) / 2, atol=1e-3)
        assert network.last_features(x).shape == (len(ages), 2 * 8 + 1)


def test_the_average_of_the_weights_is_scored_and_training_goes_on_exactly() -> None:
    volumes, ages = people()
    schedule = Schedule(epochs=2, batch=4, milestones=(), picture_every=0)
    settings = AgeSettings(width=2, form="ensemble", averaging=0.5)
    with Run.start(schedule, "cpu") as run:
        task = AgeTask(volumes, ages, volumes[:0], ages[:0], settings, run)
        before = [p.clone() for p in task.predictor.parameters()]
        task.step(0, [run.put(a) for a in task.arrays(0, 0)], run)
        latest = list(task.networks["age"].parameters())
        for mean, old, new in zip(task.predictor.parameters(), before, latest, strict=True):
            assert torch.allclose(mean, (old + new) / 2, atol=1e-6)
        task.settle()
        task.combine([str(i) for i in range(len(ages))])
        assert np.corrcoef(task.predict(volumes), ages)[0, 1] > 0.9
        assert task.features(volumes).shape == (12, 17)
