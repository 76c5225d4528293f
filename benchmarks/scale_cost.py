"""What 100,000 raw heads cost in core hours and GB, by what was measured of few; a table for docs/scale.md.

    python benchmarks/scale_cost.py [--heads 100000]
    python benchmarks/scale_cost.py --sizes FOLDER      what raw heads take on a disk, as JSON for results/

Knows nothing but benchmarks/results: every number of the table is one of its files, or their product. Cost is
taken to grow with the number of heads, which `many_results.py` shows for the steps that see all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
HEADS = 100_000
THREADS = 2  # of the runs measured
ENDINGS = (".nii.gz", ".mgz")
RAW = "raw_head_against-cpu2.json"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def rows(heads: int) -> Iterator[tuple[str, str, str, str]]:
    """(what, of one head, of all, file) of the table."""
    raw = read(RAW)["against"]["this"]
    seconds = raw["batch"]["cpu_s"] / raw["batch"]["heads"]
    yield "CPU time, as measured in a batch", f"{seconds:.1f} s", hours(seconds * heads), RAW
    network = read("raw_head_network_mask-cpu2.json")
    mask = network["median"]["seconds"]["prepare.mask"] - raw["median"]["seconds"]["prepare.mask"]
    yield (
        "longer with a brain mask by a network, two threads",
        f"{mask:.1f} s",
        hours(mask * heads * THREADS) + " at most",
        "raw_head_network_mask-cpu2.json",
    )
    size = read("head_sizes.json")["median_bytes"]
    yield "raw heads, read once", f"{size / 1e6:.1f} MB", gigabytes(size * heads), "head_sizes.json"
    written = read("gzip_written-cpu2.json")
    each = written["bytes"]["3"] / written["volumes"]
    yield "harmonized volumes", f"{each / 1e6:.1f} MB", gigabytes(each * heads), "gzip_written-cpu2.json"
    yield "memory of a job of two threads", "", f"{raw['peak_gb']:.1f} GB", RAW
    peak = f"{network['peak_gb']:.1f} GB"
    yield "memory with a brain mask by a network", "", peak, "raw_head_network_mask-cpu2.json"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.0f} core hours"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB"


def table(heads: int) -> str:
    """The rows as Markdown."""
    lines = [f"| | a head | {heads:,} heads | `benchmarks/results/` |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(heads)]
    return "\n".join(lines)


def sizes(folder: Path) -> dict[str, Any]:
    """Bytes of the scans in a folder."""
    found = [path.stat().st_size for path in sorted(folder.iterdir()) if path.name.endswith(ENDINGS)]
    return {"heads": len(found), "median_bytes": statistics.median(found), "largest_bytes": max(found)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--sizes", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    print(json.dumps(sizes(given.sizes), indent=2) if given.sizes else table(given.heads))


if __name__ == "__main__":
    main()
