"""Engines of benchmarks/gpu_check.py: the harmonizer's files, and opening them in steps that may fail.

A native engine that fails may take its process down, so its first steps run in a process of their own.
Run as a script, this file is that process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "calibration", "train", "export")]

from hz_export.bench import F32, OpenCandidate, words  # noqa: E402
from hz_export.machine import gpu  # noqa: E402
from hz_export.synthetic import synthetic_heads  # noqa: E402

SEED = 2023
NATIVE = ("tensorrt", "tensorrt_rtx")
PROBE_SECONDS = 300


@dataclass
class Sections:
    """Parts of the check, each "ok" or why not; none takes the others down.

    after : called at the end of each.
    """

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        notes: dict[str, Any] = {"ok": False}
        self.done[name] = notes
        print(f"gpu_check: {name}", file=sys.stderr, flush=True)
        try:
            yield notes
            notes["ok"] = "error" not in notes
        except Exception as error:
            notes["error"] = words(error)
            notes["where"] = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)[-3:]
            ]
        finally:
            self.after()


def load_network(
    args: argparse.Namespace, notes: dict[str, Any]
) -> tuple[Any, dict[str, bytes], int | None, str]:
    """(network, ONNX files by precision, FLOPs, where the weights are from).

    The checkpoint's where it is given and readable; else the bundle's own; else seeded ones, exported here.
    """
    import torch

    from hz_train.volume_cyclegan import Generator
    from weights import load_from_onnx

    files, raw = {}, {}
    try:
        files, raw = bundle_files(args.bundle)
    except Exception as error:
        notes["bundle"] = words(error)
    network = Generator(**raw.get("provenance", {}).get("network", {})).eval()
    flops = raw.get("achieved", {}).get("conv_flops")
    if args.checkpoint is not None:
        try:
            from hz_export.to_onnx import read_checkpoint

            checkpoint = read_checkpoint(args.checkpoint)
            if checkpoint.sha256 == raw.get("provenance", {}).get("checkpoint_sha256"):
                return checkpoint.network, files, flops, "the bundle's checkpoint"
            return (*exported(checkpoint.network), "a checkpoint, exported here")
        except Exception as error:
            notes["checkpoint"] = words(error)
    if files and load_from_onnx(network, files["fp32"]):
        return network, files, flops, "the bundle's own, read back from its ONNX file"
    torch.manual_seed(SEED)
    return (*exported(Generator().eval()), f"untrained, seed {SEED}, exported here")


def bundle_files(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The harmonizer's files by precision, verified, and its manifest entry."""
    from hz_runtime.bundle.store import load_bundle

    bundle = load_bundle(path)
    target = bundle.model("harmonizer").target
    held = [e for e in bundle.models if e.role == "harmonizer" and e.target == target]
    first = bundle.model("harmonizer", precision="fp32").file
    raw = next(model for model in bundle.raw["models"] if model["file"] == first)
    return {entry.precision: bundle.read(entry) for entry in held}, raw


def exported(network: Any) -> tuple[Any, dict[str, bytes], int]:
    """A network as hz-export writes it: float32 and float16 graphs, and the FLOPs of its convolutions."""
    from hz_export.graph_precision import achieved, to_half
    from hz_export.to_onnx import to_onnx

    full = to_onnx(network, "harmonized")
    files = {"fp32": full.SerializeToString(), "fp16": to_half(full).SerializeToString()}
    return network, files, achieved(full).conv_flops


def tried(engine: str, args: argparse.Namespace, sections: Sections) -> bool:
    """Whether an engine went through its first steps in a process of its own; its words are kept."""
    with sections(f"try {engine}") as notes:
        if find_spec(engine) is None:
            notes["error"] = f"{engine} is not installed"
            return False
        command = [sys.executable, __file__, engine, "--bundle", str(args.bundle)]
        command += ["--engines", str(args.engines), *(["--dry"] if args.dry else [])]
        command += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        if ended.stderr.strip():
            notes["said"] = ended.stderr.strip().splitlines()[-12:]
        try:
            notes.update(json.loads(ended.stdout.splitlines()[-1]))
        except (ValueError, IndexError):
            notes["error"] = f"its process ended with {ended.returncode} and no answer"
        if ended.returncode:
            notes.setdefault("error", f"its process ended with {ended.returncode}")
        return "error" not in notes
    return False


