"""The cohort that the reference bundle is trained on: whole heads prepared as hz-run --prepare prepares them.

    python benchmarks/reference_cohort.py SCANS WORK [judged]

SCANS holds two folders with a participants.tsv each: `ixi_hh` (whole heads of the reference site) and
`real_cohort_2mm` (skull-stripped scans). WORK gets `prepared/`, which hz-prepare fills and resumes, and
`participants.tsv`: the reference site's prepared heads, and scans of the source sites both as they came and
prepared, which is how hz-run meets them. No other site is named there: all others stay unseen by every
weight. With `judged`, a third argument, it also prepares scans of these, and writes `judged.tsv`: every scan
of either kind, prepared, with its label map where there is one. SCANS then holds the folder `wholehead`, too.
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
UNSEEN = "oasis1"
WHOLE = {  # single heads of further scanners
    "chris_t1": "mccausland",
    "philips_ingenia_T1w": "philips",
    "pycortex_S1_T1w": "berkeley",
    "visualqc_id001_orig": "visualqc",
}
COLUMNS = ("file", "labels", "participant_id", "site", "age", "sex", "group", "licence")


def main(scans: Path, work: Path, judged: bool = False) -> None:
    """Prepare what is not prepared yet, and write the tables."""
    heads = scans / "ixi_hh"
    prepare(sorted((heads / "heads").glob("*.nii.gz")), work / "prepared" / TARGET)
    stripped = scans / "real_cohort_2mm"
    sources = [row for row in read(stripped / "participants.tsv") if row["site"] in SOURCES]
    prepare([stripped / row["file"] for row in sources], work / "prepared" / "sources")
    own = [{**row, "labels": str(heads / row["labels"])} for row in read(heads / "participants.tsv")]
    prepared = [*table(own, work / "prepared" / TARGET), *table(sources, work / "prepared" / "sources")]
    as_they_came = [{**row, "file": str(stripped / row["file"])} for row in sources]
    write(work / "participants.tsv", prepared + as_they_came)
    if judged:
        unseen = [row for row in read(stripped / "participants.tsv") if row["site"] == UNSEEN]
        singly = {"labels": "", "age": "n/a", "sex": "n/a", "group": "n/a"}
        singles = [{**singly, "file": n, "participant_id": n, "site": site} for n, site in WHOLE.items()]
        prepare(
            [stripped / row["file"] for row in unseen]
            + [next((scans / "wholehead").glob(f"{name}*")) for name in WHOLE],
            work / "prepared" / "unseen",
        )
        write(work / "judged.tsv", [*prepared, *table(unseen + singles, work / "prepared" / "unseen")])


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, COLUMNS, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        lines.writeheader()
        for row in rows:
            files = {
                key: os.path.relpath(row[key], path.parent) for key in ("file", "labels") if row.get(key)
            }
            lines.writerow({"labels": "n/a", **row, **files})
    print(f"{len(rows)} scans in {path}")


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
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), sys.argv[3:] == ["judged"])
