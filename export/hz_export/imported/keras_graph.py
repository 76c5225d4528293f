"""A Keras model of slices as its own file describes it, rebuilt in torch layer by layer.

Keras 2 stores beside the weights which layers there are and how they are joined. Nothing of the file is
executed: of Lambda layers, whose code is stored as a program, only the scaled residual of Keras's
Inception-ResNet-v2 is known, by its two inputs and its scale; its program is not looked at. Any layer that is
not in this module is refused by its name.

A few letters may ask for more memory than there is. So a network is put together and tried without any
(torch's device "meta"), and is used only where its tensors fit and its layers together make not too much.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hz_export.imported.weight_file import WeightFile, load, named
from hz_runtime.errors import UsageError
from hz_runtime.io.json_text import OTHER_FORM

Tensor = torch.Tensor
MODELS = ("Model", "Functional", "Sequential")
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
MOST_LAYERS = 5000
MOST_READS = 64  # layers that one layer reads
WIDEST, LONGEST_SIDE = 64, 2048  # of a window; of a slice
MOST_VALUES = 1 << 29  # that all layers make for two slices, what they make on the way counted


class Padded(nn.Module):
    """What surrounds a window of `kernel` and `strides` with Keras's padding, "same" or "valid"."""

    def __init__(self, config: Mapping[str, Any], kernel: Any) -> None:
        super().__init__()
        self.kernel = _pair(kernel)
        self.strides = _pair(config.get("strides") or kernel)
        if not all(type(n) is int and 1 <= n <= WIDEST for n in (*self.kernel, *self.strides)):
            raise ValueError(f"a window of {self.kernel!s:.40} every {self.strides!s:.40}")
        self.same = config.get("padding", "valid") == "same"

    def sides(self, x: Tensor) -> tuple[int, int, int, int]:
        """(left, right, above, below) of TensorFlow: the odd one comes last."""
        found: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel[::-1], self.strides[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) if self.same else 0
            found += [total // 2, total - total // 2]
        return found[0], found[1], found[2], found[3]


class Conv(Padded):
    """Conv2D with its activation."""

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__(config, config["kernel_size"])
        self.dilation = _pair(config.get("dilation_rate", 1))
        if self.dilation != (1, 1) or config.get("groups", 1) != 1:
            raise ValueError("a dilated or grouped convolution")
        self.conv = nn.Conv2d(
            channels, int(config["filters"]), self.kernel, self.strides, bias=config["use_bias"]
        )
        self.activation = _activation(config)

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.conv(functional.pad(x, self.sides(x))))


class Pool(Padded):
    """MaxPooling2D, AveragePooling2D: padding counts in neither."""

    def __init__(self, config: Mapping[str, Any], largest: bool) -> None:
        super().__init__(config, config["pool_size"])
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        sides = self.sides(x)
        if self.largest:
            # A window that reaches over an edge holds that edge, so that its values again change no maximum;
            # minus infinity, as TensorFlow has it, is nothing that a float16 file could hold.
            return functional.max_pool2d(functional.pad(x, sides, "replicate"), self.kernel, self.strides)
        total = functional.avg_pool2d(functional.pad(x, sides), self.kernel, self.strides)
        inside = functional.pad(torch.ones_like(x[:1, :1]), sides)
        return total / functional.avg_pool2d(inside, self.kernel, self.strides)


class Norm(nn.Module):
    """BatchNormalization over channels as it is at inference, with or without scale and centre."""

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.epsilon = float(config["epsilon"])
        if not 0 < self.epsilon < 1:
            raise ValueError("a norm whose epsilon is none")
        held = {"gamma": config.get("scale", True), "beta": config.get("center", True)}
        for name, there in held.items():
            if there:
                self.register_buffer(name, torch.ones(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        held = dict(self.named_buffers())
        return functional.batch_norm(
            x, held["moving_mean"], held["moving_variance"], held.get("gamma"), held.get("beta"), False, 0.0,
            self.epsilon,
        )  # fmt: skip


class Dense(nn.Module):
    """Dense with its activation."""

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, int(config["units"]), bias=config["use_bias"])
        self.activation = _activation(config)

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.linear(x))


