"""A weight file as it was read, and its tensors put into a network: each into its place, none left over.

How files are stored is `keras_file`'s and `state_dict`'s; nothing of it is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]

MOST_BYTES = 2 << 30  # of a file, and of its tensors
MOST_TENSORS = 20_000
OTHER_FILE = "Download the file again from where its authors keep it, and check its size."
# How a Keras tensor's axes come to stand as torch has them, by the kind of layer.
ORDERS: Mapping[str, tuple[int, ...]] = {
    "": (),
    "conv3": (4, 3, 0, 1, 2),  # (kD, kH, kW, in, out), and of a transposed one (kD, kH, kW, out, in)
    "conv2": (3, 2, 0, 1),
    "dense": (1, 0),
}


@dataclass(frozen=True, eq=False)
class WeightFile:
    """One file of weights.

    name, sha256 : of the file.  tensors : by the names they have in it, in its order; finite.
    config : the architecture that a Keras file may describe; empty without.
    """

    name: str
    sha256: str
    tensors: Mapping[str, Array]
    config: Mapping[str, Any] = field(default_factory=dict)


def load(network: nn.Module, file: WeightFile, names: Mapping[str, tuple[str, str]]) -> nn.Module:
    """The network with the file's tensors, in evaluation mode.

    names : of each key of the network's state dict, the tensor's name in the file and a key of ORDERS.
    Raises UsageError naming the tensors that are missing, left over or of another shape.
    """
    import torch  # not for those who only read

    held = network.state_dict()
    missing = [name for name, _ in names.values() if name not in file.tensors]
    if missing:
        raise _misfit(file, f"lacks {_listed(missing)}")
    extra = sorted(set(file.tensors) - {name for name, _ in names.values()})
    if extra:
        raise _misfit(file, f"holds {_listed(extra)}, which the network has no place for")
    assert set(names) == set(held), "the network's own table is not complete"
    placed = {}
    for key, (name, kind) in names.items():
        values = file.tensors[name]
        order = ORDERS[kind]
        fits = not order or values.ndim == len(order)
        turned = values.transpose(order) if order and fits else values
        if not fits or turned.shape != tuple(held[key].shape):
            raise _misfit(
                file, f"holds {named(name)} of {values.shape}, and its place is {tuple(held[key].shape)}"
            )
        placed[key] = torch.from_numpy(np.ascontiguousarray(turned)).to(held[key].dtype)
    network.load_state_dict(placed, assign=True)  # it may hold none yet (device "meta")
    return network.eval()


def named(text: str) -> str:
    """A name in a stranger's file as messages show it: short, on one line, no terminal's commands in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:80])


def check_type(name: str, tensor: str, dtype: np.dtype[Any]) -> None:
    """Raise UsageError for a tensor of anything but numbers."""
    if dtype.kind not in "iuf":
        raise UsageError(f"{name}: {tensor} holds {dtype}, which is no weight.", OTHER_FILE)


def check_values(name: str, tensor: str, values: Array) -> None:
    """Raise UsageError for a tensor that is no weight: of no number, or with values that are not finite."""
    check_type(name, tensor, values.dtype)
    if not np.isfinite(values).all():
        raise UsageError(f"{name}: {tensor} holds values that are not finite.", OTHER_FILE)


def _misfit(file: WeightFile, what: str) -> UsageError:
    return UsageError(
        f"{file.name} does not fit this network: it {what}.",
        "Give the file that the authors published for it (hz-export import --list), unchanged.",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(named, names[:4]))
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
