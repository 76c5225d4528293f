"""What an INT8 file of the harmonizer that onnxruntime fuses would cost and gain on this CPU.

    python benchmarks/int8_onnxruntime.py BRAIN... [--calibrate 5] [--bundle NAME.hz]

The bundle's float32 harmonizer is quantized by onnxruntime's own tool in the form that its CPU fuses: uint8
activations on both sides of every Conv, int8 weights by channel. Ranges come from the first BRAINs, so many
as --calibrate says; time and error from all others. Each variant leaves other convolutions in float32; that
weights of 7 bits are tried is for CPUs without VNNI, whose products of 8 bits saturate. CPU seconds are those
of one thread over those of float32; the error is the mean difference in the brain in % of its mean. fused
counts the convolutions that the optimized graph has in INT8. Prints JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "export")]
# (name, bits of the weights, convolutions left in float32: of the first, of the last)
VARIANTS = (
    ("all", 8, 0, 0),
    ("all", 7, 0, 0),
    ("inner", 8, 1, 1),
    ("inner", 7, 1, 1),
    ("innermost", 7, 2, 2),
)
MEDIAN_ALLOWED, WORST_ALLOWED = 0.5, 1.0  # % of the brain's mean
BRAIN = 0.02  # intensities above this are brain


class Brains(CalibrationDataReader):  # type: ignore[misc]
    """Scans on the network's grid, one after the other, as onnxruntime's tool wants them."""

    def __init__(self, name: str, grids: Sequence[Any]) -> None:
        self._left = iter([{name: grid} for grid in grids])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("brains", nargs="+", type=Path)
    parser.add_argument("--calibrate", type=int, default=5)
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    given = parser.parse_args()
    machine = describe_machine()
    grids, model = on_grid(given.brains, given.bundle)
    with tempfile.TemporaryDirectory() as name:
        rows = compared(grids[: given.calibrate], grids[given.calibrate :], model, Path(name))
    print(
        json.dumps({"held_out": len(grids) - given.calibrate, "variants": rows, "machine": machine}, indent=2)
    )


def on_grid(brains: Sequence[Path], bundle: Path) -> tuple[list[Any], bytes]:
    """(each brain on the network's grid, (1, 1, D, H, W); the float32 harmonizer's bytes)."""
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.recipe import Recipe, to_model_space

    loaded = load_bundle(bundle)
    recipe = Recipe.from_dict(dict(loaded.recipe))
    grids = [to_model_space(read_volume(path), recipe).grid[None, None] for path in brains]
    return grids, loaded.read(loaded.model("harmonizer", precision="fp32"))


def compared(
    calibration: Sequence[Any], held_out: Sequence[Any], model: bytes, work: Path
) -> list[dict[str, Any]]:
    plain = work / "float32.onnx"
    plain.write_bytes(model)
    graph = onnx.load_from_string(model).graph
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    wanted, reference_s = answers(plain, held_out)
    rows = []
    for name, bits, first, last in VARIANTS:
        quantized, kept = (
            work / "int8.onnx",
            [*convolutions[:first], *convolutions[len(convolutions) - last :]],
        )
        quantize_static(
            str(plain),
            str(quantized),
            Brains(graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=bits == 7,
            nodes_to_exclude=kept,
        )
        found, seconds = answers(quantized, held_out)
        errors = [
            100 * float(np.abs(a - b)[grid > BRAIN].mean() / a[grid > BRAIN].mean())
            for a, b, grid in zip(wanted, found, held_out, strict=True)
        ]
        median, worst = statistics.median(errors), max(errors)
        rows.append(
            {
                "convolutions": name,
                "weight_bits": bits,
                "float32": len(kept),
                "fused": fused(quantized, work),
                "cpu_over_float32": round(seconds / reference_s, 3),
                "error_percent": {"median": round(median, 3), "worst": round(worst, 3)},
                "within_tolerance": median <= MEDIAN_ALLOWED and worst <= WORST_ALLOWED,
            }
        )
    return rows


def answers(model: Path, grids: Sequence[Any]) -> tuple[list[Any], float]:
    """(what the network makes of each, CPU seconds of one thread)."""
    session = opened(model)
    name = session.get_inputs()[0].name
    started = time.process_time()
    found = [session.run(None, {name: grid})[0] for grid in grids]
    return found, time.process_time() - started


def fused(model: Path, work: Path) -> int:
    """Convolutions in INT8 of the graph that onnxruntime's CPU runs."""
    opened(model, work / "optimized.onnx")
    nodes = onnx.load(str(work / "optimized.onnx")).graph.node
    return collections.Counter(node.op_type for node in nodes)["QLinearConv"]


def opened(model: Path, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
