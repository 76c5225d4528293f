"""A network as a function of whole volumes in model space, whether it reads volumes or slices."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hz_runtime.inference.slice_wise import SliceHarmonizer, SlicePredictor
from hz_train.fit import Run
from hz_train.slice_cyclegan import SliceGenerator
from hz_train.slice_resnet import SliceResNet

F32 = NDArray[np.float32]


@torch.no_grad()
def applied(network: nn.Module, volumes: F32, run: Run, middle_slices: int = 0) -> F32:
    """Volumes through a network in evaluation mode, in float32; its mode is put back.

    volumes : (n, D, H, W) float32 in [0, 1].  middle_slices : for a slice predictor, whose answer is the
    median over so many; 0 for all.
    Returns (n, D, H, W) of a generator, (n,) of a predictor. One volume at a time, slices as hz-run sends
    them, so that a scan's result does not depend on its neighbours.
    """
    training = network.training
    network.eval()
    try:
        if isinstance(network, SliceGenerator):
            return SliceHarmonizer(lambda slices: _answer(network, slices[:, 0], run))(volumes)
        if isinstance(network, SliceResNet):
            return SlicePredictor(lambda slices: _answer(network, slices[:, 0], run), middle_slices)(volumes)
        return np.concatenate([_answer(network, volume[None], run)[:, 0] for volume in volumes])
    finally:
        network.train(training)


def _answer(network: nn.Module, images: F32, run: Run) -> F32:
    answer: F32 = network(run.put(images)).float().cpu().numpy()
    return answer
