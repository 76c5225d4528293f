"""Which of several source sites a reverse mapping shall lead back to: the condition of Bashyam 2020.

With several sources pooled, the way back from the reference site has no single right answer; the one-hot
vector of the origin, laid over the image as constant planes, gives it one. Only the reverse mapping takes
it: a harmonizer must work on scans of a site that it was not told.

A constant plane adds a constant to every channel of the conv that reads it, and an instance norm behind
that conv subtracts it again: the condition would be lost, save at zero-padded borders. Networks that take
a condition therefore have no norm in their first layer; behind its ReLU the site has changed which
intensities pass, which no norm undoes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

F32 = NDArray[np.float32]


def one_hot(sites: Sequence[str], known: Sequence[str]) -> F32:
    """(n, len(known)) float32: row i is 1 in the column of sites[i]. Raises ValueError for one not known."""
    columns = [list(known).index(site) for site in sites]
    return np.eye(len(known), dtype=np.float32)[columns]


def with_planes(images: Tensor, condition: Tensor | None) -> Tensor:
    """Images with one constant plane a site behind their own channel.

    images : (N, 1, ...), two or three spatial axes.  condition : (N, sites) one-hot, or None for images
    as they are. Returns (N, 1 + sites, ...).
    """
    if condition is None:
        return images
    space = images.shape[2:]
    planes = condition.to(images.dtype).reshape(*condition.shape, *(1 for _ in space))
    return torch.cat([images, planes.expand(-1, -1, *space)], 1)
