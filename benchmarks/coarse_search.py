"""What the coarse search before niimath's gains and costs (decision 7).

    python benchmarks/coarse_search.py HEAD... [--turned N]

Every HEAD is registered as hz registers it, and as it did before: by niimath from the head's top at the
template's, refined. Prints JSON: the largest distance between the two poses over the brain, mm, where
niimath captured the head; CPU seconds of both, the programs' included; and for the first N heads, each also
turned and moved in three ways, how often niimath was needed and how far the pose, taken back, is from the
unmoved head's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine

# Degrees about x, y and z, then a shift in mm.
TURNS = (
    ((30.0, 0.0, 0.0), (0.0, 40.0, -30.0)),
    ((0.0, 25.0, 0.0), (20.0, 0.0, 0.0)),
    ((-20.0, 10.0, 30.0), (10.0, -60.0, 80.0)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heads", nargs="+", type=Path)
    parser.add_argument("--turned", type=int, default=0, metavar="N")
    given = parser.parse_args()
    rows = [compared(head, number < given.turned) for number, head in enumerate(given.heads)]
    both = [row["apart_mm"] for row in rows if row["apart_mm"] is not None]
    turns = [turn for row in rows for turn in row["turned"]]
    result: dict[str, Any] = {
        "n": len(rows),
        "without_niimath": sum(not row["niimath_needed"] for row in rows),
        "apart_mm": {"n": len(both), "median": statistics.median(both), "worst": max(both)},
        "cpu_s_median": {
            way: statistics.median(row["cpu_s"][way] for row in rows) for way in ("hz", "niimath")
        },
        "turned": {
            "n": len(turns),
            "without_niimath": sum(not turn["niimath_needed"] for turn in turns),
            "lost": sum(turn["apart_mm"] > 2 for turn in turns),
        },
        "heads": rows,
        "machine": describe_machine(),
    }
    print(json.dumps(result, indent=1))


def compared(head: Path, turned: bool) -> dict[str, Any]:
    """One head by both ways, and where asked for, turned."""
    import numpy as np

    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.air import air_of_volume, with_air_zero
    from hz_runtime.preparation import gates, registration
    from hz_runtime.preparation.mask import stripped
    from hz_runtime.preparation.refinement import distances, refined_pose
    from hz_runtime.preparation.template import mni152, points
    from pose_recovery import rotated

    template, used = mni152(), []
    program = registration.affine_pose

    def counted(*given: Any) -> Any:
        used.append(1)
        return program(*given)

    registration.affine_pose = counted
    try:
        scan = read_volume(head)
        scan = with_air_zero(scan, air_of_volume(scan))
        mask = stripped(scan.data, scan.affine)
        bare = mask is not None
        data = np.asarray(np.where(mask, scan.data, 0), np.float32) if bare else scan.data

        def by_niimath() -> Any:
            start = registration.placed(data, scan.affine, template)
            pose = program(data, start @ scan.affine, template) @ start
            return refined_pose(data, scan.affine, pose, template, bare=bare)

        (pose, similarity, _), own_s = timed(
            lambda: registration.registered(data, scan.affine, template, bare=bare)
        )
        needed = bool(used)
        other, other_s = timed(by_niimath)
        brain = points(template.mask, np.linalg.inv(pose) @ template.affine)
        seen = registration.resample(data, other @ scan.affine, template.mask.shape, template.affine)
        captured = registration.similarity(seen, template) >= gates.LEAST_SIMILARITY
        apart = float(distances(other, pose, brain).max())
        turns = []
        for degrees, shift in TURNS if turned else ():
            move = rotated(degrees, shift, brain.mean(axis=0))
            used.clear()
            found, *_ = registration.registered(data, move @ scan.affine, template, bare=bare)
            off = registration.mean_distance(found @ move, pose, brain)
            turns.append({"niimath_needed": bool(used), "apart_mm": round(off, 3)})
    finally:
        registration.affine_pose = program
    return {
        "head": head.name,
        "stripped": bare,
        "niimath_needed": needed,
        "similarity": round(similarity, 4),
        "apart_mm": round(apart, 3) if captured else None,
        "cpu_s": {"hz": round(own_s, 2), "niimath": round(other_s, 2)},
        "turned": turns,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, CPU seconds of this process and of the programs that it started)."""

    def seconds() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    started = seconds()
    found = work()
    return found, seconds() - started


if __name__ == "__main__":
    main()
