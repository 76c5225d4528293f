"""How fast a bundle runs on this machine: every engine, PyTorch beside it, and whole runs, in turns.

A GPU and a CPU are timed apart: a CPU's seconds would leave a GPU idle
between its milliseconds, and a ratio of the two says what one knew before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hz_export import torch_baselines
from hz_export.bench import (
    F32,
    MATMUL,
    Candidate,
    OpenCandidate,
    Plan,
    Timing,
    candidate_row,
    interleaved_timings,
    opened,
    tiled,
    time_batch,
    timing_row,
)
from hz_export.candidates import engine_candidates, entries
from hz_export.engine import builder
from hz_export.machine import Matmul, describe_machine, gpu, matmul
from hz_export.synthetic import SOURCE, synthetic_heads
from hz_runtime.cpus import usable_cpus
from hz_runtime.errors import HzError, UsageError
from hz_runtime.inference.slice_wise import SLICE_RANK, axial_slices

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle

# What others are compared with: the first of these that takes part, else the first candidate.
BASELINES = {"cuda": ("torch eager fp16", "torch eager fp32"), "cpu": ("torch eager fp32",)}
PEAKS = {"cuda": ("fp32", "tf32", "fp16"), "cpu": ("fp32",)}
DISTINCT_VOLUMES = 4  # a batch repeats them: what a network computes does not depend on it
Say = Callable[[str], None]


@dataclass(frozen=True)
class SpeedOptions:
    """What to time.

    role : "harmonizer" or "age".  batches : volumes a call.  only : keep candidates whose names hold one of
    these; none for all.  checkpoint : of `role`, for PyTorch's own ways; without it they are left out.
    weights : in its place of an imported bundle, the files of its authors: their network in PyTorch, whole
    volumes at a time.
    scans : files and folders, for whole runs and as the volumes; without them volumes are made up.
    """

    role: str = "harmonizer"
    to: str | None = None
    batches: tuple[int, ...] = (1, 4, 16)
    plan: Plan = field(default_factory=Plan)
    threads: int | None = None
    only: tuple[str, ...] = ()
    checkpoint: Path | None = None
    weights: tuple[Path, ...] = ()
    scans: tuple[Path, ...] = ()


def measure_speed(bundle: Bundle, options: SpeedOptions, say: Say = lambda _: None) -> dict[str, Any]:
    """Time a bundle; the result is plain JSON types and describes itself.

    Raises UsageError where nothing is left to time, or the checkpoint is of another role.
    """
    machine = describe_machine()
    volumes, source = _volumes(bundle, options)
    entry = bundle.model(options.role, to=options.to)
    reads = "slices" if len(entry.inputs[0].shape) == SLICE_RANK else "volumes"
    if reads == "slices":
        volumes = np.concatenate([axial_slices(volume)[:, 0] for volume in volumes])
    flops = conv_flops(bundle, entry.file)
    result: dict[str, Any] = {
        "benchmark": "hz-bench speed",
        "bundle": {"name": bundle.name, "id": bundle.id},
        "model": {
            "role": options.role,
            "reads": reads,  # what a batch is of, and so what times and rates are
            "grid": list(volumes.shape[1:]),
            "conv_flops": flops,
        },
        "volumes": source,
        "threads": options.threads or usable_cpus(),
        "plan": asdict(options.plan),
        "contenders": [],
        "left_out": [],
        "peak": {},
        "baseline": {},
    }
    for device, candidates in _candidates(bundle, options, result["left_out"]).items():
        with opened(candidates, result["left_out"], say) as here:
            if here:
                _time_device(device, here, volumes, flops, options, result, say)
    if not result["contenders"]:
        left = "; ".join(f"{item['name']}: {item['why']}" for item in result["left_out"]) or "none matches"
        raise UsageError(f"nothing to time ({left}).", "Install an engine:  pip install 'hz-mri[cpu]'")
    if options.scans:
        result["end_to_end"] = end_to_end(bundle, options, _engine_names(result["contenders"]), say)
    result["machine"] = machine
    return result


def conv_flops(bundle: Bundle, file: str) -> int | None:
    """Floating-point operations of a file's convolutions for one volume, as its export counted them."""
    raw = next(model for model in bundle.raw["models"] if model["file"] == file)
    counted = raw.get("achieved", {}).get("conv_flops")
    return int(counted) if counted else None


def _volumes(bundle: Bundle, options: SpeedOptions) -> tuple[F32, dict[str, Any]]:
    from hz_runtime.model_space.recipe import Recipe

    recipe = Recipe.from_dict(dict(bundle.recipe))
    if not options.scans:
        return synthetic_heads(DISTINCT_VOLUMES, recipe.grid_shape), {"n": DISTINCT_VOLUMES, "source": SOURCE}
    from hz_export.parity import scan_volumes

    found = scan_volumes(options.scans, recipe, DISTINCT_VOLUMES)
    return found.grids, found.to_dict(len(found.grids))


def _candidates(
    bundle: Bundle, options: SpeedOptions, left_out: list[dict[str, str]]
) -> dict[str, list[Candidate]]:
    """By device, PyTorch first, so that they are the baseline."""
    from hz_runtime.backends.registry import ENGINES

    network = _network(bundle, options, left_out)
    found: dict[str, list[Candidate]] = {}
    for device in ("cuda", "cpu"):
        names = [engine.name for engine in ENGINES if engine.device == device]
        engines = engine_candidates(bundle, options.role, options.to, options.threads, names) if names else []
        here = device == "cpu" or gpu() is not None
        torch = torch_baselines.torch_candidates(network, device, options.threads) if network and here else []
        kept = [c for c in (*torch, *engines) if not options.only or any(o in c.name for o in options.only)]
        if not here:  # one line for all of them says enough
            kept = []
            left_out.append(
                {
                    "name": ", ".join((*names, *torch_baselines.gpu_only("cpu"))),
                    "why": "no NVIDIA GPU or no driver",
                }
            )
        found[device] = kept
    return found


