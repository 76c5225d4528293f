"""The loop: exact resume, schedule, torn checkpoints, other settings."""

from __future__ import annotations

import csv
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hz_runtime.errors import UsageError  # noqa: E402
from hz_train.age_task import AgeSettings, AgeTask  # noqa: E402
from hz_train.augment import Augmentation  # noqa: E402
from hz_train.cyclegan_task import CycleGANTask, Settings  # noqa: E402
from hz_train.fit import Run, Schedule, fit  # noqa: E402
from hz_train.losses import Weights  # noqa: E402

SCHEDULE = Schedule(epochs=4, batch=1, lr=1e-3, milestones=(2,), picture_every=0, seed=7)
SETTINGS = Settings(Weights(restore=10.0), Augmentation.strong(), coarse=1, warmup=1, warmup_lr=1e-3, width=2)


def volumes(n, seed):
    return np.random.default_rng(seed).random((n, 32, 32, 32)).astype(np.float32)


def cyclegan(schedule=SCHEDULE, settings=SETTINGS):
    run = Run.start(schedule, "cpu")
    return CycleGANTask(volumes(2, 0), volumes(3, 1), volumes(1, 2), volumes(1, 3), settings, run), run


def weights(task):
    return {f"{n}.{k}": v.clone() for n, m in task.networks.items() for k, v in m.state_dict().items()}


def test_the_papers_schedule():
    paper = Schedule()
    assert (paper.epochs, paper.batch) == (100, 4)
    assert [paper.rate(e) for e in (0, 34, 35, 74, 75, 99)] == pytest.approx(
        [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    )


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, weights) of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    task, run = cyclegan()
    fit(task, run, folder)
    return folder, weights(task)


@pytest.mark.parametrize("done", [1, 3])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole, done):
    killed, run = cyclegan()
    step, steps = killed.step, []

    def dies(epoch, batch, run):
        steps.append(epoch)
        if steps.count(done) == 2:
            raise Killed
        return step(epoch, batch, run)

    killed.step = dies
    with pytest.raises(Killed):
        fit(killed, run, tmp_path)
    again, run = cyclegan()
    fit(again, run, tmp_path)
    for name, tensor in whole[1].items():
        assert torch.equal(tensor, weights(again)[name]), name
    logs = [(folder / "log.csv").read_text() for folder in (whole[0], tmp_path)]
    assert logs[0] == logs[1]


def test_torn_checkpoint_falls_back_to_the_one_before(tmp_path, whole):
    out = shutil.copytree(whole[0], tmp_path / "torn")
    (out / "0-last.safetensors").write_bytes(b"torn")
    again, run = cyclegan()
    fit(again, run, out)
    assert all(torch.equal(t, weights(again)[n]) for n, t in whole[1].items())


def test_other_settings_are_not_mixed(tmp_path):
    task, run = cyclegan(replace(SCHEDULE, epochs=1))
    fit(task, run, tmp_path, {"target": "A"})
    with pytest.raises(UsageError, match=r"other settings \(target\)"):
        fit(task, run, tmp_path, {"target": "B"})


def test_a_longer_training_is_not_taken_for_a_shorter_one(tmp_path):
    schedule = replace(SCHEDULE, epochs=3)
    settings = replace(SETTINGS, coarse=3)
    fit(*cyclegan(schedule, settings), tmp_path)
    with pytest.raises(UsageError, match=r"holds 3 epochs, more than the 2 asked for"):
        fit(*cyclegan(replace(schedule, epochs=2), settings), tmp_path)


