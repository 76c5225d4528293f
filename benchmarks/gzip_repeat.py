"""Whether igzip gives the same bytes for the same volume every time, by level.

    python benchmarks/gzip_repeat.py [--processes N] [--volumes N]
    python benchmarks/gzip_repeat.py --written VOLUME.nii.gz ...

Compresses the same made-up int16 volumes in many fresh processes, more at a time than there are cores,
and counts the files that differ from what most processes wrote; seconds and size a level beside it. With
--written only the size a level of volumes that hz-run wrote. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from hz_runtime.cpus import usable_cpus
from machine import describe_machine

LEVELS = (0, 1, 2, 3)
SHAPE = (50, 60, 50)


def volume(seed: int) -> bytes:
    """A noisy ellipsoid in air, int16, as hz-run writes one."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    rng = np.random.default_rng(seed)
    head = (radius < 0.9) * (0.5 + 0.4 * (radius < 0.5 + 0.02 * (seed % 7)) + 0.05 * rng.random(SHAPE))
    return np.asfortranarray(np.rint(head / head.max() * 32767), "<i2").tobytes("F")


def digests(volumes: int) -> dict[int, tuple[list[str], int, float]]:
    """By level: a digest a volume, bytes and seconds in all."""
    found = {}
    for level in LEVELS:
        out, size, seconds = [], 0, 0.0
        for seed in range(volumes):
            data = volume(seed)
            start = time.perf_counter()
            squeeze = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
            packed = squeeze.compress(data[:352]) + squeeze.compress(data[352:]) + squeeze.flush()
            seconds += time.perf_counter() - start
            out.append(hashlib.sha256(packed).hexdigest())
            size += len(packed)
        found[level] = (out, size, seconds)
    return found


def written(paths: list[Path]) -> dict[str, Any]:
    """Bytes of the same voxels by level, and their share of level 0's."""
    sizes = dict.fromkeys(LEVELS, 0)
    for path in paths:
        data = gzip.decompress(path.read_bytes())
        for level in LEVELS:
            squeeze = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
            sizes[level] += len(squeeze.compress(data)) + len(squeeze.flush())
    share = {level: round(size / sizes[0], 3) for level, size in sizes.items()}
    return {"volumes": len(paths), "bytes": sizes, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--written", nargs="+", type=Path, metavar="VOLUME")
    given = parser.parse_args()
    if given.written:
        print(json.dumps({**written(given.written), "machine": describe_machine()}, indent=2))
        return
    at_once = 2 * usable_cpus()
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = list(pool.map(digests, [given.volumes] * given.processes))
    levels = {}
    for level in LEVELS:
        usual = [Counter(run[level][0][k] for run in runs).most_common(1)[0][0] for k in range(given.volumes)]
        differ = sum(a != b for run in runs for a, b in zip(run[level][0], usual, strict=True))
        levels[level] = {
            "files_that_differ": differ,
            "bytes": statistics.median(run[level][1] for run in runs),
            "seconds": round(statistics.median(run[level][2] for run in runs), 4),
        }
    result = {
        "files_a_level": given.processes * given.volumes,
        "processes_at_once": at_once,
        "levels": levels,
        "machine": describe_machine(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
