"""INT8 in OpenVINO: error on held-out scans and speed beside float32, in one run. Prints JSON.

    python benchmarks/int8_openvino.py BUNDLE SCANS --participants TSV --plan harmonizer.json --plan age.json

The plans are those of hz-calibrate, one a network or only one; scans that they were made on are left out.
Float32 and int8 take turns, so that another load on the machine weighs on both. Errors are those of
OpenVINO's int8 against OpenVINO's float32; onnxruntime's answers to the same int8 files stand beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ("runtime", "calibration", "train", "export")]


def main() -> None:
    given = _arguments()
    import numpy as np

    from hz_calibration.plan import read_plan
    from hz_calibration.samples import choose
    from hz_export.networks import read_network

    plans = {plan.role: plan for plan in map(read_plan, given.plan)}
    network = read_network(given.bundle, "harmonizer")
    used = {scan.sha256 for plan in plans.values() for scan in plan.scans}
    files = sorted(p for p in given.scans.rglob("*.nii.gz")) if given.scans.is_dir() else [given.scans]
    held_out = [path for path in files if _sha256(path) not in used]
    samples = choose(
        held_out,
        network.recipe,
        count=given.count,
        participants=given.participants,
        statistics=network.statistics,
    )
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "bundle": given.bundle.name,
        "threads": given.threads,
        "held_out_scans": len(samples.grids),
        "left_out_as_calibration": len(files) - len(held_out),
    }
    years = read_network(given.bundle, "age").graph if network.behind is not None else None
    harmonized = samples.grids
    if "harmonizer" in plans:
        pair = _Pair(network.graph, plans["harmonizer"], given.threads)
        report["harmonizer"] = pair.measured(samples.grids, given.rounds)
        harmonized, found = pair.float32, pair.int8
        inside = samples.grids > 0.02
        scale = [float(np.abs(e[b]).mean()) for e, b in zip(harmonized, inside, strict=True)]
        for name, answers in (("int8", found), ("int8_onnxruntime", pair.other)):
            gaps = [
                float(np.abs(f - e)[b].mean()) for f, e, b in zip(answers, harmonized, inside, strict=True)
            ]
            share = np.array(gaps) / scale
            report["harmonizer"][name] |= {
                "error_of_brain_mean": _spread(share),
                "within_2_percent": float((share <= 0.02).mean()),
            }
        if years is not None:
            gap = _run(years, found, given.threads) - _run(years, harmonized, given.threads)
            report["harmonizer"]["int8"]["years_behind"] = _years(gap)
    if "age" in plans and years is not None:
        pair = _Pair(years, plans["age"], given.threads)
        report["age"] = pair.measured(harmonized, given.rounds)
        report["age"]["int8"]["years"] = _years(pair.int8 - pair.float32)
        if "harmonizer" in plans:
            both = _run(pair.quantized, found, given.threads)
            report["both_int8"] = {"years": _years(both - pair.float32)}
    print(json.dumps(report, indent=1))


class _Pair:
    """One network in float32 and in int8, both in OpenVINO."""

    def __init__(self, graph: Any, plan: Any, threads: int) -> None:
        from hz_export.quantize import to_int8
        from hz_runtime.backends.registry import open_backend

        self.quantized = to_int8(graph, plan)
        self.plan = plan
        self.threads = threads
        self.backends = {
            name: open_backend("openvino", model.SerializeToString(), device="cpu", threads=threads)
            for name, model in (("float32", graph), ("int8", self.quantized))
        }

    def measured(self, grids: Any, rounds: int) -> dict[str, Any]:
        """Answers to every scan, then rounds of speed in which the two take turns."""
        import numpy as np

        self.float32, self.int8 = (
            np.stack([next(iter(b.run(g[None, None]).values())).squeeze() for g in grids])
            for b in self.backends.values()
        )
        self.other = _run(self.quantized, grids, self.threads, "onnxruntime")
        times: dict[str, list[float]] = {name: [] for name in self.backends}
        for k in range(rounds + 2):  # two rounds to warm up
            for name, backend in self.backends.items():
                start = time.perf_counter()
                backend.run(grids[k % len(grids)][None, None])
                if k >= 2:
                    times[name].append(time.perf_counter() - start)
        ratio = np.array(times["float32"]) / np.array(times["int8"])
        return {
            "plan": {"method": self.plan.method, "int8": len(self.plan.int8), "kept": len(self.plan.kept)},
            "float32": {"ms": _spread(1000 * np.array(times["float32"]))},
            "int8": {"ms": _spread(1000 * np.array(times["int8"])), "faster": _spread(ratio)},
            "int8_onnxruntime": {},
        }


def _run(model: Any, grids: Any, threads: int, engine: str = "openvino") -> Any:
    import numpy as np

    from hz_runtime.backends.registry import open_backend

    backend = open_backend(engine, model.SerializeToString(), device="cpu", threads=threads)
    found = np.stack([next(iter(backend.run(g[None, None]).values())).squeeze() for g in grids])
    backend.close()
    return found


def _spread(values: Any) -> dict[str, float]:
    import numpy as np

    return {name: round(float(np.percentile(values, q)), 5) for name, q in (("median", 50), ("p95", 95))} | {
        "mean": round(float(np.mean(values)), 5),
        "max": round(float(np.max(values)), 5),
    }


def _years(gap: Any) -> dict[str, Any]:
    import numpy as np

    size = np.abs(gap)
    return {**_spread(size), "within_half_a_year": float((size <= 0.5).mean())}


def _sha256(path: Path) -> str:
    from hz_runtime.io.atomic import sha256_file

    return sha256_file(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--participants", type=Path)
    parser.add_argument("--plan", type=Path, action="append", required=True)
    parser.add_argument("--count", type=int, default=24, help="held-out scans")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
