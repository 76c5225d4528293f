"""Which scans of a cohort hz-run gives an age, and how good it is, by site.

    python benchmarks/age_at_sites.py COHORT/participants.tsv [--bundle NAME.hz] [--sites a,b]

Runs hz-run on every scan of known age (which hz-run is not told) and prints JSON: by site how many scans get
an age without a flag, with one, and none; of those with an age the mean absolute error, the mean error, r,
and how often the interval holds the true age; and the errors and refusals by age. One scan a person, the
first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe_machine

DECADES = (0, 20, 30, 40, 50, 60, 70, 80, 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--bundle", type=Path, help="[default: the reference bundle]")
    parser.add_argument("--sites", default="", help="[default: all]")
    given = parser.parse_args()

    from hz_train.cohort import Cohort, read_participants

    cohort = read_participants(given.cohort).with_age()
    if given.sites:
        cohort = cohort.at(given.sites.split(","))
    first = Cohort(tuple({scan.subject: scan for scan in reversed(cohort.scans)}.values()))
    with tempfile.TemporaryDirectory() as folder:
        rows = answers(first, Path(folder), given.bundle)
    sites = {site: summary([row for row in rows if row["site"] == site]) for site in first.sites}
    print(json.dumps({"sites": sites, "machine": describe_machine()}, indent=2))


def answers(cohort: Any, folder: Path, bundle: Path | None) -> list[dict[str, Any]]:
    """Of every scan: site, true age, status, and age and interval where there are any."""
    from hz_runtime.results.prediction import Prediction

    # Under names of their own: those of two folders may be the same.
    scans = {}
    for number, scan in enumerate(cohort.scans):
        link = folder / "scans" / f"{number:04d}{''.join(scan.path.suffixes[-2:])}"
        link.parent.mkdir(exist_ok=True)
        os.symlink(scan.path.absolute(), link)
        scans[link.name] = scan
    command = [
        sys.executable,
        "-m",
        "hz_cli.run",
        str(folder / "scans"),
        "--out",
        str(folder / "out"),
        "--plain",
    ]
    command += ["--quiet", *(["--model", str(bundle)] if bundle else [])]
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    found = []
    for row in json.loads((folder / "out" / "run.json").read_text())["scans"]:
        scan, said = scans[Path(row["input"]).name], Prediction.from_dict(row)
        found.append(
            {
                "site": scan.site,
                "true": scan.age,
                "status": row["status"],
                "age": said.age,
                "interval": said.age_interval,
            }
        )
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and errors of one site's scans."""
    told = [row for row in rows if row["age"] is not None]
    return {
        "n": len(rows),
        "ages": [min(row["true"] for row in rows), max(row["true"] for row in rows)],
        "status": dict(Counter(f"{row['status']}{', no age' if row['age'] is None else ''}" for row in rows)),
        "with_age": errors(told),
        "ok": errors([row for row in told if row["status"] == "ok"]),
        "by_age": {
            f"{low} to {high}": {"n": len(part), **errors([row for row in part if row["age"] is not None])}
            for low, high in pairwise(DECADES)
            if (part := [row for row in rows if low <= row["true"] < high])
        },
    }


def errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean absolute error with its 95 % interval, mean error and correlation, years, and coverage."""
    from hz_train.scores import mean

    if not rows:
        return {"answered": 0}
    true, said = (np.array([row[key] for row in rows], np.float64) for key in ("true", "age"))
    found: dict[str, Any] = {
        "answered": len(rows),
        "mae": mean(np.abs(said - true)),
        "mean_error": mean(said - true),
    }
    if len(rows) > 2:
        found["r"] = float(np.corrcoef(said, true)[0, 1])
    if all(row["interval"] for row in rows):
        low, high = np.array([row["interval"] for row in rows]).T
        found["covered"] = float(((low <= true) & (true <= high)).mean())
    return found


if __name__ == "__main__":
    main()
