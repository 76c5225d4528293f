#!/usr/bin/env bash
# PyTorch's 3-D convolution of one volume on a CPU, 3 x 3 x 3, float32.
#
# Guessed: oneDNN does it, whatever the batch.
# Seen with torch 2.13.0: one volume of (C, D, H, W) goes to `slow_conv3d` (unfold and multiply) while C * D * H is at
# most 20,480, and to oneDNN above; W does not count, so that 16 channels of 32 x 32 x 32 and of 32 x 32 x 256 are both
# slow. Two volumes go to oneDNN at any size: two of 32 x 32 x 32 took 24 ms, one of them 96 ms, on two cores of an
# AVX2 machine. The rule was written for images, where the first four sizes are all there are.
# Why hz cares: training 3-D networks with a batch of one on a small grid wastes most of its time; a batch of two does
# not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile


def kernel(convolution: torch.nn.Module, x: torch.Tensor) -> str:
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        convolution(x)
    names = {event.key for event in seen.key_averages()}
    return "slow_conv3d" if "aten::slow_conv3d" in names else "oneDNN" if "aten::mkldnn_convolution" in names else "?"


def seconds(convolution: torch.nn.Module, x: torch.Tensor) -> float:
    best = 1e9
    with torch.no_grad():
        for _ in range(7):
            start = time.perf_counter()
            convolution(x)
            best = min(best, time.perf_counter() - start)
    return best


cases = {
    (1, 16, 32, 32, 32): "slow_conv3d",
    (2, 16, 32, 32, 32): "oneDNN",
    (1, 20, 32, 32, 16): "slow_conv3d",  # 20 * 32 * 32 = 20,480
    (1, 21, 32, 32, 16): "oneDNN",
    (1, 16, 32, 32, 256): "slow_conv3d",
    (1, 16, 32, 256, 32): "oneDNN",
}
found = {}
for shape in cases:
    convolution = torch.nn.Conv3d(shape[1], 32, 3, padding=1)
    found[shape] = kernel(convolution, torch.rand(*shape))
    print(shape, found[shape])
convolution = torch.nn.Conv3d(16, 32, 3, padding=1)
one, two = (seconds(convolution, torch.rand(n, 16, 32, 32, 32)) for n in (1, 2))
print(f"one volume {one * 1000:.1f} ms, two volumes {two * 1000:.1f} ms")
sys.exit(0 if found == cases else f"changed: expected {cases}")
PY