def _network(bundle: Bundle, options: SpeedOptions, left_out: list[dict[str, str]]) -> Any:
    """The network of the checkpoint or the authors' files, or None, with the reason in `left_out`."""
    published = bundle.raw.get("published", {}).get(options.role)
    if published and str(published["files"][0]["name"]).endswith(".h5"):  # its authors run it in Keras
        left_out.append({"name": "tensorflow", "why": "hz never runs it; torch stands in (--weights)"})
    if options.weights:
        from hz_export.imported.importing import as_published

        return as_published(bundle, options.role, options.weights)
    if options.checkpoint is None:
        wanted = "--weights" if published else "--checkpoint"
        left_out.append({"name": "torch", "why": f"no {wanted} was given"})
        return None
    from hz_export.to_onnx import read_checkpoint

    checkpoint = read_checkpoint(options.checkpoint)
    if checkpoint.role != options.role:
        raise UsageError(
            f"{checkpoint.file} holds a {checkpoint.role}, the {options.role} is to be timed.",
            f"Give the checkpoint of the {options.role}, or --role {checkpoint.role}.",
        )
    made_from = {entry.provenance.get("checkpoint_sha256") for entry in entries(bundle, options.role)}
    if checkpoint.sha256 not in made_from:
        raise UsageError(
            f"{bundle.path.name} was not exported from {checkpoint.file}.",
            "Give the checkpoint that the bundle's manifest names.",
        )
    return checkpoint.network


def _time_device(
    device: str,
    candidates: Sequence[OpenCandidate],
    volumes: F32,
    flops: int | None,
    options: SpeedOptions,
    result: dict[str, Any],
    say: Say,
) -> None:
    """Time the candidates of one device in turns at every batch size, and write that into `result`."""
    peaks = _peaks(device, options, result)
    names = [candidate.name for candidate in candidates]
    baseline = next((name for name in BASELINES[device] if name in names), names[0])
    result["baseline"][device] = baseline
    rows = {c.name: candidate_row(c) for c in candidates}
    best: dict[str, float] = {}
    timings: dict[int, dict[tuple[str, str], Timing]] = {}
    for batch in options.batches:
        say(f"{device}, batch {batch}: {', '.join(names)}")
        calls = {precision: peak.call for precision, peak in peaks.items()}
        timings[batch] = time_batch(candidates, tiled(volumes, batch), options.plan, calls)
        for precision, peak in peaks.items():
            timing = timings[batch][MATMUL, precision]
            if timing.error is None:
                best[precision] = max(best.get(precision, 0.0), peak.flops / min(timing.samples))
    for precision, rate in best.items():
        result["peak"].setdefault(device, {})[precision] = {"flops_per_s": rate, "how": peaks[precision].how}
    for batch, timed in timings.items():
        for (name, scope), timing in timed.items():
            if name != MATMUL:
                baseline_timing = timed.get((baseline, scope)) or timed.get((baseline, "model"))
                row = timing_row(timing, batch, flops, best.get(rows[name]["precision"]), baseline_timing)
                rows[name]["batches"].setdefault(str(batch), {})[scope] = row
    result["contenders"] += rows.values()


def _peaks(device: str, options: SpeedOptions, result: dict[str, Any]) -> dict[str, Matmul]:
    found = {}
    for precision in PEAKS[device]:
        try:
            found[precision] = matmul(device, precision, options.threads)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            result["left_out"].append({"name": f"peak of {precision} on {device}", "why": why})
    return found


def _engine_names(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """The engines among candidates' names ("ENGINE PRECISION"), in order, each once."""
    from hz_runtime.backends.registry import ENGINES

    known = {engine.name for engine in ENGINES}
    return list(dict.fromkeys(n for c in candidates if (n := str(c["name"]).split()[0]) in known))


def end_to_end(bundle: Bundle, options: SpeedOptions, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Whole runs of the real pipeline over the scans given: read, prepare, infer, write; opening included.

    Runs in this process and without figures; the precision is the engine's own choice.
    """
    from hz_runtime.batch.run import run_batch
    from hz_runtime.batch.run_options import RunOptions

    reports: dict[str, Mapping[str, Any]] = {}
    plan = Plan(repeats=min(3, options.plan.repeats), warmup=1, least=1, most_seconds=600.0)
    with tempfile.TemporaryDirectory() as folder:
        turns = iter(range(1_000_000))

        def run_on(name: str) -> Callable[[], object]:
            chosen = RunOptions(
                require=name, to=options.to, threads=options.threads, report=False, build=builder()
            )

            def call() -> object:
                report = run_batch(options.scans, bundle, Path(folder) / str(next(turns)), chosen)
                failed = report.run["counts"].get("failed", 0)
                if failed:
                    raise HzError(f"{failed} of {len(report.scans)} scans failed.")
                reports[name] = report.run
                return report

            return call

        say(f"whole runs: {', '.join(names)}")
        timed = interleaved_timings({name: run_on(name) for name in names}, plan)
    done = {}
    for name, timing in timed.items():
        scans = len(reports[name]["scans"]) if name in reports else 1
        done[name] = timing.to_dict(scans)
        if timing.error is None:
            ran = reports[name]
            stages = {stage: value["median_s"] for stage, value in ran["timings"]["stages"].items()}
            done[name].update(scans=scans, precision=ran["backend"]["precision"], median_stage_s=stages)
    return done
