"""How far the template's brain mask, which needs no weights, agrees with the network's on real whole heads.

    python benchmarks/brain_mask.py HEAD... [--masks BUNDLE]

Every HEAD gets both masks on its own voxels, as hz-prepare makes them: the template's through the affine
registration and refined by intensity, and deepbet's from the bundle that `hz-export brain-mask` writes.
Prints JSON: Dice, cm3 and seconds a head, and their medians. A head that registration does not capture is
refused by a gate before its template mask is used; it is listed with its similarity and not in the medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from machine import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", type=Path)
    parser.add_argument("--masks", type=Path, help="bundle with the networks; default: the user's own")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    import numpy as np

    from hz_runtime.preparation.network_mask import find_mask_network

    network = find_mask_network(given.masks, threads=given.threads, needed=True)
    heads = [compared(path, network, given.threads) for path in given.heads]
    counted = [head for head in heads if head["captured"]]
    result: dict[str, Any] = {"n": len(counted), "threads": given.threads, "heads": heads}
    for name in ("dice", "template_seconds", "network_seconds"):
        result[f"{name}_median"] = round(float(np.median([head[name] for head in counted])), 4)
    result["dice_least"] = min(head["dice"] for head in counted)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["peak_rss_mb"] = {"python": peaks[0] // 1024, "niimath": peaks[1] // 1024}
    result["machine"] = describe_machine()
    print(json.dumps(result, indent=2))


def compared(path: Path, network: Any, threads: int) -> dict[str, Any]:
    """One head: both masks' volumes, their Dice, wall seconds of each; registration is the template's."""
    from hz_runtime.io.geometry import spacing_of
    from hz_runtime.io.volume import read_volume
    from hz_runtime.preparation.gates import LEAST_SIMILARITY
    from hz_runtime.preparation.mask import propagated_mask
    from hz_runtime.preparation.registration import registered
    from hz_runtime.preparation.template import mni152

    scan, template = read_volume(path), mni152()
    started = time.perf_counter()
    pose, similarity, _ = registered(scan.data, scan.affine, template, threads)
    by_template = propagated_mask(scan.data, scan.affine, pose, template)
    between = time.perf_counter()
    by_network = network(scan)
    ended = time.perf_counter()
    voxel = float(spacing_of(scan.affine).prod()) / 1000
    both = float((by_template & by_network).sum())
    return {
        "head": path.name,
        "captured": bool(similarity >= LEAST_SIMILARITY),
        "similarity": round(similarity, 3),
        "dice": round(2 * both / float(by_template.sum() + by_network.sum()), 4),
        "template_cm3": round(float(by_template.sum()) * voxel, 1),
        "network_cm3": round(float(by_network.sum()) * voxel, 1),
        "template_seconds": round(between - started, 2),
        "network_seconds": round(ended - between, 2),
    }


if __name__ == "__main__":
    main()
