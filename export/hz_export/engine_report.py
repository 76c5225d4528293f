"""What TensorRT made of a graph: the type of every layer, read back, and what breaks the policy.

Two places are read. The parsed network, before it is built: in a strongly typed network the builder must
keep its types, and it can be read without a GPU. The built engine, by TensorRT's own inspector: only where a
driver and a GPU that the engine is for are at hand, because deserialising needs both (TensorRT creates its
runtime without a driver, logs an error, and crashes the process when it ends).

Neither torch nor onnx is imported; TensorRT comes as an argument (`tensorrt` or `tensorrt_rtx`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from hz_export.label import label, share
from hz_runtime.errors import BackendError, HzError

WORDS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
CONVOLUTIONS = ("CONVOLUTION", "DECONVOLUTION")
SUMS = ("NORMALIZATION", "REDUCE")  # over whole volumes: they overflow 16 bits
# Layers that only hold, move or retype values.
MOVES = frozenset(
    {
        "ASSERTION", "CAST", "CONSTANT", "DEQUANTIZE", "GATHER", "IDENTITY", "QUANTIZE", "SHAPE", "SHUFFLE",
        "SLICE", "SQUEEZE", "UNSQUEEZE",
    }
)  # fmt: skip
# How TensorRT's inspector writes types, most specific first.
_INSPECTED = (
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half|float16", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float32|\bfloat\b", re.IGNORECASE)),
)


@dataclass(frozen=True)
class LayerTypes:
    """The layers of a parsed network.

    layers : how many compute in each type, e.g. {"fp16": 38, "fp32": 16}.
    conv_flops : arithmetic of the convolutions for one volume, per type.
    precision : see `hz_export.label`.  faults : what contradicts the policy, one line each.
    """

    layers: Mapping[str, int]
    conv_flops: Mapping[str, int]
    faults: tuple[str, ...]

    @property
    def precision(self) -> str:
        return label(self.conv_flops, self.layers)

    def __str__(self) -> str:
        return "layers: " + ", ".join(f"{count} {word}" for word, count in self.layers.items())


def network_types(trt: Any, network: Any) -> LayerTypes:
    """Read the type of every layer of an INetworkDefinition.

    trt : the module `tensorrt` or `tensorrt_rtx`.  network : as its parser left it.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    counts: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    faults: list[str] = []
    for layer in layers:
        kind = layer.type.name
        word = _computes_in(layer, maker)
        if word is None or kind in MOVES:
            continue
        counts[word] += 1
        if kind in CONVOLUTIONS:
            flops[word] += _conv_flops(trt, layer)
        if kind in SUMS:
            faults += _norm_faults(layer, word, maker)
    faults += [f"{end.name} is not float32" for end in _ends(network) if WORDS.get(end.dtype.name) != "fp32"]
    return LayerTypes(dict(sorted(counts.items())), dict(sorted(flops.items())), tuple(faults))


def require_types(found: LayerTypes, asked: str, where: str) -> LayerTypes:
    """`found`, or HzError where the layers are not of the precision asked for or break the policy."""
    if found.precision != asked:
        raise HzError(
            f"{where}: asked for {asked}, TensorRT's layers compute in {found.precision} ({found}; "
            f"{share(found.conv_flops, asked):.0%} of the convolutions' arithmetic is {asked}).",
            "TensorRT takes types from the ONNX file: export that again with the precision wanted.",
        )
    if found.faults:
        raise HzError(f"{where}: {'; '.join(found.faults)}.", "Export it again:  hz-export --help")
    return found


def engine_types(trt: Any, logger: Any, engine: bytes) -> dict[str, int]:
    """Layers of a built engine per output type, by TensorRT's inspector; call it only where a driver is.

    Fused layers count once, so these are fewer than the network's. Raises BackendError where TensorRT does
    not take the engine back.
    """
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # built a moment ago by this very process
    opened = runtime.deserialize_cuda_engine(engine)
    if opened is None:
        raise BackendError("TensorRT does not read back the engine that it built.", "Build it again.")
    inspector = opened.create_engine_inspector()
    return inspected_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def inspected_types(text: str) -> dict[str, int]:
    """Count output types in the inspector's JSON (profiling verbosity DETAILED; else there are only names).

    Layers whose types it does not state are not counted.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    counts: Counter[str] = Counter()
    for layer in layers:
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        for output in outputs:
            said = " ".join(str(output.get(key, "")) for key in ("Format/Datatype", "Datatype", "Format"))
            word = next((word for word, pattern in _INSPECTED if pattern.search(said)), None)
            if word:
                counts[word] += 1
    return dict(sorted(counts.items()))


def require_built(inspected: Mapping[str, int], asked: str, where: str) -> None:
    """HzError where an engine's own layers state types, and none is the one asked for."""
    if inspected and asked != "int8" and not inspected.get(asked):  # int8 may live inside fused layers
        held = ", ".join(f"{count} {word}" for word, count in inspected.items())
        raise HzError(
            f"{where}: asked for {asked}, but none of the engine's layers computes in it ({held}).",
            "Report this with your TensorRT version; run its ONNX file meanwhile:  --backend onnxruntime-cpu",
        )


def _computes_in(layer: Any, maker: Mapping[str, Any]) -> str | None:
    """The type of a layer's outputs, or int8 where it reads quantized values and weights."""
    weighted = layer.type.name in (*CONVOLUTIONS, "MATRIX_MULTIPLY") and layer.num_inputs >= 2
    if weighted and all(_dequantized(layer.get_input(i), maker) for i in range(2)):
        return "int8"
    words = {WORDS.get(layer.get_output(i).dtype.name) for i in range(layer.num_outputs)}
    return words.pop() if len(words) == 1 else "mixed"


def _dequantized(tensor: Any, maker: Mapping[str, Any]) -> bool:
    made_by = maker.get(tensor.name) if tensor is not None else None
    return made_by is not None and made_by.type.name == "DEQUANTIZE"


def _norm_faults(layer: Any, word: str, maker: Mapping[str, Any]) -> Iterator[str]:
    if word != "fp32":
        yield f"norm {layer.name} computes in {word}"
    if any(_dequantized(layer.get_input(i), maker) for i in range(layer.num_inputs)):
        yield f"norm {layer.name} reads quantized values"


def _conv_flops(trt: Any, layer: Any) -> int:
    """Two per weight and position: output voxels of a convolution, input voxels of a deconvolution."""
    transposed = layer.type.name == "DECONVOLUTION"
    layer.__class__ = trt.IDeconvolutionLayer if transposed else trt.IConvolutionLayer
    read, made = layer.get_input(0), layer.get_output(0)
    weights = read.shape[1] * layer.num_output_maps * prod(layer.kernel_size_nd) // layer.num_groups
    flops: int = 2 * weights * prod((read if transposed else made).shape[2:])
    return flops


def _ends(network: Any) -> Iterator[Any]:
    yield from (network.get_input(i) for i in range(network.num_inputs))
    yield from (network.get_output(i) for i in range(network.num_outputs))
