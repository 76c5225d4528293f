"""Checkpoints to ONNX: the network they hold, and its float32 graph at opset 18.

The exporter is torch's current one (torch.export, `dynamo=True`). Compared on both networks here, it and
the older tracing exporter give the same operations (InstanceNormalization and ConvTranspose kept whole,
batch norm folded into its convolution), but the tracer leaves an Identity or two Constants beside every
norm, warns some 60 times, and is on its way out. The price is metadata: source paths and stack
traces of the exporting machine, which `cleaned` removes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import nn

from hz_export.graph_precision import checked
from hz_runtime.errors import HzError, UsageError
from hz_runtime.inference.slice_wise import SliceHarmonizer, SlicePredictor
from hz_runtime.model_space.feature_distance import FEATURES
from hz_runtime.model_space.recipe import Recipe

OPSET = 18
INPUTS = {3: "volume", 2: "slice"}  # by axes of the network's grid
OUTPUTS = {"harmonizer": "harmonized", "age": "age", "diagnosis": "probability"}
FREE_AXIS = "N"
SLICE_KINDS = ("slice_cyclegan", "slice_resnet")
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """A trained network as it is exported.

    role : a key of OUTPUTS.  network : in evaluation mode, float32, on the CPU.
    meta : the checkpoint's own JSON.  recipe : how its volumes are prepared.
    """

    file: str
    role: str
    network: nn.Module
    meta: Mapping[str, Any]
    recipe: Recipe

    @property
    def sha256(self) -> str:
        return str(self.meta["sha256"])

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def slice_wise(self) -> bool:
        """Whether the network reads axial slices, not whole volumes."""
        return self.meta["kind"] in SLICE_KINDS or bool(self.meta.get("slice_wise"))

    @property
    def grid(self) -> tuple[int, ...]:
        """What one item of the network's batch is: (D, H, W), or (D, H) of a slice."""
        shape = self.recipe.grid_shape
        return shape[:2] if self.slice_wise else shape

    @property
    def age_features(self) -> Mapping[str, Any]:
        """Of an age network of volumes whose training has kept it: the reference of its features; else empty.

        A slice-wise network has none: its age is a median over slices, and so of no one vector.
        """
        return self.meta.get("age_features") or {}

    @property
    def age_distribution(self) -> Mapping[str, Any]:
        """Of an age network whose last layer reads probabilities of ages: which ages; else empty."""
        return self.meta.get("age_distribution") or {}

    @property
    def gives_features(self) -> bool:
        """Whether its graphs give what the last layer reads beside the answer."""
        return bool(self.age_features or self.age_distribution)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a diagnosis: (negative, positive); else empty."""
        return tuple(self.meta["labels"]) if self.role == "diagnosis" else ()

    @property
    def of_volumes(self) -> nn.Module | Callable[[F32], F32]:
        """The network where it reads volumes; else a function of volumes, (n, D, H, W) float32, that sends it
        their slices as hz-run does and gives (n, D, H, W) or (n,)."""
        if not self.slice_wise:
            return self.network

        @torch.no_grad()
        def run(slices: F32) -> F32:
            answers: F32 = self.network(torch.from_numpy(slices)).numpy()
            return answers

        if self.role == "harmonizer":
            return SliceHarmonizer(run)
        return SlicePredictor(run, self.recipe.middle_slices)


def read_checkpoint(path: Path) -> Checkpoint:
    """The exported network of a checkpoint that hz-train wrote: a CycleGAN's forward generator, or a
    predictor. Raises UsageError for anything else, or where tensors and network do not match."""
    from hz_train.age_cnn import AgeCNN
    from hz_train.age_ensemble import AgeEnsemble
    from hz_train.checkpoint import load_checkpoint, without_prefix
    from hz_train.slice_cyclegan import SliceGenerator
    from hz_train.slice_resnet import SliceResNet
    from hz_train.volume_cyclegan import Generator

    tensors, meta = load_checkpoint(path)
    kinds: dict[str, tuple[str, type[nn.Module], str]] = {
        "volume_cyclegan": ("harmonizer", Generator, "generator"),
        "age_cnn": ("age", AgeCNN, "age"),
        "age_ensemble": ("age", AgeEnsemble, "age"),
        "slice_cyclegan": ("harmonizer", SliceGenerator, "generator"),
        "slice_resnet": (str(meta.get("task")), SliceResNet, "predictor"),
    }
    if meta.get("kind") not in kinds:
        raise UsageError(
            f"{path.name} holds a {meta.get('kind')!r}; hz-export knows {', '.join(kinds)}.",
            "Give the checkpoint that hz-train names at its end.",
        )
    role, build, prefix = kinds[meta["kind"]]
    _check_meta(path.name, role, meta)
    try:
        network = build(**meta["network"])
        network.load_state_dict(without_prefix(prefix, tensors))
        recipe = Recipe.from_dict(meta["recipe"])
    except (KeyError, TypeError, RuntimeError) as error:
        brief = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path.name} does not fit its network ({type(error).__name__}: {brief}).",
            "It was written by another version of hz; train again with this one.",
        ) from None
    bad = [
        name for name, t in network.state_dict().items() if t.is_floating_point() and not t.isfinite().all()
    ]
    if bad:
        raise UsageError(
            f"{path.name}: {bad[0]} holds non-finite values.", "The training diverged; train again."
        )
    checkpoint = Checkpoint(path.name, role, network.eval(), meta, recipe)
    if checkpoint.slice_wise and role != "harmonizer" and recipe.middle_slices < 1:
        raise UsageError(
            f"{path.name} reads slices, and its recipe does not say how many.", "Train it again with this hz."
        )
    return checkpoint


def _check_meta(name: str, role: str, meta: Mapping[str, Any]) -> None:
    if role not in OUTPUTS:
        raise UsageError(
            f"{name} predicts {role!r}; hz-export knows age and diagnosis.", "Train it again with this hz."
        )
    labels = meta.get("labels")
    if role == "diagnosis" and not (isinstance(labels, list) and len(set(map(str, labels))) == 2):
        raise UsageError(
            f"{name} predicts a diagnosis and does not name two labels (found {labels!r}).",
            "Train it again:  hz-train diagnosis --help",
        )


def to_onnx(network: nn.Module, output: str, grid: tuple[int, ...] = Recipe.grid_shape) -> ModelProto:
    """A network's float32 graph: input "volume" (N, 1, D, H, W) or "slice" (N, 1, D, H), one output, N free,
    weights inside.

    grid : (D, H, W) or (D, H).
    Raises HzError where torch cannot export it, or the graph is not what the manifest promises.
    """
    example = torch.zeros(2, 1, *grid)  # two of them: an example of one would fix the batch to one
    with _quiet():
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUTS[len(grid)]],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise HzError(
            "torch exported nothing.",
            "Install the tested versions:  pip install 'hz-mri[export]' -c constraints.txt",
        )
    model = cleaned(program.model_proto)
    _check_interface(model, output, grid)
    return model


def with_features(model: ModelProto) -> ModelProto:
    """An age network's graph with a second output, what its last layer reads: "features" (N, F) float32.

    That tensor alone is called otherwise; no arithmetic changes. Raises HzError for a graph that does not end
    in a linear layer.
    """
    new = ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    linear = [node for node in graph.node if node.op_type == "Gemm" and node.input[1] in weights]
    if not linear:
        raise HzError("The age network has no last linear layer.", "Report this with your torch version.")
    last = linear[-1]
    name, length = last.input[0], max(weights[last.input[1]])
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [FEATURES if each == name else each for each in names]
    kept = [value for value in graph.value_info if value.name != name]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    shape = [FREE_AXIS, length]
    graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, shape))
    return checked(new)


def cleaned(model: ModelProto) -> ModelProto:
    """The graph without what only its exporting machine knows, its free axis called N; checked."""
    new = ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    values = [*graph.input, *graph.output]
    for message in (new, graph, *graph.node, *graph.initializer, *values):
        message.doc_string = ""
        del message.metadata_props[:]
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = FREE_AXIS
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise HzError(f"{tensor.name} lies outside the model.", "Report this: weights must be embedded.")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return checked(new)


def specs(values: Any) -> list[dict[str, Any]]:
    """Inputs or outputs of a graph as the manifest states them: name, shape, dtype."""
    return [
        {
            "name": value.name,
            "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
        }
        for value in values
    ]


def _check_interface(model: ModelProto, output: str, grid: tuple[int, ...]) -> None:
    inputs, outputs = specs(model.graph.input), specs(model.graph.output)
    wanted = [{"name": INPUTS[len(grid)], "shape": [FREE_AXIS, 1, *grid], "dtype": "float32"}]
    opsets = {item.domain: item.version for item in model.opset_import}
    sound = (
        inputs == wanted
        and [o["name"] for o in outputs] == [output]
        and outputs[0]["shape"][0] == FREE_AXIS
        and outputs[0]["dtype"] == "float32"
        and opsets == {"": OPSET}
        and not model.functions
    )
    if not sound:
        raise HzError(
            f"The exported graph takes {inputs} and gives {outputs} at opsets {opsets}.",
            "Report this with your torch and onnx versions:  pip list",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says about its own insides; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed", four times
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise HzError(
            f"torch cannot export this network: {' '.join(str(error).split())[:300]}.",
            "Install the tested versions:  pip install 'hz-mri[export]' -c constraints.txt",
        ) from error
    finally:
        logger.setLevel(level)
