"""The whole path on a CUDA machine: engines, PyTorch beside them, parity, and one JSON document.

    python benchmarks/gpu_check.py [--bundle NAME.hz] [--checkpoint FILE] [--volumes FILE.npz] [--out FILE]

Installs nothing: what is importable is used, what is not is named. On the bundle's harmonizer, at every
batch X PyTorch float32 on the CPU, with the same weights and volumes. Every section stands alone: one that
fails is recorded in its own words and the rest goes on; a native engine is first tried in a process of its
own, so that one that takes its process down is recorded too.

Needs torch, onnx and numpy, and from hz what imports nothing else (no nibabel, isal, click). Volumes: an
array (n, D, H, W), float32 in [0, 1], prepared by the bundle's recipe, in --volumes; else made up, which the
result says ("simulated"). Weights: of the bundle's ONNX file, or of the checkpoint that it was exported from.
Without a CUDA GPU it prints a document that says so. --dry runs the same sections once on the CPU.
--out is written anew after every section, "complete" last: what a killed run had found is kept.
Exit code 1 where there was something to run on and nothing could be timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "calibration", "train", "export")]

import numpy as np  # noqa: E402

from gpu_engines import (  # noqa: E402
    NATIVE,
    SEED,
    Sections,
    load_network,
    open_native,
    open_onnxruntime,
    sha256,
    tried,
)
from gpu_native import native_output  # noqa: E402
from hz_export.bench import (  # noqa: E402
    F32,
    MATMUL,
    OpenCandidate,
    Plan,
    Timing,
    candidate_row,
    ratio,
    tiled,
    time_batch,
    timing_row,
)
from hz_export.differences import TOLERANCES, checks, measured  # noqa: E402
from hz_export.machine import Matmul, describe_machine, gpu, matmul  # noqa: E402
from hz_export.synthetic import SOURCE, synthetic_heads  # noqa: E402
from hz_export.torch_baselines import EAGER_HALF, torch_candidates  # noqa: E402

BRAIN_ABOVE = 0.02  # as in hz_export.parity, which needs a reader of scans
WANTED = 2.0  # our best engine over eager PyTorch in float16


@dataclass
class Subject:
    """What is checked.

    network : the harmonizer in torch, float32, on the CPU.  files : precision -> ONNX bytes.
    flops : of its convolutions, one volume.  volumes : (n, D, H, W).  expected : the network's answers.
    """

    network: Any
    files: dict[str, bytes]
    flops: int | None
    volumes: F32
    expected: F32


def main() -> None:
    args = arguments()
    document = check(args)
    document["complete"] = True
    print(keep(document, args.out), end="")
    tried = document["cuda"] or document["dry"]
    sys.exit(1 if tried and not any(map(timed_once, document.get("contenders", ()))) else 0)


def keep(document: Mapping[str, Any], out: Path | None) -> str:
    """The document as text, also written to the file that was asked for."""
    from hz_runtime.io.atomic import atomic_write_bytes

    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if out is not None:
        atomic_write_bytes(out, text.encode())
    return text


def timed_once(candidate: Mapping[str, Any]) -> bool:
    return any("median_ms" in row for scopes in candidate["batches"].values() for row in scopes.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/hz_runtime/models/reference.hz")
    parser.add_argument("--checkpoint", type=Path, help="harmonizer.safetensors that the bundle was made of")
    parser.add_argument("--volumes", type=Path, help=".npz with one array (n, D, H, W), float32 in [0, 1]")
    parser.add_argument("--batch", default="1,4,16", help="volumes a call, with commas")
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--engines", type=Path, help="folder of built engines; a temporary one if left out")
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    parser.add_argument("--dry", action="store_true", help="every section once, on the CPU")
    return parser.parse_args()


def check(args: argparse.Namespace) -> dict[str, Any]:
    """The document; never raises for what a machine does not have."""
    found = gpu()
    document: dict[str, Any] = {
        "benchmark": "gpu_check",
        "machine": describe_machine(),
        "cuda": found is not None,
        "dry": args.dry,
        "complete": False,
    }
    sections = Sections(after=lambda: keep(document, args.out))
    document["sections"] = sections.done
    if found is None and not args.dry:
        document["note"] = "no NVIDIA GPU or no driver on this machine: nothing was run, every figure is owed"
        return document
    device = "cpu" if args.dry else "cuda"
    with sections("subject") as notes:
        subject = make_subject(args, document, notes)
    if not sections.done["subject"]["ok"]:
        return document
    with tempfile.TemporaryDirectory() as temporary:
        args.engines = args.engines or Path(temporary)
        candidates = open_all(subject, device, args, sections)
        try:
            time_all(candidates, subject, device, args, document, sections)
            with sections("native resolution"):
                document["native_resolution"] = native_output(
                    subject.network, subject.volumes[0], device, candidates, 1 if args.dry else args.repeat
                )
        finally:
            for candidate in candidates:
                candidate.close()
    return document


def make_subject(args: argparse.Namespace, document: dict[str, Any], notes: dict[str, Any]) -> Subject:
    """Weights, ONNX files, volumes and the reference's answers; says in the document what they are."""
    batches = batch_sizes(args)
    volumes, document["volumes"] = load_volumes(args.volumes, max(batches))
    network, files, flops, document["weights"] = load_network(args, notes)
    document["model"] = {
        "role": "harmonizer",
        "grid": list(volumes.shape[1:]),
        "conv_flops": flops,
        "files": {precision: sha256(data) for precision, data in files.items()},
    }
    return Subject(network, files, flops, volumes, in_torch(network, volumes))


