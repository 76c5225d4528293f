"""Published networks: hz against the same network in eager torch behind nibabel, one brain from file to file.

    python benchmarks/imported_networks.py [iguane] [sfcn] [--repeat 3] [--threads 2] [--keep DIR]

With random weights under the published names and shapes. Every run is a process of its own, timed from its
start to its end, the ways in turns, on so many cores. hz writes the volume on the network's grid, as the
authors' script does. `--precision fast` runs what the bundle has evidence for on this machine, else float32.
Wanted: at most .65 of eager torch's time, with `--precision fast` 1/3, and half of its peak memory.

Prints JSON: seconds, CPU seconds and peak bytes of every turn, medians, ratios, machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe_machine
from process_memory import waited_for
from raw_head import ROOMS, ROOT

sys.path[:0] = [str(ROOT / room) for room in (*ROOMS, "tests")]
WANTED = {"hz": 0.65, "hz fast": 1 / 3}
MOST_MEMORY = 0.5
NETWORKS = ("iguane", "sfcn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="where weights and bundles are, or are put")
    given = parser.parse_args()
    if unknown := set(given.networks) - set(NETWORKS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(NETWORKS)}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    with tempfile.TemporaryDirectory() as work:
        kept = given.keep or Path(work)
        kept.mkdir(exist_ok=True)
        # A process counts the most that its parent ever held as its own: this one stays small.
        with multiprocessing.get_context("spawn").Pool(1) as apart:
            scan = apart.apply(prepared_brain, (Path(work) / "brain.nii.gz",))
            made = {name: apart.apply(bundle_of, (name, scan, kept)) for name in given.networks}
        rows = {
            name: measured(name, *made[name], scan, Path(work), given.repeat, given.threads)
            for name in given.networks
        }
    print(json.dumps({"networks": rows, "threads": given.threads, "machine": describe_machine()}, indent=2))


def prepared_brain(path: Path) -> Path:
    """The MNI152 brain that ships with hz on FSL's grid of 1 mm, in the order in which FSL stores it."""
    import nibabel as nib

    from hz_export.imported.iguane import NETWORK
    from hz_runtime.model_space.resample import resample
    from hz_runtime.preparation.template import mni152_volume

    volume, recipe = mni152_volume(), NETWORK.recipe
    data = resample(volume.data, volume.affine, recipe.template_shape, recipe.field_affine)
    nib.save(nib.Nifti1Image(np.rint(data * 20).astype(np.int16), recipe.field_affine), path)
    return path


def weights_of(name: str, folder: Path) -> Path:
    """A file of random weights as the authors store theirs."""
    import torch

    from eager_networks import Sfcn
    from hz_export.imported.iguane import LEVELS
    from small_published import iguane_layers, write_keras

    if name == "iguane":
        path = folder / "iguane_weights.h5"
        return path if path.is_file() else write_keras(path, iguane_layers(LEVELS))
    path = folder / "run_20190719_00_epoch_best_mae.p"
    if not path.is_file():
        torch.manual_seed(0)
        torch.save(torch.nn.DataParallel(Sfcn()).state_dict(), path)
    return path


def bundle_of(name: str, scan: Path, folder: Path) -> tuple[Path, Path]:
    """(weights, bundle), which are made where they are not there."""
    from hz_export.export_options import ExportOptions
    from hz_export.imported.importing import import_network
    from hz_export.imported.table import importable

    weights, path = weights_of(name, folder), folder / f"{name}.hz"
    if not path.exists():
        wide = {"mean": 1e-2, "p999": 1e-1, "years": 1.0}  # of random weights nothing is published
        options = ExportOptions(scans=(scan,), tolerance=wide)
        import_network(
            importable(name), [weights], path, options, say=lambda line: print(line, file=sys.stderr)
        )
    return weights, path


def measured(
    name: str, weights: Path, bundle: Path, scan: Path, work: Path, repeat: int, threads: int
) -> dict[str, Any]:
    eager = [sys.executable, str(ROOT / "benchmarks" / "eager_networks.py"), name, str(weights), str(scan)]
    hz = [
        sys.executable,
        "-m",
        "hz_cli.run",
        str(scan),
        "--model",
        str(bundle),
        "--space",
        "model",
        "--quiet",
    ]
    ways: dict[str, Sequence[str]] = {
        "eager torch": [*eager, "OUT", "--threads", str(threads)],
        "hz": [*hz, "--threads", str(threads), "--out", "OUT"],
        "hz fast": [*hz, "--threads", str(threads), "--precision", "fast", "--out", "OUT"],
    }
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeat):
        for way, words in ways.items():
            out = work / ("out.nii.gz" if way == "eager torch" else "out")
            turns[way].append(once([str(out) if word == "OUT" else word for word in words]))
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    median = {
        way: {key: statistics.median(turn[key] for turn in found) for key in found[0]}
        for way, found in turns.items()
    }
    ratios = {
        way: {key: round(median[way][key] / median["eager torch"][key], 3) for key in median[way]}
        for way in WANTED
    }
    met = {f"{way}: time": ratios[way]["seconds"] <= most for way, most in WANTED.items()}
    met |= {f"{way}: memory": ratios[way]["peak_bytes"] <= MOST_MEMORY for way in WANTED}
    return {"turns": turns, "median": median, "of eager torch": ratios, "met": met}


def once(words: Sequence[str]) -> dict[str, float]:
    """One process: seconds by the clock, of the CPU, and the most bytes it held."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)}
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(variable, None)  # what each way sets is part of what is measured
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(list(words), env=env, stdout=said, stderr=said)
        usage, peak = waited_for(process)
        took = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words[:4])}: {said.read().decode()[-2000:]}")
    return {
        "seconds": round(took, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": peak,
    }


if __name__ == "__main__":
    main()
