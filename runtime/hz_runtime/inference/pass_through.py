"""What stands in the harmonizer's place where a bundle holds none: scans stay as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.inference.predictors import Harmonizer

F32 = NDArray[np.float32]


class PassThrough(Harmonizer):
    """Gives prepared volumes back. Its backend and entry are those of the network that reads them."""

    harmonizes = False

    def __call__(self, grids: F32) -> F32:
        """The very volumes, (D, H, W) or (N, D, H, W)."""
        return grids
