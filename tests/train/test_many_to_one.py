"""Many sources to one reference in 3D: what a step computes, what checkpoints say, older checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.model_space.recipe import Recipe  # noqa: E402
from hz_train.checkpoint import load_checkpoint, without_prefix  # noqa: E402
from hz_train.cohort import Cohort, read_participants  # noqa: E402
from hz_train.condition import one_hot  # noqa: E402
from hz_train.cyclegan_task import CycleGANTask, Settings, cyclegan_step  # noqa: E402
from hz_train.cyclegan_training import PRESETS, Preset, adjusted, train_cyclegan  # noqa: E402
from hz_train.fit import Run, Schedule, fit  # noqa: E402
from hz_train.harmonizers import harmonized, read_harmonizer  # noqa: E402
from hz_train.losses import Weights  # noqa: E402
from hz_train.volume_cyclegan import Generator  # noqa: E402
from small_scans import write_scan  # noqa: E402
from small_slices import brains  # noqa: E402

SCHEDULE = Schedule(epochs=1, batch=2, lr=1e-3, milestones=(), seed=3, picture_every=0)
SMALL = Preset(SCHEDULE, Settings(width=2), n4=False, conditional=True)
RECIPE = Recipe(grid_shape=(32, 32, 32))
SITES = ("a", "b", "c")


def test_only_the_papers_preset_tells_the_sites_apart() -> None:
    """The reference bundle's own preset stays what it was trained with."""
    assert {name: preset.conditional for name, preset in PRESETS.items()} == {
        "paper": True,
        "quick": False,
        "reference": False,
    }
    assert adjusted(PRESETS["reference"], conditional=True).conditional
    assert not adjusted(PRESETS["paper"], conditional=False).conditional
    assert adjusted(PRESETS["paper"], restore=3.0).settings.weights == Weights(restore=3.0)


def small_task() -> tuple[CycleGANTask, Run]:
    run = Run.start(replace(SCHEDULE, epochs=2), "cpu")
    volumes = brains(5, 1, (32, 32, 32))
    condition = one_hot(["a", "b", "b"], ["a", "b"])
    return CycleGANTask(
        volumes[:3], volumes[3:], volumes[:0], volumes[:0], SMALL.settings, run, condition
    ), run


def test_the_steps_losses_by_hand() -> None:
    """x goes back to its own site, y to the site of the x beside it; nobody else is told anything."""
    task, run = small_task()
    x, x_clean, y, y_seen, y_even, condition = (run.put(a) for a in task.arrays(0, 0))
    nets = task.networks
    with torch.no_grad():
        fake_y = torch.cat([nets["generator"](one[None]) for one in x])
        fake_x = torch.cat([nets["reverse"](y[[k]], condition[[k]]) for k in (0, 1)])
        back_x = torch.cat([nets["reverse"](fake_y[[k]], condition[[k]]) for k in (0, 1)])
        same_x = torch.cat([nets["reverse"](x[[k]], condition[[k]]) for k in (0, 1)])
        expected = {
            "adversarial_target": (nets["discriminator_target"](fake_y) - 1).square().mean(),
            "adversarial_source": (nets["discriminator_source"](fake_x) - 1).square().mean(),
            "cycle_source": (back_x - x).abs().mean(),
            "cycle_target": (nets["generator"](fake_x) - y).abs().mean(),
            "identity_source": (same_x - x).abs().mean(),
        }
    parts = cyclegan_step(nets, task.optimizers, Weights(), run, x, x_clean, y, y_seen, y_even, condition)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name].detach(), value, atol=1e-5, rtol=1e-4)


def test_a_batch_tells_the_site_of_its_own_volumes() -> None:
    task, _ = small_task()
    for epoch in range(3):
        x, *_, condition = task.arrays(epoch, 0)
        for volume, site in zip(x, condition, strict=True):
            which = [np.array_equal(volume, v) for v in task.source].index(True)
            assert site.tolist() == task.condition[which].tolist()


def test_resuming_is_exact(tmp_path: Path) -> None:
    whole, run = small_task()
    fit(whole, run, tmp_path / "whole")
    first, run = small_task()
    fit(first, replace_epochs(run, 1), tmp_path / "resumed")
    second, run = small_task()
    fit(second, run, tmp_path / "resumed")
    for name, network in whole.networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, second.networks[name].state_dict()[key]), (name, key)