def logged(folder, name):
    """A column of log.csv, as numbers."""
    with open(folder / "log.csv", newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def test_restoration_learns(tmp_path):
    """One anatomy through scanners drawn anew; scored on eight that training did not draw."""
    schedule = replace(SCHEDULE, epochs=50, batch=4, milestones=())
    radius = np.sqrt(((np.indices((20, 20, 20)) - 9.5) ** 2).sum(0))
    heads = np.where(radius < 8, 0.5 + 0.3 * np.sin(radius * 0.8), 0).astype(np.float32)[None].repeat(8, 0)
    run = Run.start(schedule, "cpu")
    strength = replace(Augmentation.strong(), scale=0.0, mixing=0.0)
    settings = replace(
        SETTINGS, augmentation=strength, coarse=0, warmup=50, warmup_lr=1e-3, width=4, averaging=0.85
    )
    task = CycleGANTask(heads[:4], heads[:4], heads[:1], heads, settings, run)
    fit(task, run, tmp_path)
    scores = task.evaluate(50)
    assert scores["held_out_after"] < 0.9 * scores["held_out_before"]  # doing nothing leaves all of it


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_precision_and_layout_run(tmp_path, precision):
    schedule = replace(SCHEDULE, epochs=1, precision=precision, channels_last=True)
    task, run = cyclegan(
        schedule, replace(SETTINGS, coarse=0, warmup=0, augmentation=None, weights=Weights())
    )
    fit(task, run, tmp_path)
    assert all(torch.isfinite(t).all() for t in weights(task).values())


def test_pictures_are_drawn(tmp_path):
    task, _ = cyclegan()
    task.picture(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("count", "batch", "epochs"), [(8, 8, 6), (12, 4, 12)])
def test_age_network_learns_a_readable_age(tmp_path, count, batch, epochs):
    """Brightness is age here: training must find it, and prediction must still know it."""
    ages = np.linspace(20, 80, count).astype(np.float32)
    noise = np.random.default_rng(0).random((count, 64, 64, 64))
    grids = (noise * (ages / 80)[:, None, None, None]).astype(np.float32)
    schedule = Schedule(
        epochs=epochs, batch=batch, lr=3e-3, milestones=(), betas=(0.9, 0.999), picture_every=0
    )
    run = Run.start(schedule, "cpu")
    task = AgeTask(grids, ages, grids[:1], ages[:1], AgeSettings(width=2), run)
    fit(task, run, tmp_path)
    losses = logged(tmp_path, "loss")
    assert losses[-1] < losses[0] / 2
    task.settle()
    assert np.abs(task.predict(grids) - ages).mean() < np.abs(ages - ages.mean()).mean() / 2
    network, features = task.networks["age"], task.features(grids)
    last = network.head[-1]
    with torch.no_grad():
        read = last(torch.from_numpy(features).float()) * network.sd + network.mean
    np.testing.assert_allclose(read.numpy()[:, 0], task.predict(grids), rtol=1e-4)
    assert network.training  # as before


def test_fewer_scans_than_a_batch_keep_batch_norms_statistics():
    """Settled over the one batch there is, its means and variances are those of the volumes."""
    schedule = replace(SCHEDULE, batch=4)
    task = AgeTask(volumes(3, 5), np.array([20, 50, 80], np.float32), volumes(0, 0), np.zeros(0, np.float32),
                   AgeSettings(width=2), Run.start(schedule, "cpu"))  # fmt: skip
    task.settle()
    conv, norm = task.networks["age"].features[:2]
    with torch.no_grad():
        seen = conv(torch.from_numpy(volumes(3, 5))[:, None])
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 2, 3, 4)))
    torch.testing.assert_close(norm.running_var, seen.var(dim=(0, 2, 3, 4)))


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    """The last step of an epoch can ruin them after its loss was taken; the epoch before stays."""
    settings = replace(SETTINGS, coarse=0, warmup=0)
    task, run = cyclegan(replace(SCHEDULE, epochs=1), settings)
    fit(task, run, tmp_path)
    before = weights(task)

    task, run = cyclegan(replace(SCHEDULE, epochs=2), settings)
    step, steps = task.step, []

    def ruinous(epoch, batch, run):
        losses = step(epoch, batch, run)
        steps.append(epoch)
        if steps.count(1) == task.steps(1):
            with torch.no_grad():
                next(task.networks["generator"].parameters()).mul_(float("inf"))
        return losses

    task.step = ruinous
    with pytest.raises(
        UsageError, match=r"(?s)became non-finite in epoch 2.*another --out with a lower --lr"
    ):
        fit(task, run, tmp_path)
    task, run = cyclegan(replace(SCHEDULE, epochs=1), settings)
    fit(task, run, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(task).items())


def test_another_number_of_processes_is_another_run(tmp_path):
    task, run = cyclegan(replace(SCHEDULE, epochs=1))
    fit(task, run, tmp_path)
    with pytest.raises(UsageError, match=r"other settings \(processes\)"):
        fit(task, replace(run, world=2), tmp_path)


