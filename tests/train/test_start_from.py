"""Training further from a checkpoint: the networks are its, and the new checkpoint says so."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.model_space.recipe import Recipe  # noqa: E402
from hz_train.checkpoint import load_checkpoint  # noqa: E402
from hz_train.cohort import Cohort, read_participants  # noqa: E402
from hz_train.cyclegan_task import Settings  # noqa: E402
from hz_train.cyclegan_training import Preset, train_cyclegan  # noqa: E402
from hz_train.fit import Schedule  # noqa: E402
from hz_train.studies.trained_harmonizer import unseen  # noqa: E402
from small_scans import write_scan  # noqa: E402

SMALL = Preset(
    Schedule(epochs=1, batch=1, lr=1e-3, milestones=(), seed=3, picture_every=0),
    Settings(averaging=0.5, width=2),
    n4=False,
)
STILL = replace(SMALL, schedule=replace(SMALL.schedule, lr=1e-12, seed=4))
RECIPE = Recipe(grid_shape=(32, 32, 32))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["file\tsite\tage\tsex\tgroup"]
    for k in range(4):
        write_scan(folder / f"scan-{k}.nii.gz", k)
        lines.append(f"scan-{k}.nii.gz\t{'ab'[k % 2]}\t{30 + k}\tF\tcontrol")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return read_participants(folder / "participants.tsv")


def run(cohort, out: Path, preset: Preset, start_from: Path | None = None) -> Path:
    return train_cyclegan(cohort, ["a"], "b", out, preset, 0.0, RECIPE, "cpu", start_from=start_from)


@pytest.fixture(scope="module")
def first(cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(cohort, tmp_path_factory.mktemp("first"), SMALL)


def farthest(a: Path, b: Path) -> float:
    one, two = load_checkpoint(a)[0], load_checkpoint(b)[0]
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_the_networks_are_those_of_the_checkpoint(cohort, first: Path, tmp_path: Path) -> None:
    further = run(cohort, tmp_path / "further", STILL, start_from=first)
    assert farthest(first, further) < 1e-9
    assert farthest(first, run(cohort, tmp_path / "anew", STILL)) > 1e-3  # another seed's own weights
    said, old = load_checkpoint(further)[1]["started_from"], load_checkpoint(first)[1]
    assert said["sha256"] == old["sha256"]
    assert said["seed"] == 3
    assert old["started_from"] is None


def test_whom_the_first_training_saw_is_not_forgotten(cohort, tmp_path: Path) -> None:
    """On other scans of the same sites: a study must not score either part as unseen."""
    scans = cohort.scans
    parts = [Cohort(scans[:2]), Cohort(scans[2:])]
    start = run(parts[0], tmp_path / "start", SMALL)
    further = run(parts[1], tmp_path / "further", STILL, start_from=start)
    everyone = sorted(sha256(scan.path.read_bytes()).hexdigest() for scan in scans)
    assert load_checkpoint(further)[1]["training_scans"] == everyone
    with pytest.raises(UsageError, match="trained on all 4 subjects"):
        unseen(cohort, further)


def test_training_goes_on(cohort, first: Path, tmp_path: Path) -> None:
    assert farthest(first, run(cohort, tmp_path, SMALL, start_from=first)) > 1e-4


def test_networks_of_another_size_or_recipe_are_refused(cohort, first: Path, tmp_path: Path) -> None:
    wider = replace(SMALL, settings=replace(SMALL.settings, width=3))
    with pytest.raises(UsageError, match="width 2"):
        run(cohort, tmp_path, wider, start_from=first)
    with pytest.raises(UsageError, match="recipe"):
        train_cyclegan(cohort, ["a"], "b", tmp_path, SMALL, 0.0, Recipe(), "cpu", start_from=first)