def replace_epochs(run: Run, epochs: int) -> Run:
    return replace(run, schedule=replace(run.schedule, epochs=epochs))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["file\tsite\tage\tsex\tgroup"]
    for k in range(6):
        write_scan(folder / f"scan-{k}.nii.gz", k)
        lines.append(f"scan-{k}.nii.gz\t{SITES[k % 3]}\t{30 + k}\tF\tcontrol")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return read_participants(folder / "participants.tsv")


def trained(cohort: Cohort, source: list[str], out: Path, preset: Preset = SMALL, **given) -> Path:
    return train_cyclegan(cohort, source, "c", out, preset, 0.0, RECIPE, "cpu", **given)


@pytest.fixture(scope="module")
def conditional(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(cohort, ["a", "b"], tmp_path_factory.mktemp("conditional"))


@pytest.fixture(scope="module")
def pooled(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset = replace(SMALL, conditional=False)
    return trained(cohort, ["a", "b"], tmp_path_factory.mktemp("pooled"), preset)


def test_the_checkpoint_says_which(conditional: Path, pooled: Path, cohort: Cohort, tmp_path: Path) -> None:
    tensors, meta = load_checkpoint(conditional)
    assert (meta["conditional"], meta["sources"]) == (True, ["a", "b"])
    assert tensors["reverse.stem.0.weight"].shape[1] == 3  # the image and a plane a site
    assert tensors["generator.stem.0.weight"].shape[1] == 1
    tensors, meta = load_checkpoint(pooled)
    assert not meta["conditional"] and tensors["reverse.stem.0.weight"].shape[1] == 1
    alone = load_checkpoint(trained(cohort, ["a"], tmp_path))[1]
    assert not alone["conditional"]  # one source has nothing to tell apart


def test_the_forward_generator_is_used_as_ever(conditional: Path) -> None:
    tensors, meta = load_checkpoint(conditional)
    network = Generator(**meta["network"]).eval()
    network.load_state_dict(without_prefix("generator", tensors))
    volumes = brains(2, 8, (32, 32, 32))
    with torch.no_grad():
        expected = network(torch.from_numpy(volumes)[:, None])[:, 0].numpy()
    made = harmonized(volumes, conditional, RECIPE, Run.start(SCHEDULE, "cpu"))
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_conditional_checkpoint_is_exported_as_any_other(conditional: Path) -> None:
    pytest.importorskip("onnx", reason="needs the export extra")
    from hz_export.to_onnx import read_checkpoint

    assert read_checkpoint(conditional).role == "harmonizer"


def test_other_checkpoints_are_no_harmonizer(conditional: Path) -> None:
    with pytest.raises(UsageError, match=r"harmonizer\.safetensors is not a harmonizer of this recipe"):
        read_harmonizer(conditional, Recipe())


def start(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)[0]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], name: str) -> bool:
    a, b = without_prefix(name, one), without_prefix(name, two)
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_going_on_from_an_older_checkpoint(
    pooled: Path, conditional: Path, cohort: Cohort, tmp_path: Path
) -> None:
    """One written before conditions were known: all but the reverse generator is taken over."""
    meta = json.loads(pooled.with_suffix(".json").read_text())
    del meta["conditional"]
    older = tmp_path / "older.safetensors"
    older.write_bytes(pooled.read_bytes())
    older.with_suffix(".json").write_text(json.dumps(meta))
    still = replace(SMALL, schedule=replace(SCHEDULE, lr=1e-12, seed=4))

    further = trained(cohort, ["a", "b"], tmp_path / "conditional", still, start_from=older)
    assert load_checkpoint(further)[1]["started_from"]["anew"] == ["reverse"]
    assert [same(start(older), start(further), n) for n in ("generator", "discriminator_source")] == [
        True
    ] * 2

    again = replace(still, conditional=False)
    further = trained(cohort, ["a", "b"], tmp_path / "pooled", again, start_from=older)
    assert "anew" not in load_checkpoint(further)[1]["started_from"]
    assert same(start(older), start(further), "reverse")

    further = trained(cohort, ["a", "b"], tmp_path / "same", still, start_from=conditional)
    assert same(start(conditional), start(further), "reverse")
    swapped = trained(cohort, ["b", "a"], tmp_path / "swapped", still, start_from=conditional)
    assert load_checkpoint(swapped)[1]["started_from"]["anew"] == ["reverse"]  # its planes mean other sites


def test_quick_trains_two_volumes_at_a_time() -> None:
    # torch 2.13.0 sends one small volume to slow_conv3d, and two to oneDNN, in less time for both
    # (findings/torch_conv3d_one_volume.sh).
    assert PRESETS["quick"].schedule.batch >= 2
