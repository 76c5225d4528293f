"""The cohort that the reference bundle is trained on: whole heads prepared as hz-run --prepare prepares them.

    python benchmarks/reference_cohort.py SCANS WORK

SCANS holds two folders with a participants.tsv each: `ixi_hh` (whole heads of the reference site) and
`real_cohort_2mm` (skull-stripped scans). WORK gets `prepared/`, which hz-prepare fills and resumes, and
`participants.tsv`: the reference site's prepared heads, and scans of the source sites both as they came and
prepared, which is how hz-run meets them. No other site is named: all others stay unseen by every weight.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET, SOURCES = "ixi_hh", ("ds002748", "ds000011")
PREPARED = "_space-MNI152_res-2_desc-brain_T1w.nii.gz"
COLUMNS = ("file", "participant_id", "site", "age", "sex", "group", "licence")


def main(scans: Path, work: Path) -> None:
    """Prepare what is not prepared yet, and write the table."""
    heads = scans / "ixi_hh"
    prepare(sorted((heads / "heads").glob("*.nii.gz")), work / "prepared" / TARGET)
    stripped = scans / "real_cohort_2mm"
    sources = [row for row in read(stripped / "participants.tsv") if row["site"] in SOURCES]
    prepare([stripped / row["file"] for row in sources], work / "prepared" / "sources")
    rows = [*table(read(heads / "participants.tsv"), work / "prepared" / TARGET)]
    rows += table(sources, work / "prepared" / "sources")
    rows += [{**row, "file": str(stripped / row["file"])} for row in sources]
    with (work / "participants.tsv").open("w", newline="") as file:
        lines = csv.DictWriter(file, COLUMNS, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        lines.writeheader()
        for row in rows:
            lines.writerow({**row, "file": os.path.relpath(row["file"], work)})
    print(f"{len(rows)} scans in {work / 'participants.tsv'}")


def prepare(paths: list[Path], out: Path) -> None:
    """hz-prepare of scans whose results are not there yet; a refused scan is none of the cohort."""
    done = subprocess.run(["hz-prepare", *map(str, paths), "--out", str(out), "--plain"], check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)


def table(rows: list[dict[str, str]], prepared: Path) -> Iterator[dict[str, str]]:
    """The rows of scans that were prepared, with their prepared files."""
    for row in rows:
        name = Path(row["file"]).name.removesuffix(".nii.gz").removesuffix("_T1w")
        found = prepared / f"{name}{PREPARED}"
        if found.is_file():
            yield {**row, "file": str(found)}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
