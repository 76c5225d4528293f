"""Training shared by several processes: the line of the documentation, where the host has a name or not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hz_cli.train import train as command  # noqa: E402
from hz_runtime.model_space.recipe import Recipe  # noqa: E402
from hz_train.augment import Augmentation  # noqa: E402
from hz_train.checkpoint import load_checkpoint  # noqa: E402
from hz_train.cohort import read_participants  # noqa: E402
from hz_train.cyclegan_task import CycleGANTask, Settings  # noqa: E402
from hz_train.cyclegan_training import Preset, train_cyclegan  # noqa: E402
from hz_train.fit import Run, Schedule  # noqa: E402
from hz_train.losses import Weights  # noqa: E402
from small_scans import write_scan  # noqa: E402

LIMIT = 300  # seconds: a busy machine is no failure
SETTINGS = Settings(Weights(restore=10.0), Augmentation.strong(), width=2)
GRID = (32, 32, 32)
SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from test_processes import trained
trained(Path({table!r}), Path({out!r}), batch=1)
Path({out!r}, "left-" + os.environ["RANK"]).write_text(str(not torch.distributed.is_initialized()))
"""


def schedule(batch: int) -> Schedule:
    return Schedule(epochs=1, batch=batch, lr=1e-3, milestones=(), picture_every=0, seed=7)


def trained(table: Path, out: Path, batch: int) -> Path:
    preset = Preset(schedule(batch), SETTINGS, n4=False)
    return train_cyclegan(
        read_participants(table), ["a"], "b", out, preset, 0.0, Recipe(grid_shape=GRID), "cpu"
    )


def written_cohort(folder: Path) -> Path:
    lines = ["file\tsite\tage\tsex\tgroup"]
    for k in range(4):
        write_scan(folder / f"scan-{k}.nii.gz", k)
        lines.append(f"scan-{k}.nii.gz\t{'ab'[k % 2]}\t{30 + k}\tF\tcontrol")
    table = folder / "participants.tsv"
    table.write_text("\n".join(lines) + "\n")
    return table


def documented() -> list[str]:
    """The options of torchrun in the help of hz-train, for two processes."""
    found = re.search(r"torchrun (.*?) -m hz_cli\.train", command.help or "", re.DOTALL)
    assert found
    return re.sub(r"(--nproc-per-node) \d+", r"\1 2", found[1].replace("\\", "")).split()


def nameless() -> list[str]:
    """What runs a command on a host whose name does not resolve; nothing where that may not be tried."""
    prefix = [
        "unshare",
        "--user",
        "--map-root-user",
        "--uts",
        "sh",
        "-c",
        'hostname no-such-host; exec "$@"',
        "sh",
    ]
    try:
        tried = subprocess.run([*prefix, "hostname"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return prefix if tried.stdout.strip() == "no-such-host" else []


def finish(arguments: list[str]) -> None:
    """Run a command to its end; fail with what it said where it fails, or has not ended in time."""
    with subprocess.Popen(
        arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        try:
            said, _ = child.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            child.terminate()  # torchrun ends its processes then
            try:
                said, _ = child.communicate(timeout=60)
            finally:
                child.kill()
            pytest.fail(f"not at its end after {LIMIT} s:\n{said}")
    assert child.returncode == 0, said


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    """torchrun's gradients are those of the whole batch: every network here treats each volume by itself."""
    table, out = written_cohort(tmp_path), tmp_path / "two"
    script = tmp_path / "train.py"
    paths = [str(Path(__file__).parent), *sys.path]
    script.write_text(SCRIPT.format(paths=paths, table=str(table), out=str(out)))
    finish([*nameless(), sys.executable, "-m", "torch.distributed.run", *documented(), str(script)])
    assert [(out / f"left-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]

    two = load_checkpoint(out / "harmonizer.safetensors")[0]
    one = load_checkpoint(trained(table, tmp_path / "one", batch=2))[0]
    volumes = np.zeros((1, *GRID), np.float32) + 0.5
    task = CycleGANTask(volumes, volumes, volumes, volumes, SETTINGS, Run.start(schedule(2), "cpu"))
    start = {f"{n}.{k}": v for n, m in task.networks.items() for k, v in m.state_dict().items()}
    # Biases in front of an instance norm have no gradient but rounding, which Adam blows up to full steps.
    names = [name for name in one if name.endswith("weight")]
    moved = sum(float((one[n] - start[n]).square().sum()) for n in names)
    apart = sum(float((one[n] - two[n]).square().sum()) for n in names)
    assert moved > 0
    assert apart < 0.02 * moved
