"""A padded 3D conv whose gradient can be trusted on small volumes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PaddedConv3d(nn.Conv3d):
    """A conv that pads its input itself where the kernel is larger than it; equal padding on all sides.

    There oneDNN leaves parts of the bfloat16 weight gradient unwritten (torch 2.13 on a CPU): values of 1e37
    in the last layer of a 32^3 volume's discriminator, and nan at the next step. Padded first it is right.
    On other devices it is a plain conv.
    """

    def forward(self, x: Tensor) -> Tensor:
        pad = int(self.padding[0])
        if pad == 0 or x.device.type != "cpu" or min(x.shape[2:]) >= self.kernel_size[0]:
            return super().forward(x)
        return functional.conv3d(functional.pad(x, (pad,) * 6), self.weight, self.bias, self.stride)