def test_the_average_follows_the_weights_it_averages(tmp_path):
    """After n steps the average is the recursion written out by hand; it, not the last weights, is scored."""
    keep = 0.75
    settings = replace(SETTINGS, coarse=0, warmup=1, averaging=keep)
    task, run = cyclegan(replace(SCHEDULE, epochs=1), settings)
    first = task.networks["generator"].last.bias.detach().clone()
    seen = []
    step = task.step

    def recorded(epoch, batch, run):
        parts = step(epoch, batch, run)
        seen.append(task.networks["generator"].last.bias.detach().clone())
        return parts

    task.step = recorded
    fit(task, run, tmp_path)
    expected = first
    for latest in seen:
        expected = keep * expected + (1 - keep) * latest
    assert torch.allclose(task.harmonizer.last.bias, expected, atol=1e-7)
    assert not torch.equal(task.harmonizer.last.bias, task.networks["generator"].last.bias)


def test_half_precision_scales_its_losses_and_resumes_the_scale(tmp_path):
    half = replace(SCHEDULE, epochs=1, precision="fp16")
    settings = replace(SETTINGS, coarse=0, warmup=1)
    task, run = cyclegan(half, settings)
    start = weights(task)
    fit(task, run, tmp_path)
    assert run.scaler.get_scale() > 1
    assert any(not torch.equal(tensor, start[name]) for name, tensor in weights(task).items())
    again, resumed = cyclegan(half, settings)
    resumed.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    fit(again, resumed, tmp_path)  # nothing is left to train
    assert resumed.scaler.get_scale() == run.scaler.get_scale()


class Counted:
    """A task that notes what is made and trained; with `last`, it asks for no epoch after that one."""

    def __init__(self, last=None):
        network = torch.nn.Linear(1, 1)
        self.networks = {"n": network}
        self.optimizers = {"n": torch.optim.SGD(network.parameters(), 0.1)}
        self.made, self.trained = [], []
        if last is not None:
            self.review = lambda history: len(history) > last

    def steps(self, epoch):
        return 2 + epoch

    def rate(self, epoch):
        return 0.1

    def arrays(self, epoch, index):
        self.made.append((epoch, index))
        return (np.array([epoch, index], np.float32),)

    def step(self, epoch, batch, run):
        self.trained.append(tuple(int(number) for number in batch[0]))
        assert self.trained[-1][0] == epoch
        return {"loss": self.networks["n"].weight.sum()}

    def evaluate(self, epoch):
        return {}

    def picture(self, path): ...


@pytest.mark.parametrize("last", [None, 1], ids=["to the end", "stopped early"])
def test_a_batch_is_made_for_each_step_and_for_nothing_else(tmp_path, last):
    task, run = Counted(last), Run.start(replace(SCHEDULE, epochs=3), "cpu")
    fit(task, run, tmp_path)
    epochs = 3 if last is None else last + 1
    assert task.trained == [(epoch, index) for epoch in range(epochs) for index in range(2 + epoch)]
    assert sorted(task.made) == task.trained
    assert not [t for t in threading.enumerate() if t.name.startswith("batches-ahead")]


def test_a_training_that_fails_leaves_no_thread(tmp_path):
    task, run = Counted(), Run.start(SCHEDULE, "cpu")
    task.step = lambda epoch, batch, run: {"loss": torch.tensor(float("nan"))}
    with pytest.raises(UsageError, match="loss became nan in epoch 1"):
        fit(task, run, tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches-ahead")]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 2], ids=["coarse", "warmup", "adversarial"])
def test_everything_of_a_step_lies_on_the_runs_device(epoch, channels_last):
    """Shown on torch's meta device: what is left on the CPU by mistake meets what is not, and raises."""
    run = Run(replace(SCHEDULE, channels_last=channels_last), torch.device("meta"))
    condition = np.eye(2, dtype=np.float32)
    settings = replace(SETTINGS, averaging=0.5)
    harmonizer = CycleGANTask(
        volumes(2, 0), volumes(3, 1), volumes(1, 2), volumes(1, 3), settings, run, condition
    )
    ages = np.array([20, 70], np.float32)
    predictor = AgeTask(volumes(2, 0), ages, volumes(1, 2), ages[:1], AgeSettings(width=2), run)
    for task in (harmonizer, predictor):
        parts = task.step(epoch, [run.put(array) for array in task.arrays(epoch, 0)], run)
        tensors = [*parts.values(), *(t for m in task.networks.values() for t in m.state_dict().values())]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        moments = [e["exp_avg"] for o in task.optimizers.values() for e in o.state.values()]
        assert moments and {moment.device.type for moment in moments} == {"meta"}