def batch_sizes(args: argparse.Namespace) -> list[int]:
    return [1] if args.dry else [int(part) for part in args.batch.split(",")]


def load_volumes(path: Path | None, most: int) -> tuple[F32, dict[str, Any]]:
    """Up to `most` volumes, (n, D, H, W) float32, and what they are."""
    if path is None:
        return synthetic_heads(most, seed=SEED), {
            "n": most,
            "source": SOURCE,
            "seed": SEED,
            "simulated": True,
        }
    with np.load(path, allow_pickle=False) as held:
        found = np.asarray(held["volumes" if "volumes" in held.files else held.files[0]], np.float32)
    if found.ndim != 4 or not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
        raise ValueError(f"{path.name} holds {found.shape}, wanted (n, D, H, W) in [0, 1]")
    about = {"source": path.name, "sha256": sha256(path.read_bytes()), "simulated": False}
    return found[:most], {"n": min(most, len(found)), **about}


def in_torch(network: Any, volumes: F32) -> F32:
    """The reference: torch float32 on the CPU, one volume at a time; (n, D, H, W)."""
    import torch

    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(v)[None, None]).numpy()[:, 0] for v in volumes])


def open_all(
    subject: Subject, device: str, args: argparse.Namespace, sections: Sections
) -> list[OpenCandidate]:
    """Every candidate that this machine can open, one section each."""
    opened: list[OpenCandidate] = []

    def enter(name: str, open_it: Callable[[], OpenCandidate]) -> None:
        with sections(f"open {name}"):
            opened.append(open_it())

    for candidate in torch_candidates(subject.network, device, 1 if args.dry else None):
        if not (args.dry and "compile" in candidate.name):  # a compiler's minutes show nothing on a CPU
            enter(candidate.name, candidate.open)
    precisions = ("fp32",) if device == "cpu" else ("fp16", "fp32")
    if tried("onnxruntime", args, sections):
        for precision in precisions:
            enter(f"onnxruntime {precision}", lambda p=precision: open_onnxruntime(subject.files, device, p))
    for flavour in NATIVE:
        if tried(flavour, args, sections) and device == "cuda":
            for cuda_graphs in (False, True):
                enter(
                    f"{flavour} fp16{' graphs' if cuda_graphs else ''}",
                    lambda f=flavour, g=cuda_graphs: open_native(f, subject.files["fp16"], args, g),
                )
    return opened


