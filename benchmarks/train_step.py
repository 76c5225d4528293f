"""One CycleGAN training step: hz against a plain implementation of the same losses.

    python benchmarks/train_step.py [--volume 64] [--batch N] [--steps N]

The plain step is what one would write from the paper: float32, six generator passes and four
discriminator passes one after the other. Both start from the same weights and see the same volumes, and
take turns in one process, so that a drifting machine slows both. Prints JSON; on a GPU the batch is 4 and
hz runs as `--precision bf16 --channels-last`, on a CPU the batch is 1 and hz runs as the reference preset
does, in bf16 where the CPU has instructions for it, and in float32, so that both can be seen.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import numpy as np
import torch
from torch.nn import functional

from hz_train.cyclegan_task import CycleGANTask, Settings, cyclegan_step
from hz_train.fit import Run, Schedule
from hz_train.losses import Weights
from machine import describe_machine


def plain_step(nets, optimizers, x, y):
    """Komandur 2023 as one would write it down: LSGAN, cycle L1 x 10, identity L1 x 0.1."""
    g, f = nets["generator"], nets["reverse"]
    judge_y, judge_x = nets["discriminator_target"], nets["discriminator_source"]
    fake_y, fake_x = g(x), f(y)
    score_y, score_x = judge_y(fake_y), judge_x(fake_x)
    loss = functional.mse_loss(score_y, torch.ones_like(score_y))
    loss = loss + functional.mse_loss(score_x, torch.ones_like(score_x))
    loss = loss + 10 * (functional.l1_loss(f(fake_y), x) + functional.l1_loss(g(fake_x), y))
    loss = loss + 0.1 * (functional.l1_loss(g(y), y) + functional.l1_loss(f(x), x))
    optimizers["generators"].zero_grad()
    loss.backward()
    optimizers["generators"].step()
    judged = 0
    for judge, real, fake in ((judge_y, y, fake_y), (judge_x, x, fake_x)):
        scores, false = judge(real), judge(fake.detach())
        judged = judged + 0.5 * functional.mse_loss(scores, torch.ones_like(scores))
        judged = judged + 0.5 * functional.mse_loss(false, torch.zeros_like(false))
    optimizers["discriminators"].zero_grad()
    judged.backward()
    optimizers["discriminators"].step()
    return loss.detach(), judged.detach()


def task(volumes, precision, channels_last, device):
    run = Run.start(
        Schedule(batch=len(volumes), precision=precision, channels_last=channels_last, seed=0), device
    )
    return CycleGANTask(volumes, volumes, volumes[:0], volumes[:0], Settings(Weights()), run), run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", type=int, default=64, help="voxels a side")
    parser.add_argument("--batch", type=int, help="default 4 on a GPU, 1 on a CPU")
    parser.add_argument("--steps", type=int, help="timed steps of each; default 30 on a GPU, 3 on a CPU")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    batch, steps = args.batch or (4 if cuda else 1), args.steps or (30 if cuda else 3)
    rng = np.random.default_rng(0)
    volumes = rng.random((batch, *(args.volume,) * 3)).astype(np.float32)

    variants = {"plain": ("float32", False), "hz_float32": ("float32", cuda), "hz_bf16": ("bf16", cuda)}
    made = {name: task(volumes, *variant, device) for name, variant in variants.items()}
    state = copy.deepcopy({n: m.state_dict() for n, m in made["plain"][0].networks.items()})
    for one, _ in made.values():
        for name, network in one.networks.items():
            network.load_state_dict(state[name])
            network.train()

    def step(name):
        one, run = made[name]
        x = run.put(volumes)
        if name == "plain":
            return plain_step(one.networks, one.optimizers, x, x)
        parts = cyclegan_step(one.networks, one.optimizers, Weights(), run, x, x, x, x, x)
        return parts["generators"], parts["discriminators"]

    times = {name: [] for name in variants}
    first = {}
    for turn in range(steps + 1):  # the first turn warms up, and shows that the losses agree
        for name in variants:
            begin = time.perf_counter()
            losses = [float(v.detach()) for v in step(name)]  # reading the numbers waits for the device
            if turn:
                times[name].append(time.perf_counter() - begin)
            else:
                first[name] = losses
    median = {name: statistics.median(t) for name, t in times.items()}
    best = min(("hz_float32", "hz_bf16"), key=median.__getitem__)
    result = {
        "benchmark": "train_step",
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "volume": args.volume,
        "batch": batch,
        "steps": steps,
        "median_s": median,
        "first_losses_generators_discriminators": first,
        "speedup_float32": median["plain"] / median["hz_float32"],
        "speedup_bf16": median["plain"] / median["hz_bf16"],
        "fastest": best,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
