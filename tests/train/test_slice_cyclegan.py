"""The slice CycleGAN trained: paired truth on held-out brains, exact resume, which slices it sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_runtime.errors import UsageError  # noqa: E402
from hz_train.augment import Augmentation  # noqa: E402
from hz_train.condition import one_hot  # noqa: E402
from hz_train.fit import Run, Schedule, fit  # noqa: E402
from hz_train.losses import Weights  # noqa: E402
from hz_train.slice_recipes import MILLIMETRE, reading, slice_recipe  # noqa: E402
from hz_train.slice_task import SliceCycleGANTask, Slices, SliceSettings  # noqa: E402
from small_slices import brains, elsewhere  # noqa: E402

SCHEDULE = Schedule(epochs=6, batch=4, lr=1e-3, milestones=(4,), picture_every=0)
TINY = SliceSettings(width=2, blocks=1, per_scan=4)


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small lose by sharing their work out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_task(settings: SliceSettings = TINY, **changes: object) -> tuple[SliceCycleGANTask, Run]:
    """Two source sites of two brains each, three target brains."""
    run = Run.start(replace(SCHEDULE, epochs=3, milestones=(2,), **changes), "cpu")
    x = np.concatenate([elsewhere(brains(2, 1)), elsewhere(brains(2, 2), 0.6)])
    origin = one_hot(["a", "a", "b", "b"], ["a", "b"])
    return SliceCycleGANTask(x, brains(3, 3), x[:1], brains(1, 4), settings, run, origin), run


def weights(task: SliceCycleGANTask) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in task.networks.items() for k, v in m.state_dict().items()}


def test_training_brings_held_out_brains_to_the_reference_site(tmp_path) -> None:
    """Unpaired scans of other heads; scored where the same head is known on both sites."""
    truth = brains(6, 12)
    seen = elsewhere(truth)
    run = Run.start(SCHEDULE, "cpu")
    settings = SliceSettings(width=8, blocks=1, averaging=0.95)
    task = SliceCycleGANTask(elsewhere(brains(12, 11)), brains(12, 10), seen, truth, settings, run)
    inside = truth > 0.02

    def error(volumes: np.ndarray) -> float:
        return float(np.abs(volumes - truth)[inside].mean())

    assert error(task.harmonize(seen)) == pytest.approx(error(seen), rel=0.05)  # it starts from "no change"
    fit(task, run, tmp_path)
    assert error(task.harmonize(seen)) < 0.7 * error(seen)


@pytest.mark.parametrize(
    "settings",
    [TINY, replace(TINY, weights=Weights(restore=5.0), augmentation=Augmentation.strong(), averaging=0.5)],
    ids=["paper", "restoring"],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, settings: SliceSettings) -> None:
    whole, run = small_task(settings)
    fit(whole, run, tmp_path / "whole")

    killed, run = small_task(settings)
    step, steps = killed.step, []

    def dies(epoch, batch, run):
        steps.append(epoch)
        if steps.count(2) == 2:
            raise KeyboardInterrupt
        return step(epoch, batch, run)

    killed.step = dies
    with pytest.raises(KeyboardInterrupt):
        fit(killed, run, tmp_path / "resumed")
    again, run = small_task(settings)
    fit(again, run, tmp_path / "resumed")
    assert all(torch.equal(t, weights(again)[n]) for n, t in weights(whole).items())
    start = weights(small_task(settings)[0])
    assert not torch.equal(start["reverse.layers.1.weight"], weights(whole)["reverse.layers.1.weight"])


def test_slices_without_brain_are_left_out() -> None:
    """The rule by hand: at least one pixel in a hundred above 0.05."""
    volumes = np.zeros((2, 20, 20, 5), np.float32)
    volumes[0, :2, :2, 1] = 0.06  # 4 of 400: just enough
    volumes[0, 0, :3, 2] = 0.9  # 3 of 400: too few
    volumes[1, :, :, 3] = 0.04  # everywhere, but too dark
    volumes[1, 5:10, 5:10, 4] = 0.5
    slices = Slices(volumes)
    assert list(zip(slices.scan.tolist(), slices.height.tolist(), strict=True)) == [(0, 1), (1, 4)]
    assert np.array_equal(slices[1], volumes[1, :, :, 4])
    assert len(slices[0].shape) == 2 and slices[0].flags["C_CONTIGUOUS"]


def test_a_side_without_brain_is_refused() -> None:
    empty = np.zeros((1, 24, 24, 4), np.float32)
    with pytest.raises(UsageError, match="no slice of one side holds brain"):
        SliceCycleGANTask(empty, brains(1, 0), empty, empty, TINY, Run.start(SCHEDULE, "cpu"))


def test_a_batch_holds_slices_of_each_side_and_the_sites_of_its_sources() -> None:
    task, _ = small_task()
    x, x_clean, y, y_seen, y_even, origin = task.arrays(0, 0)
    assert x.shape == y.shape == (4, 32, 32)
    assert np.array_equal(x, x_clean) and np.array_equal(y, y_seen) and not np.array_equal(y, y_even)
    for image, site in zip(x, origin, strict=True):
        scans = [n for n, v in enumerate(task.source.volumes) if (v == image[:, :, None]).all((0, 1)).any()]
        assert [n // 2 for n in scans] == [int(site.argmax())]


def test_an_epoch_is_a_pass_over_the_larger_side() -> None:
    task, _ = small_task(replace(TINY, per_scan=0))
    assert task.steps(0) == -(-max(len(task.source), len(task.target)) // 4)
    task, _ = small_task(replace(TINY, per_scan=6))
    assert task.steps(0) == 6 * 4 // 4  # the source has four scans
    drawn = np.concatenate([task.arrays(0, k)[0] for k in range(6)])
    assert len(np.unique(drawn.reshape(24, -1), axis=0)) == 24  # none twice


def test_restoration_scales_a_slice_as_its_volume() -> None:
    task, _ = small_task()
    y, _, scans = task._side(1, task.target, 0, range(4))
    asked = task._asked(y, scans)
    means = [float(v[v > 0.05].mean()) for v in task.target.volumes]
    for k, scan in enumerate(scans):
        np.testing.assert_allclose(asked[k], np.clip(y[k] * np.mean(means) / means[scan], 0, 1), rtol=1e-5)


def test_harmonizing_is_slice_by_slice() -> None:
    """A volume's result does not change with its neighbours, nor a slice's with the slices around it."""
    task, _ = small_task()
    volumes = brains(2, 5)
    both = task.harmonize(volumes)
    np.testing.assert_array_equal(both[1], task.harmonize(volumes[1:])[0])
    changed = volumes.copy()
    changed[:, :, :, 3:] = 0
    np.testing.assert_array_equal(both[..., :3], task.harmonize(changed)[..., :3])


def test_coarse_epochs_and_pictures(tmp_path) -> None:
    settings = replace(
        TINY, weights=Weights(restore=5.0), augmentation=Augmentation.strong(), coarse=1, warmup=1
    )
    run = Run.start(replace(SCHEDULE, epochs=3, batch=1, channels_last=True), "cpu")
    volumes = brains(2, 1, (48, 48, 8))
    task = SliceCycleGANTask(volumes, volumes, volumes[:1], volumes[:1], settings, run)
    assert task.arrays(0, 0)[0].shape == (4, 24, 24)  # half the size, four times the batch
    fit(task, run, tmp_path)
    task.picture(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_recipe_is_one_millimetre_and_80_slices() -> None:
    recipe = slice_recipe()
    assert recipe.grid_shape == recipe.template_shape == MILLIMETRE
    assert np.array_equal(recipe.grid_affine, recipe.template_affine)
    assert np.allclose(recipe.grid_affine[:3, :3], np.eye(3))
    assert (recipe.middle_slices, recipe.intensity) == (80, "percentile")


def test_smaller_grids_read_as_many_millimetres() -> None:
    recipe = slice_recipe((64, 64, 64))
    assert recipe.template_spacing_mm == 2.0
    assert recipe.middle_slices == round(80 / (182 / 64)) == 28
    assert slice_recipe((64, 64, 64), 10).middle_slices == 10
    assert reading(slice_recipe((64, 64, 64), 10)).middle_slices == 10
    assert slice_recipe((96, 112, 96)).template_spacing_mm == 1.0


@pytest.mark.parametrize(
    ("grid", "slices", "message"),
    [
        ((62, 64, 64), None, "62 x 64"),
        ((16, 64, 64), None, "16 x 64"),
        ((64, 64, 64), 65, "64 slices, not 65"),
    ],
)
def test_grids_that_cannot_be_trained_on(grid, slices, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        slice_recipe(grid, slices)
