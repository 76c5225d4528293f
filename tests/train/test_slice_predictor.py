"""The slice predictor: the rule that ends its training, medians, exact resume, scores by brute force."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_train.augment import Augmentation  # noqa: E402
from hz_train.fit import Run, Schedule, fit  # noqa: E402
from hz_train.plateau import Plateau  # noqa: E402
from hz_train.scores import auc  # noqa: E402
from hz_train.slice_predictor_task import SlicePredictorSettings, SlicePredictorTask  # noqa: E402

SCHEDULE = Schedule(epochs=4, batch=8, lr=3e-3, milestones=(), betas=(0.9, 0.999), picture_every=0)
SETTINGS = SlicePredictorSettings(width=2)


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small lose by sharing their work out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(losses: list[float], validation: list[float]) -> tuple[int, str]:
    """The paper's rule as a loop with counters: (cuts of the rate by the end, why it ended or "")."""
    best, waited, since_cut, cuts, rises = float("inf"), 0, 0, 0, 0
    for epoch, loss in enumerate(losses):
        if loss < best:
            best, waited, since_cut = loss, 0, 0
        else:
            waited, since_cut = waited + 1, since_cut + 1
        if since_cut == 5:
            cuts, since_cut = cuts + 1, 0
        rises = rises + 1 if epoch and validation and validation[epoch] > validation[epoch - 1] else 0
    if waited >= 10:
        return cuts, "training"
    return cuts, "validation" if rises >= 5 else ""


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_against_a_loop_with_counters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = np.round(rng.random(40) * np.exp(-np.arange(40) / rng.uniform(5, 60)), 2).tolist()  # with ties
    validation = np.cumsum(rng.normal(0.5, 1, 40)).tolist() if seed % 3 else []
    rule, seen = Plateau(), set()
    for done in range(41):
        cuts, why = reference(losses[:done], validation[:done])
        assert rule.factor_of(losses[:done]) == pytest.approx(0.1**cuts)
        ended = rule.ended(losses[:done], validation[:done])
        assert ("training loss" in ended, "validation" in ended) == (why == "training", why == "validation")
        seen.add(why)
    assert seen


def test_the_rule_in_numbers() -> None:
    rule = Plateau()
    flat = [1.0] * 11
    assert [rule.factor_of(flat[:n]) for n in (0, 1, 5, 6, 10)] == pytest.approx([1, 1, 1, 0.1, 0.1])
    assert [bool(rule.ended(flat[:n], [])) for n in (0, 10, 11)] == [False, False, True]
    falling = [1 - 0.01 * k for k in range(20)]
    assert not rule.ended(falling, [1, 2, 3, 4, 5])  # risen four times
    assert rule.ended(falling, [3, 1, 2, 3, 4, 5, 6]) == "the validation loss rose 5 times in a row"
    assert not rule.ended(falling, [1, 2, 3, 3, 4, 5])  # equal is not higher