class Plain(nn.Module):
    """A layer without tensors.  kind : its class in Keras."""

    def __init__(self, kind: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind, self.config = kind, config
        self.activation = (
            "relu" if kind == "ReLU" else _activation(config) if kind == "Activation" else "linear"
        )
        if kind == "ReLU" and any(config.get(key) for key in ("max_value", "negative_slope", "threshold")):
            raise ValueError("a ReLU with limits")
        if kind == "Lambda":
            self.scale = float((config.get("arguments") or {})["scale"])
            if not math.isfinite(self.scale):
                raise ValueError("a scale that is none")

    def forward(self, *x: Tensor) -> Tensor:
        if self.kind == "Lambda":
            return x[0] + x[1] * self.scale
        if self.kind == "Add":
            return functools.reduce(torch.add, x)
        if self.kind == "Concatenate":
            return torch.cat(x, 1)
        if self.kind == "ZeroPadding2D":
            (above, below), (left, right) = (_pair(side) for side in _pair(self.config["padding"]))
            return functional.pad(x[0], (left, right, above, below))
        if self.kind == "Flatten" and x[0].ndim == 4:
            return x[0].permute(0, 2, 3, 1).flatten(1)  # channels last, as Keras counts them
        if self.kind.startswith("Global") and x[0].ndim == 4:
            return x[0].mean((2, 3)) if "Average" in self.kind else x[0].amax((2, 3))
        return ACTIVATIONS[self.activation](x[0])


PLAIN = (
    "Activation", "ReLU", "Add", "Concatenate", "Lambda", "ZeroPadding2D", "Flatten", "Dropout",
    "GlobalAveragePooling2D", "GlobalMaxPooling2D",
)  # fmt: skip


class Model(nn.Module):
    """A model of one input and one output, (N, C, H, W) to what its last layer gives.

    steps : (name, names that it reads), in an order in which they can be computed.
    """

    def __init__(
        self, inputs: str, steps: list[tuple[str, list[str]]], layers: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.steps = steps
        self.keys = {name: f"l{k}" for k, name in enumerate(layers)}
        self.layers = nn.ModuleDict({self.keys[name]: layer for name, layer in layers.items()})

    def forward(self, x: Tensor) -> Tensor:
        made = {self.inputs: x}
        left = [name for _, reads in self.steps for name in reads]
        for name, reads in self.steps:
            made[name] = self.layers[self.keys[name]](*(made[read] for read in reads))
            for read in reads:  # what nobody reads any more is let go
                left.remove(read)
                if read not in left:
                    made.pop(read, None)
        return made[self.steps[-1][0]]


def rebuilt(file: WeightFile) -> tuple[nn.Module, tuple[int, int], tuple[int, ...]]:
    """(the network, (height, width) of its input, the shape of what it gives for one slice) that a file of
    `save` describes, with all its tensors. It has computed nothing yet.

    Raises UsageError for one that describes none, or a layer that is not known here, named.
    """
    if file.config.get("class_name") not in MODELS:
        raise UsageError(
            f"{file.name} does not describe its network.",
            "Give the file that the authors published, as Keras's model.save wrote it.",
        )
    names: dict[str, tuple[str, str]] = {}
    try:
        shape = _input_shape(file.config)
        if not all(1 <= side <= LONGEST_SIDE for side in shape):
            raise ValueError(f"slices of {shape!s:.60}")
        with torch.device("meta"):
            network, _ = _Builder(file, names).model(file.config, shape[2], "", "")
            unfilled = copy.deepcopy(network)
        made = load(network, file, names)
        with torch.device("meta"), torch.no_grad():
            given = _try_out(unfilled.eval(), shape)
    except UsageError:
        raise
    except (RuntimeError, ArithmeticError, *OTHER_FORM) as error:
        why = named(" ".join(str(error).split()))
        raise UsageError(
            f"{file.name} describes a network that hz cannot rebuild ({why}).",
            "Only networks of Keras 2 of the layers of VGG, ResNet, DenseNet and Inception-ResNet are known.",
        ) from None
    return made, shape[:2], given


class _Counted(TorchFunctionMode):
    """Raises ValueError once what torch makes in it comes to more than MOST_VALUES."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.values += made.numel()
            if self.values > MOST_VALUES:
                raise ValueError(f"layers that make more than {MOST_VALUES} values")
        return made


def _try_out(network: nn.Module, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of what a network without memory gives for one slice; nothing is computed.

    Raises ValueError where its layers would make more than MOST_VALUES for two slices.
    """
    slices = torch.zeros(2, shape[2], *shape[:2])
    with _Counted():
        return tuple(network(slices).shape[1:])


class _Builder:
    """Layers by their descriptions, and which tensor of the file goes where."""

    def __init__(self, file: WeightFile, names: dict[str, tuple[str, str]]) -> None:
        self.file, self.names, self.count = file, names, 0

    def model(self, described: Mapping[str, Any], channels: int, group: str, key: str) -> tuple[Model, int]:
        """(a model, how many channels it gives).  group : of its tensors in the file, "" where each layer has
        one; key : what comes before its layers' keys in the state dict."""
        config = described["config"]
        rows = config["layers"] if isinstance(config, dict) else config
        if len(rows) > MOST_LAYERS:
            raise ValueError(f"{len(rows)} layers")
        chained = described["class_name"] == "Sequential"
        source, steps, widths = "", [], {}
        layers: dict[str, nn.Module] = {}
        before = ""
        for row in rows:
            name, kind = row["config"]["name"], row["class_name"]
            if name in widths:
                raise ValueError(f"{name} is there twice")
            if kind == "InputLayer":
                source = before = name
                widths[name] = channels
                continue
            if chained and not source:
                source = before = "input of " + name
                widths[source] = channels
            reads = [before] if chained else _reads(row)
            layer, widths[name] = self.layer(
                row, [widths[read] for read in reads], group, f"{key}layers.l{len(layers)}."
            )
            layers[name] = layer
            steps.append((name, reads))
            before = name
        if not chained and (len(config["input_layers"]), len(config["output_layers"])) != (1, 1):
            raise ValueError("several inputs or outputs")
        last = before if chained else config["output_layers"][0][0]
        if not steps or steps[-1][0] != last:
            raise ValueError(f"{last}, its output, is not its last layer")
        return Model(source, steps, layers), widths[last]

    def layer(self, row: Mapping[str, Any], widths: list[int], group: str, key: str) -> tuple[nn.Module, int]:
        """(a layer, its channels)."""
        kind, config = row["class_name"], row["config"]
        name = config["name"] if "name" in config else row["name"]
        self.count += 1
        if config.get("data_format", "channels_last") != "channels_last" or self.count > MOST_LAYERS:
            raise ValueError(f"{name} has its channels first, or there are too many layers")
        if kind in MODELS:
            return self.model(row, widths[0], name, key)
        if kind == "Conv2D":
            self._name(key + "conv.", {"weight": ("kernel", "conv2"), "bias": ("bias", "")}, config, group)
            return Conv(config, widths[0]), int(config["filters"])
        if kind == "Dense":
            self._name(key + "linear.", {"weight": ("kernel", "dense"), "bias": ("bias", "")}, config, group)
            kernel = self.file.tensors.get(
                f"{group or name}/{name}/kernel"
            )  # a Flatten leaves more than channels
            read = widths[0] if kernel is None or kernel.ndim != 2 else kernel.shape[0]
            return Dense(config, read), int(config["units"])
        if kind == "BatchNormalization":
            made = Norm(config, widths[0])
            leaves = {leaf: (leaf, "") for leaf, _ in made.named_buffers()}
            self._name(key, leaves, {**config, "use_bias": True}, group)
            return made, widths[0]
        if kind in ("MaxPooling2D", "AveragePooling2D"):
            return Pool(config, kind == "MaxPooling2D"), widths[0]
        if kind in PLAIN and (kind != "Lambda" or len(widths) == 2):
            return Plain(kind, config), sum(widths) if kind == "Concatenate" else widths[0]
        raise ValueError(f"{name}, a layer {kind}")

    def _name(
        self, key: str, leaves: Mapping[str, tuple[str, str]], config: Mapping[str, Any], group: str
    ) -> None:
        name = config["name"]
        for own, (leaf, order) in leaves.items():
            if own != "bias" or config["use_bias"]:
                self.names[key + own] = (f"{group or name}/{name}/{leaf}", order)


def _reads(row: Mapping[str, Any]) -> list[str]:
    """The layers that a layer of a functional model reads. Raises ValueError for one that is used twice."""
    nodes = row["inbound_nodes"]
    if len(nodes[0]) > MOST_READS:
        raise ValueError(f"{row['config'].get('name')} reads {len(nodes[0])} layers")
    if len(nodes) != 1 or any(node[1:3] != [0, 0] for node in nodes[0]):
        raise ValueError(f"{row['config'].get('name')} is used more than once")
    return [str(node[0]) for node in nodes[0]]


def _input_shape(described: Mapping[str, Any]) -> tuple[int, int, int]:
    """(height, width, channels) of the first layer that says so."""
    config = described["config"]
    for row in config["layers"] if isinstance(config, dict) else config:
        found = row["config"].get("batch_input_shape") or row["config"].get("batch_shape")
        if found:
            height, width, channels = found[1:]
            return int(height or 256), int(width or 256), int(channels)
        if row["class_name"] in MODELS:
            return _input_shape(row)
    raise ValueError("no input")


def _activation(config: Mapping[str, Any]) -> str:
    name = str(config.get("activation") or "linear")
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name[:40]}")
    return name


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, int):
        return value, value
    one, other = value
    return one, other