def probed(engine: str, args: argparse.Namespace) -> dict[str, Any]:
    """In the child: the first steps of an engine, each with its words; {"steps": ..., "error": if any}.

    What is known is printed after every step: the next one may take the process down.
    """
    steps = Sections()
    _, files, _, _ = load_network(args, {})
    volume = synthetic_heads(1, seed=SEED)[:, None]
    if engine in NATIVE:
        for _ in native_steps(engine, files["fp16"], volume, args, steps):
            print(json.dumps({"steps": steps.done}), flush=True)
    else:
        device, precision = ("cpu", "fp32") if args.dry else ("cuda", "fp16")
        with steps("run"):
            open_onnxruntime(files, device, precision).answer(volume)
    failed = [f"{name}: {step['error']}" for name, step in steps.done.items() if "error" in step]
    return {"steps": steps.done, **({"error": "; ".join(failed)} if failed else {})}


def native_steps(
    flavour: str, model: bytes, volume: F32, args: argparse.Namespace, steps: Sections
) -> Iterator[None]:
    """Build, load and run an engine; where it is not for this GPU, TensorRT's own words about that."""
    from hz_export.engine import build_engine

    with steps("build") as notes:
        options = engine_options(flavour)
        record, _ = build_engine(model, "harmonizer", "fp16", options, cache(args))
        notes.update(version=record.version, capability=record.capability, layers=dict(record.layers))
        notes.update(bytes=record.bytes, sha256=record.sha256)
    yield
    if args.dry or not gpu():
        return
    if not steps.done["build"]["ok"] and flavour == "tensorrt_rtx":
        with steps("load an engine that was built for other GPUs") as notes:
            load_anyway(flavour, model, args, notes)
        yield
        return
    with steps("run"):
        opened = open_native(flavour, model, args)
        opened.answer(volume)
        opened.close()
    yield


def engine_options(flavour: str) -> Any:
    """For this machine's GPU alone where there is one: an engine tuned for it."""
    from hz_export.engine_target import EngineOptions

    here = gpu()
    chip = (here["capability"],) if here else ()
    return EngineOptions(
        flavour=flavour, capability=chip, name="harmonizer.fp16.onnx", version_compatible=False
    )


def cache(args: argparse.Namespace) -> Any:
    from hz_runtime.bundle.engine_cache import EngineCache

    return EngineCache(args.engines)


def load_anyway(flavour: str, model: bytes, args: argparse.Namespace, notes: dict[str, Any]) -> None:
    """Hand TensorRT an engine for the GPUs that it knows, and keep every word that it logs."""
    from importlib import import_module

    from hz_export.engine import build_engine
    from hz_export.engine_target import EngineOptions

    _, data = build_engine(model, "harmonizer", "fp16", EngineOptions(flavour=flavour), cache(args))
    trt = import_module(flavour)
    said = notes["words"] = []

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                said.append(" ".join(message.split()))

    log = Log()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise RuntimeError("; ".join(said) or f"{flavour} loads nothing and says nothing")


def open_native(
    flavour: str, model: bytes, args: argparse.Namespace, cuda_graphs: bool = False
) -> OpenCandidate:
    """The engine of a file, from the folder of engines or built now.  cuda_graphs : replay them."""
    from hz_export.candidates import from_backend
    from hz_export.engine import build_engine
    from hz_runtime.backends.trt import open_engine

    record, data = build_engine(model, "harmonizer", "fp16", engine_options(flavour), cache(args))
    opened = open_engine(data, record, f"{flavour} engine", cuda_graphs=cuda_graphs)
    name = f"{flavour} fp16{' graphs' if cuda_graphs else ''}"
    return from_backend(name, opened, "cuda", record.precision)


def open_onnxruntime(files: Mapping[str, bytes], device: str, precision: str) -> OpenCandidate:
    from hz_export.candidates import from_backend
    from hz_runtime.backends.registry import open_backend

    backend = open_backend("onnxruntime", files[precision], device=device, where=f"{precision} file")
    where = "CUDA" if device == "cuda" else "CPU"
    return from_backend(f"onnxruntime {where} {precision}", backend, device, precision)


def sha256(data: bytes) -> str:
    from hz_runtime.io.atomic import sha256_bytes

    return sha256_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("onnxruntime", *NATIVE))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    print(json.dumps(probed(args.engine, args)))


if __name__ == "__main__":
    main()
