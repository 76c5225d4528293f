"""What preparing raw heads costs, what the gates measure on them, and how well the template's mask fits.

    python benchmarks/raw_head.py HEAD... [--reference HEAD=STRIPPED]... [--dof 6] [--workers 2]

Every HEAD is prepared alone: wall time by step and every gate's number. With --workers above 1 the same
heads are prepared once more, that many at a time, for the gain in throughput. --reference compares the
template's mask of HEAD with what is not air in STRIPPED, the same scan skull-stripped elsewhere (a mask will
do), on its own voxels: Dice, and cm3 of both. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="*", type=Path)
    parser.add_argument("--reference", action="append", default=[], metavar="HEAD=STRIPPED")
    parser.add_argument("--dof", type=int, choices=[6, 12], default=6)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    pairs = [tuple(map(Path, text.split("=", 1))) for text in given.reference]
    alone = [prepared(path, given.dof) for path in given.heads]
    result: dict[str, Any] = {"heads": alone, "dof": given.dof}
    if alone:
        result["seconds_median"] = round(sorted(h["seconds"]["all"] for h in alone)[len(alone) // 2], 2)
    if given.workers > 1 and given.heads:
        started = time.perf_counter()
        with ThreadPoolExecutor(given.workers) as pool:
            list(pool.map(lambda path: prepared(path, given.dof), given.heads))
        batch = time.perf_counter() - started
        total = sum(head["seconds"]["all"] for head in alone)
        result["batch"] = {"workers": given.workers, "gain": round(total / batch, 2)}
        result["batch"]["heads_a_minute"] = round(60 * len(given.heads) / batch, 2)
    result["template_mask"] = [fitted(head, reference) for head, reference in pairs]
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["peak_rss_mb"] = {"python": peaks[0] // 1024, "niimath": peaks[1] // 1024}
    result["machine"] = describe_machine()
    print(json.dumps(result, indent=2))


def prepared(path: Path, dof: Any) -> dict[str, Any]:
    """One head: seconds by step, and the gates' numbers or the reason of a refusal."""
    from hz_runtime.errors import ScanError
    from hz_runtime.preparation.gates import Refused
    from hz_runtime.preparation.steps import prepare_head
    from hz_runtime.preparation.template import mni152
    from hz_runtime.volume import read_volume

    template = mni152()
    started = time.perf_counter()
    told: dict[str, Any] = {"head": path.name}
    seconds: dict[str, float] = {}
    try:
        volume = read_volume(path)
        seconds["read"] = time.perf_counter() - started
        head = prepare_head(volume, template, dof=dof)
        seconds.update(head.seconds)
        told.update(brain_mask=head.how, gates={v.gate: float(f"{v.value:.4g}") for v in head.verdicts})
    except ScanError as error:
        verdicts = error.verdicts if isinstance(error, Refused) else ()
        told.update(refused=error.message, gates={v.gate: float(f"{v.value:.4g}") for v in verdicts})
    seconds["all"] = time.perf_counter() - started
    return {**told, "seconds": {step: round(took, 2) for step, took in seconds.items()}}


def fitted(head: Path, reference: Path) -> dict[str, Any]:
    """Dice of the template's mask of a head with the head stripped elsewhere."""
    import numpy as np

    from hz_runtime.geometry import spacing_of
    from hz_runtime.grid import resample
    from hz_runtime.preparation.mask import carried
    from hz_runtime.preparation.registration import registered
    from hz_runtime.preparation.template import mni152
    from hz_runtime.volume import read_volume

    scan, stripped = read_volume(head), read_volume(reference)
    pose, _ = registered(scan.data, scan.affine, mni152())
    mask = carried(scan.data, scan.affine, pose, mni152())
    truth = stripped.data != np.median(stripped.data[:, :, 0])
    truth = resample(truth.astype(np.float32), stripped.affine, scan.shape, scan.affine) > 0.5
    voxel = float(spacing_of(scan.affine).prod()) / 1000
    return {
        "head": head.name,
        "dice": round(2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()), 4),
        "cm3": round(float(mask.sum()) * voxel, 1),
        "reference_cm3": round(float(truth.sum()) * voxel, 1),
    }


if __name__ == "__main__":
    main()
