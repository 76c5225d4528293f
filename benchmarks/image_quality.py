"""Whether the measures of image quality see simulated faults, and leave sound heads alone.

    python benchmarks/image_quality.py COHORT.tsv [--values FILE.jsonl] [--seed N]

COHORT.tsv: columns file (a stripped brain on its scan's own grid, as hz-prepare leaves it in
NAME_desc-brain_T1w.nii.gz, or one that nobody corrected), participant_id, site, age (or n/a), corrected (yes
or no: whether N4 took its field out), faults (yes or no: whether it is spoilt as well as measured) and head
(the whole head of the same grid, or n/a). What is measured is appended to FILE and taken from there the next
time, as long as measures, faults and seed are the same; limits may change. Each scan to be spoilt gets each
fault of `hz_train.simulate_faults` at five strengths.

People are divided in two halves, by a hash of their name, within their sites. On the training half a limit is
chosen by a rule: halfway, in the logarithm, from the most of its sound scans to the median at the strongest
fault. AUC, how many faults are beyond the limit and how many sound scans are, are those of the other half.
Prints JSON: by measure, the limit chosen and the one in the code, AUC by strength, rank correlations with
strength, values by site, and the correlation with age within each site.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine

F64 = NDArray[np.float64]
LEAST_FOR_AGE = 20  # people


@dataclass(frozen=True)
class Scan:
    """A row of the cohort."""

    file: Path
    person: str
    site: str
    age: float
    corrected: bool
    faults: bool
    head: Path | None

    @classmethod
    def of(cls, row: dict[str, str], folder: Path) -> Scan:
        age = float("nan") if row["age"] in ("", "n/a") else float(row["age"])
        head = None if row["head"] == "n/a" else folder / row["head"]
        answers = (row[key] == "yes" for key in ("corrected", "faults"))
        return cls(folder / row["file"], row["participant_id"], row["site"], age, *answers, head)


@dataclass(frozen=True)
class Found:
    """What the measures gave of a scan.

    strength : 0 of a sound one, else 1 to 5.  values : by measure; nan where there is none.
    largest_mm : of the voxels' sizes.  seconds : of CPU time for all four measures.
    """

    scan: Scan
    fault: str
    strength: int
    values: dict[str, float]
    largest_mm: float
    seconds: float

    @property
    def beyond(self) -> list[str]:
        """Measures that ask for a look; a field that nothing took out has no verdict."""
        from hz_runtime.model_space.image_quality import LIMITS

        judged = [name for name in self.values if name != "field" or self.scan.corrected]
        return [name for name in judged if self.values[name] > LIMITS[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--values", type=Path, help="file of JSON lines")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from hz_runtime.model_space.image_quality import LIMITS

    with given.cohort.open(newline="") as rows:
        scans = [Scan.of(row, given.cohort.parent) for row in csv.DictReader(rows, delimiter="\t")]
    held = held_out(scans)
    found = []
    kept = _kept(given.values)
    for scan in scans:
        rows = kept.get(str(scan.file)) or [
            [one.fault, one.strength, one.values, one.largest_mm, one.seconds]
            for one in measured(scan, given.seed)
        ]
        found += [Found(scan, *row) for row in rows]
        if given.values and str(scan.file) not in kept:
            with given.values.open("a") as file:
                file.write(json.dumps([str(scan.file), rows]) + "\n")
        print(f"{scan.file.name}  {found[-1].fault or 'sound'}", file=sys.stderr)
    sound = [one for one in found if not one.strength]
    print(
        json.dumps(
            {
                "measures": {name: judged(name, found, held) for name in LIMITS},
                "sound": {
                    "scans": len(sound),
                    "people": len({one.scan.person for one in sound}),
                    "flagged": {one.scan.file.name: one.beyond for one in sound if one.beyond},
                    "sites": {site: by_site(site, sound) for site in sorted({s.site for s in scans})},
                },
                "spoilt": {
                    "scans": sum(scan.faults for scan in scans),
                    "people": len({scan.person for scan in scans if scan.faults}),
                    "held_out_people": len({s.person for s in scans if s.faults} & held),
                },
                "cpu_seconds_median": {
                    kind: round(
                        float(np.median([f.seconds for f in sound if (f.largest_mm < 1.1) == fine])), 3
                    )
                    for kind, fine in (("voxels of 0.8 to 1 mm", True), ("larger voxels", False))
                },
                "seed": given.seed,
                "machine": describe_machine(),
            },
            indent=1,
        )
    )


def _kept(file: Path | None) -> dict[str, list[Any]]:
    """What an earlier run found, by scan."""
    if file is None or not file.exists():
        return {}
    return dict(json.loads(line) for line in file.read_text().splitlines())


def held_out(scans: Sequence[Scan]) -> set[str]:
    """Every second person of each site, in the order of their names' hashes; a person's site is the first."""
    sites: dict[str, str] = {}
    for scan in scans:
        sites.setdefault(scan.person, scan.site)
    out: set[str] = set()
    for site in set(sites.values()):
        people = sorted((p for p in sites if sites[p] == site), key=lambda p: (zlib.crc32(p.encode()), p))
        out |= set(people[1::2])
    return out


def measured(scan: Scan, seed: int) -> list[Found]:
    """The scan as it is, and with each fault where it is to be spoilt."""
    from dataclasses import replace

    from hz_runtime.io.volume import read_volume
    from hz_runtime.model_space.air import with_air_zero
    from hz_runtime.model_space.image_quality import image_quality
    from hz_train.simulate_faults import FAULTS, Subject

    volume = with_air_zero(read_volume(scan.file))

    def one(fault: str, strength: int, data: Any) -> Found:
        began = time.process_time()
        qualities = image_quality(replace(volume, data=data), corrected=scan.corrected)
        took = time.process_time() - began
        values = {q.measure: float("nan") if q.value is None else q.value for q in qualities}
        return Found(scan, fault, strength, values, float(volume.spacing.max()), took)

    found = [one("", 0, volume.data)]
    if scan.faults:
        head = None if scan.head is None else with_air_zero(read_volume(scan.head)).data
        subject = Subject(volume.data, volume.spacing, head)
        for fault, (spoil, strengths) in FAULTS.items():
            if fault == "field" and not scan.corrected:
                continue
            for number, strength in enumerate(strengths, 1):
                # The same draw at every strength: the fault grows, and does not change.
                rng = np.random.default_rng([seed, zlib.crc32(f"{scan.file.name} {fault}".encode())])
                found.append(one(fault, number, spoil(subject, strength, rng)))
    return found


def judged(name: str, found: Sequence[Found], held: set[str]) -> dict[str, Any]:
    """One measure against its own fault."""
    from hz_runtime.model_space.image_quality import LIMITS
    from hz_train.simulate_faults import FAULTS

    rows = [f for f in found if f.fault in ("", name) and (name != "field" or f.scan.corrected)]
    strengths = FAULTS[name][1]
    last = len(strengths)

    def values(strength: int, out: bool) -> F64:
        those = [r for r in rows if r.strength == strength and (r.scan.person in held) == out]
        return np.array([r.values[name] for r in those])

    chosen = float(np.sqrt(np.nanmax(values(0, False)) * np.nanmedian(values(last, False))))
    limit = LIMITS[name]
    sound, spoilt = values(0, True), [values(n, True) for n in range(1, last + 1)]
    ladders = [ladder for ladder in _ladders(name, rows) if np.isfinite(ladder).all()]
    ranks = np.array([spearman(ladder) for ladder in ladders])
    return {
        "strengths": list(strengths),
        "limit": limit,
        "limit_by_rule_on_training_half": round(chosen, 4),
        "sound_most": round(float(np.nanmax([r.values[name] for r in rows if not r.strength])), 4),
        "auc_held_out": [round(auc(sound, those), 4) for those in spoilt],
        "beyond_limit_held_out": [round(float(np.mean(those > limit)), 4) for those in spoilt],
        "sound_beyond_limit_held_out": int(np.sum(sound > limit)),
        "not_measured_spoilt": int(sum(not np.isfinite(r.values[name]) for r in rows if r.strength)),
        "median_by_strength": [
            round(float(np.nanmedian([r.values[name] for r in rows if r.strength == n])), 4)
            for n in range(last + 1)
        ],
        "spearman_with_strength": {"median": float(np.median(ranks)), "least": float(ranks.min())},
        "monotone_ladders": [int(sum(np.all(np.diff(ladder) >= 0) for ladder in ladders)), len(ladders)],
        "n_held_out": {"sound": len(sound), "spoilt": len(spoilt[-1])},
        "r_with_age": _with_age(name, rows),
    }


def _ladders(name: str, rows: Sequence[Found]) -> list[F64]:
    """Of every spoilt scan its values from sound to strongest."""
    by_scan: dict[Path, dict[int, float]] = {}
    for row in rows:
        if row.scan.faults:
            by_scan.setdefault(row.scan.file, {})[row.strength] = row.values[name]
    return [np.array([steps[n] for n in sorted(steps)]) for steps in by_scan.values()]


def spearman(ladder: F64) -> float:
    """Rank correlation of (n,) values with their order."""
    order = np.arange(len(ladder))
    ranks = np.array([np.mean(np.flatnonzero(np.sort(ladder) == value)) for value in ladder])
    return float(np.corrcoef(order, ranks)[0, 1]) if np.ptp(ranks) else 0.0


def auc(sound: F64, spoilt: F64) -> float:
    """Share of pairs in which the spoilt scan has more; ties count half, what was not measured not at all."""
    a, b = sound[np.isfinite(sound)][:, None], spoilt[np.isfinite(spoilt)][None]
    return float(np.mean((b > a) + 0.5 * (b == a)))


def _with_age(name: str, rows: Sequence[Found]) -> dict[str, Any]:
    out = {}
    for site in sorted({row.scan.site for row in rows}):
        those = {r.scan.person: r for r in rows if not r.strength and r.scan.site == site and r.scan.age > 0}
        if len(those) >= LEAST_FOR_AGE:
            pairs = np.array([(row.scan.age, row.values[name]) for row in those.values()])
            out[site] = {"r": round(float(np.corrcoef(pairs.T)[0, 1]), 3), "n": len(pairs)}
    return out


def by_site(site: str, sound: Sequence[Found]) -> dict[str, Any]:
    """Least, median and most of each measure, of what N4 corrected and of what it did not."""
    out: dict[str, Any] = {}
    for kind, corrected in (("corrected", True), ("as_given", False)):
        those = [one for one in sound if one.scan.site == site and one.scan.corrected == corrected]
        if those:
            out[kind] = {"n": len(those)}
            for name in those[0].values:
                found = np.nanpercentile([one.values[name] for one in those], [0, 50, 100])
                out[kind][name] = [float(f"{value:.3g}") for value in found]
    return out


if __name__ == "__main__":
    main()