def bright(count: int, seed: int, depth: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scans whose brightness is their age, and the ages."""
    rng = np.random.default_rng(seed)
    ages = np.linspace(20, 80, count).astype(np.float32)
    return (rng.random((count, 32, 32, depth)) * (ages / 80)[:, None, None, None]).astype(np.float32), ages


def small_task(
    schedule: Schedule = SCHEDULE, settings: SlicePredictorSettings = SETTINGS, validation: int = 3
) -> tuple[SlicePredictorTask, Run]:
    run = Run.start(schedule, "cpu")
    volumes, ages = bright(8, 0)
    other, other_ages = bright(3, 1)
    task = SlicePredictorTask(volumes, ages, other[:validation], other_ages[:validation], settings, run)
    return task, run


def logged(folder, name: str) -> list[float]:
    with open(folder / "log.csv", newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def weights(task: SlicePredictorTask) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in task.networks.items() for k, v in m.state_dict().items()}


def test_a_readable_age_is_learned_and_the_best_epoch_kept(tmp_path) -> None:
    task, run = small_task(replace(SCHEDULE, epochs=8))
    fit(task, run, tmp_path)
    losses = logged(tmp_path, "validation_loss")
    assert task.losses == logged(tmp_path, "loss") and task.ended == ""
    answers = task.predict(task.validation)
    assert np.abs(answers - task.validation_wanted).mean() < 10  # guessing the mean age: 20
    network = task.predictor.eval()
    with torch.no_grad():
        slices = torch.from_numpy(task.validation.transpose(0, 3, 1, 2).reshape(-1, 1, 32, 32))
        years = network(slices).reshape(3, 6).numpy()
    sd = float(np.std(bright(8, 0)[1], ddof=1))
    assert np.square((years - task.validation_wanted[:, None]) / sd).mean() == pytest.approx(
        min(losses), rel=1e-4
    )
    np.testing.assert_allclose(answers, np.median(years, axis=1), rtol=1e-5)


def test_a_scans_answer_is_the_median_over_its_slices() -> None:
    """A network whose answer is a slice's first pixel; one wild slice must not move the result."""

    class FirstPixel(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 0, :1]

    task, _ = small_task(validation=0)
    task.networks["predictor"].forward = FirstPixel().forward
    volumes = np.zeros((2, 32, 32, 5), np.float32)
    volumes[0, 0, 0] = [3, 1, 2, 1000, 2.5]
    volumes[1, 0, 0] = [7, 7, -900, 8, 9]
    assert task.predict(volumes).tolist() == [2.5, 7]


@pytest.mark.parametrize("augmentation", [None, Augmentation.mild()])
def test_resuming_is_exact_through_a_cut_of_the_rate(tmp_path, augmentation) -> None:
    """Cut after one idle epoch: whether the resumed run still knows is seen in its rates and weights."""
    settings = replace(
        SETTINGS, augmentation=augmentation, plateau=Plateau(slow_after=1, stop_after=99, rising=99)
    )
    schedule = replace(SCHEDULE, lr=0.03, epochs=6)
    whole, run = small_task(schedule, settings)
    fit(whole, run, tmp_path / "whole")
    rates = logged(tmp_path / "whole", "lr")
    assert len(set(rates)) > 1  # there was one
    for epochs in (2, 4, 6):
        part, run = small_task(replace(schedule, epochs=epochs), settings)
        fit(part, run, tmp_path / "parts")
    assert logged(tmp_path / "parts", "lr") == rates
    assert all(torch.equal(tensor, weights(part)[name]) for name, tensor in weights(whole).items())


def test_training_ends_where_the_rule_says_and_stays_ended(tmp_path) -> None:
    settings = replace(SETTINGS, plateau=Plateau(slow_after=2, stop_after=3, rising=99))
    schedule = replace(SCHEDULE, lr=1e-12, epochs=50)  # hardly a step: dropout's noise alone
    task, run = small_task(schedule, settings)
    fit(task, run, tmp_path)
    losses = logged(tmp_path, "loss")
    assert len(losses) < 50
    assert min(losses[:-3]) <= min(losses[-3:]) and settings.plateau.idle(losses) == 3
    assert "3 epochs" in task.ended and len(task.losses) == len(losses)
    again, run = small_task(schedule, settings)
    fit(again, run, tmp_path)
    assert len(logged(tmp_path, "loss")) == len(losses)
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(task).items())


def test_a_diagnosis_is_learned(tmp_path) -> None:
    """Patients have a bright square; probabilities, not logits, come out."""
    rng = np.random.default_rng(3)
    volumes = rng.random((12, 32, 32, 4)).astype(np.float32) * 0.5
    labels = np.arange(12) % 2
    volumes[labels == 1, 8:20, 8:20] += 0.4
    run = Run.start(replace(SCHEDULE, epochs=10), "cpu")
    wanted = labels.astype(np.float32)
    task = SlicePredictorTask(volumes[:8], wanted[:8], volumes[8:10], wanted[8:10], SETTINGS, run, True)
    fit(task, run, tmp_path)
    probability = task.predict(volumes)
    assert probability.min() >= 0 and probability.max() <= 1
    assert auc(probability[8:], labels[8:] == 1) == 1
    losses = logged(tmp_path, "loss")
    assert losses[-1] < 0.7 * losses[0]


def test_every_slice_is_seen_once_an_epoch() -> None:
    task, _ = small_task(replace(SCHEDULE, batch=4))
    assert task.steps(0) == 8 * 6 // 4
    batches = [task.arrays(0, k) for k in range(task.steps(0))]
    slices = np.concatenate([images for images, _ in batches]).reshape(48, -1)
    assert len(np.unique(slices, axis=0)) == 48
    for images, years in batches:
        brightest = images.reshape(4, -1).max(1) * 80  # uniform noise up to age / 80
        np.testing.assert_allclose(brightest, years, rtol=0.02)
    assert small_task(replace(SCHEDULE, batch=4), replace(SETTINGS, per_scan=2))[0].steps(0) == 4
