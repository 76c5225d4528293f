"""One CycleGAN training step: hz against a plain implementation of the same losses.

    python benchmarks/train_step.py [--volume 64] [--batch N] [--steps N] [--compile] [--out FILE]

The plain step is what one would write from the paper: float32, six generator passes and four
discriminator passes one after the other. Both start from the same weights and see the same volumes, and
take turns in one process, so that a drifting machine slows both. Prints JSON. On a CPU the batch is 1, and hz
runs in float32 and in bf16, as the reference preset does. On a GPU the batch is 4, and hz runs in float32,
bf16 and fp16 with --channels-last, and in bf16 without; convolutions in float32 are TF32 there, torch's
default. One that fails is recorded in its own words, the others go on; exit code 1 where any failed, or where
torch does not see the GPU that the driver has. --out is written anew after every turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "train", "export")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from hz_train.cyclegan_task import CycleGANTask, Settings, cyclegan_step  # noqa: E402
from hz_train.fit import Run, Schedule  # noqa: E402
from hz_train.losses import Weights  # noqa: E402
from machine import describe_machine, gpu  # noqa: E402

WARMUP = 2  # untimed turns of each: the first chooses kernels, and compiles
# name: precision, channels_last
ON_CPU = {"plain": ("float32", False), "hz_float32": ("float32", False), "hz_bf16": ("bf16", False)}
ON_GPU = {
    "plain": ("float32", False),
    "hz_float32": ("float32", True),
    "hz_bf16": ("bf16", True),
    "hz_bf16_contiguous": ("bf16", False),
    "hz_fp16": ("fp16", True),
}


def plain_step(nets, optimizers, x, y):
    """Komandur 2023 as one would write it down: LSGAN, cycle L1 x 10, identity L1 x 0.1."""
    g, f = nets["generator"], nets["reverse"]
    discriminator_y, discriminator_x = nets["discriminator_target"], nets["discriminator_source"]
    fake_y, fake_x = g(x), f(y)
    score_y, score_x = discriminator_y(fake_y), discriminator_x(fake_x)
    loss = functional.mse_loss(score_y, torch.ones_like(score_y))
    loss = loss + functional.mse_loss(score_x, torch.ones_like(score_x))
    loss = loss + 10 * (functional.l1_loss(f(fake_y), x) + functional.l1_loss(g(fake_x), y))
    loss = loss + 0.1 * (functional.l1_loss(g(y), y) + functional.l1_loss(f(x), x))
    optimizers["generators"].zero_grad()
    loss.backward()
    optimizers["generators"].step()
    discriminator_loss = 0
    for discriminator, real, fake in ((discriminator_y, y, fake_y), (discriminator_x, x, fake_x)):
        scores, false = discriminator(real), discriminator(fake.detach())
        discriminator_loss = discriminator_loss + 0.5 * functional.mse_loss(scores, torch.ones_like(scores))
        discriminator_loss = discriminator_loss + 0.5 * functional.mse_loss(false, torch.zeros_like(false))
    optimizers["discriminators"].zero_grad()
    discriminator_loss.backward()
    optimizers["discriminators"].step()
    return loss.detach(), discriminator_loss.detach()


class Variant:
    """One way of training, opened: `step` does one, and gives the losses once the device has done it."""

    def __init__(self, name, volumes, device, compiled):
        precision, channels_last = (ON_CPU if device == "cpu" else ON_GPU)[name]
        self.plain = name == "plain"
        self.volumes = volumes
        self.run = Run.start(
            Schedule(
                batch=len(volumes),
                precision=precision,
                channels_last=channels_last,
                compile=compiled and not self.plain,
                seed=0,
            ),
            device,
        )
        # The weights are drawn from the seed: the same in every variant.
        self.task = CycleGANTask(volumes, volumes, volumes[:0], volumes[:0], Settings(Weights()), self.run)
        self.times, self.first, self.peak = [], None, None

    def step(self):
        x = self.run.put(self.volumes)
        if self.plain:
            losses = plain_step(self.task.networks, self.task.optimizers, x, x)
        else:
            parts = cyclegan_step(self.task.call, self.task.optimizers, Weights(), self.run, x, x, x, x, x)
            losses = parts["generators"], parts["discriminators"]
        # The numbers are read behind everything that was put on the device before, the last update too.
        return [float(v.detach()) for v in losses]

    def turn(self, timed):
        cuda = self.run.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        losses = self.step()
        if timed:
            self.times.append(time.perf_counter() - begin)
        self.first = self.first or losses
        if cuda:  # with what the other variants hold
            self.peak = torch.cuda.max_memory_allocated()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", type=int, default=64, help="voxels a side")
    parser.add_argument("--batch", type=int, help="default 4 on a GPU, 1 on a CPU")
    parser.add_argument("--steps", type=int, help="timed steps of each; default 30 on a GPU, 3 on a CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile in hz's; minutes to start")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    batch, steps = args.batch or (4 if cuda else 1), args.steps or (30 if cuda else 3)
    rng = np.random.default_rng(0)
    volumes = rng.random((batch, *(args.volume,) * 3)).astype(np.float32)

    result = {
        "benchmark": "train_step",
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "volume": args.volume,
        "batch": batch,
        "compiled": args.compile,
    }
    made, errors = {}, {}
    if gpu() and not cuda:
        errors["cuda"] = f"torch {torch.__version__} does not see the GPU: this ran on the CPU"
    for turn in range(WARMUP + steps):
        for name in ON_GPU if cuda else ON_CPU:
            if name in errors:
                continue
            try:
                if name not in made:
                    made[name] = Variant(name, volumes, device, args.compile)
                made[name].turn(timed=turn >= WARMUP)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
        if turn >= WARMUP:
            result |= summary({name: one for name, one in made.items() if name not in errors}, cuda)
        text = json.dumps(result | {"steps": max(0, turn + 1 - WARMUP), "errors": errors}, indent=1)
        if args.out:
            args.out.write_text(text + "\n")
    print(text)
    sys.exit(1 if errors else 0)


def summary(done, cuda):
    median = {name: statistics.median(one.times) for name, one in done.items()}
    return {
        "median_s": median,
        "plain_over": {name: median["plain"] / s for name, s in median.items() if "plain" in median},
        "first_losses_generators_discriminators": {name: one.first for name, one in done.items()},
        "peak_gpu_bytes": {name: one.peak for name, one in done.items()} if cuda else None,
    }


if __name__ == "__main__":
    main()