def time_all(
    candidates: list[OpenCandidate],
    subject: Subject,
    device: str,
    args: argparse.Namespace,
    document: dict[str, Any],
    sections: Sections,
) -> None:
    """Parity and times of every candidate at every batch size, written into the document."""
    peaks: dict[str, Matmul] = {}
    for precision in ("fp32", "tf32", "fp16") if device == "cuda" else ("fp32",):
        with sections(f"peak {precision}"):
            peaks[precision] = matmul(device, precision, 1 if args.dry else None)
    rows = {c.name: {**candidate_row(c), "parity": {}} for c in candidates}
    document["contenders"] = list(rows.values())
    document["peak"], document["over_eager_fp16"] = {}, {}
    plan = Plan(1, 1, 1, pause=0) if args.dry else Plan(args.repeat, args.warmup, most_seconds=60)
    for batch in batch_sizes(args):
        for candidate in candidates:
            with sections(f"parity {candidate.name}, batch {batch}"):
                rows[candidate.name]["parity"][str(batch)] = parity_of(candidate, subject, batch)
        with sections(f"times, batch {batch}") as notes:
            calls = {precision: peak.call for precision, peak in peaks.items()}
            timed = time_batch(candidates, tiled(subject.volumes, batch), plan, calls)
            note_peaks(document["peak"], peaks, timed)
            write_times(rows, document["peak"], timed, batch, subject.flops)
            document["over_eager_fp16"][str(batch)] = over_eager(candidates, timed)
            failed = [f"{' '.join(way)}: {timing.error}" for way, timing in timed.items() if timing.error]
            if failed or not candidates:
                notes["error"] = "; ".join(failed) or "nothing could be opened"
    document["met"] = {
        f"our best engine at least {WANTED} times eager PyTorch in float16, batch {batch}": found >= WANTED
        for batch, scopes in document["over_eager_fp16"].items()
        if (found := scopes.get("model", {}).get("ratio")) is not None
    }


def parity_of(candidate: OpenCandidate, subject: Subject, batch: int) -> dict[str, Any]:
    """All volumes through a candidate, `batch` a call, against the reference; volume by volume at batch 1."""
    volumes = subject.volumes
    parts = []
    for start in range(0, len(volumes), batch):
        some = volumes[start : start + batch]
        parts.append(candidate.answer(tiled(some, batch))[: len(some), 0])
    row = measured(np.concatenate(parts), subject.expected, volumes > BRAIN_ABOVE)
    # The bundle's float32 file may store half weights; TF32 has the bits of float16.
    kind = {"fp32": "fp32, half weights", "tf32": "fp16"}.get(candidate.precision, candidate.precision)
    past = [str(one) for one in checks(row, TOLERANCES[kind]) if one.past]
    if batch > 1:
        del row["per_volume"]
    return {**row, "kind": kind, "past": past}


def note_peaks(
    found: dict[str, Any], peaks: Mapping[str, Matmul], timed: Mapping[tuple[str, str], Timing]
) -> None:
    """Keep the best rate of each multiplication over all rounds so far."""
    for precision, peak in peaks.items():
        timing = timed[MATMUL, precision]
        if timing.error is None:
            rate = max(peak.flops / min(timing.samples), found.get(precision, {}).get("flops_per_s", 0.0))
            found[precision] = {"flops_per_s": rate, "how": peak.how}


def write_times(
    rows: Mapping[str, dict[str, Any]],
    peaks: Mapping[str, Any],
    timed: Mapping[tuple[str, str], Timing],
    batch: int,
    flops: int | None,
) -> None:
    for (name, scope), timing in timed.items():
        if name != MATMUL:
            peak = peaks.get(rows[name]["precision"], {}).get("flops_per_s")
            baseline = timed.get(("torch eager fp32", scope))
            rows[name]["batches"].setdefault(str(batch), {})[scope] = timing_row(
                timing, batch, flops, peak, baseline
            )


def over_eager(
    candidates: list[OpenCandidate], timed: Mapping[tuple[str, str], Timing]
) -> dict[str, dict[str, Any]]:
    """By scope: our fastest engine, PyTorch's fastest eager way in float16, and the ratio in turns."""
    ours = [c.name for c in candidates if not c.name.startswith("torch")]
    found = {}
    for scope in ("model", "transfers"):
        sides = []
        for names in (ours, EAGER_HALF):
            ran = {n: t for n in names if (t := timed.get((n, scope))) is not None and t.error is None}
            sides.append(min(ran, key=lambda name: ran[name].median) if ran else None)
        best, eager = sides
        if best is not None and eager is not None:
            times = ratio(timed[eager, scope], timed[best, scope])
            found[scope] = {"ours": best, "eager": eager, "ratio": round(times, 4)}
    return found


if __name__ == "__main__":
    main()
