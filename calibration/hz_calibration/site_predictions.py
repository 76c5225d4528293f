"""What a bundle's age network said of people of known age at a site: results of hz-run, and their table.

Predictions are read and never made here, so that ages are calibrated as they come to be used: by the same
preparation, on the same engine. Which of the people the network was trained on is not known here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.status import latest, sources
from hz_runtime.errors import UsageError

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle

NO_AGE = "got no age"
AGE_UNKNOWN = "are not in the table, or without an age there"
TOO_YOUNG_OR_OLD = "are of people outside the ages of the network's training"
ELSEWHERE = "are of another site"
TWICE = "are the same file again"
BRAINS = "brains, taken as they are"


@dataclass(frozen=True)
class SitePrediction:
    """One scan.  age, raw : known, and as the network gave it, years.  person : as the table names them."""

    age: float
    raw: float
    person: str
    site: str


@dataclass(frozen=True)
class SitePredictions:
    """scans : those that count.  left_out : why others do not, and how many.  flagged : of `scans`.

    raw_heads : whether hz prepared the scans from raw heads.  ran : the engine, in words.
    """

    scans: tuple[SitePrediction, ...]
    left_out: Mapping[str, int]
    flagged: int
    raw_heads: bool
    ran: str

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({scan.site for scan in self.scans}))


def read_predictions(
    folders: Sequence[Path],
    bundle: Bundle,
    known: KnownAges,
    site: str | None = None,
    places: Mapping[str, Path] | None = None,
) -> SitePredictions:
    """The predictions of a bundle in folders that hz-run left.

    known : of a participants table.  site : only scans of this site count, those for which the table names
    none among them; None: of every site that the table names.  places : absolute paths of scans by their
    labels, where they are known; else the labels alone are looked up.
    Every scan file counts once. Scans that hz-run gave no age do not count, nor those of people for whom the
    network's ages do not hold. Flagged ones do: to leave out what looks wrong makes intervals too narrow.
    Raises UsageError where a folder holds no results, or results of another bundle, where folders were
    prepared in different ways, and where nobody says what site a scan is of.
    """
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    found: list[SitePrediction] = []
    flagged = 0
    ways: set[str] = set()
    engines: set[str] = set()
    for run, scan in _scans(folders, bundle):
        label = str(scan["input"])
        of_table = InputScan((places or {}).get(label, Path(label)), label, str(scan["name"]))
        why, one = _prediction(scan, of_table, bundle, known, site)
        if scan.get("sha256") in seen:
            why, one = TWICE, None
        if one is None:
            left_out[why] += 1
            continue
        seen.add(str(scan.get("sha256")))  # of one that failed here another folder may hold the age
        found.append(one)
        flagged += bool(scan.get("flags"))
        ways.add(_preparation(run))
        engines.add(_engine(run))
    if len(ways) > 1:
        raise UsageError(
            f"some of these results are of {' and some of '.join(sorted(ways))}.",
            "Calibrate on scans that were prepared as those will be that the bundle is for.",
        )
    raw_heads = bool(ways) and BRAINS not in ways
    return SitePredictions(tuple(found), dict(left_out), flagged, raw_heads, ", ".join(sorted(engines)))


def _scans(folders: Sequence[Path], bundle: Bundle) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(the run, the scan) of every scan that these folders hold a result of."""
    site = bundle.age_interval.site if bundle.age_interval else None
    ours = {bundle.id, site.bundle if site else bundle.id}  # a calibration leaves what networks say as it is
    for folder in folders:
        runs = sources(folder)
        if not runs:
            raise UsageError(f"{folder.name} holds no results of hz-run.", "Give a folder that hz-run wrote.")
        for source, scan in latest(runs).values():
            made_by = source.noted.run.get("bundle")
            if not isinstance(made_by, Mapping) or made_by.get("id") not in ours:
                name = made_by.get("name") if isinstance(made_by, Mapping) else None
                raise UsageError(
                    f"{folder.name} holds results of another bundle ({name or 'unknown'}), not of "
                    f"{bundle.path.name} as it is.",
                    f"Run the scans with it:  hz-run SCANS --model {bundle.path.name} --out DIR",
                )
            yield source.noted.run, scan


def _prediction(
    scan: Mapping[str, Any], of_table: InputScan, bundle: Bundle, known: KnownAges, site: str | None
) -> tuple[str, SitePrediction | None]:
    """("", the prediction), or (why the scan does not count, None)."""
    age, raw = known.of(of_table), scan.get("age_raw")
    named = known.site_of(of_table).get("site")
    if age is None:
        return AGE_UNKNOWN, None
    if site is not None and named not in (None, site):
        return ELSEWHERE, None
    if scan.get("status") == "failed" or not isinstance(raw, (int, float)):
        return NO_AGE, None
    span = bundle.cohort.get("age_range")
    if span and not span[0] <= age <= span[1]:
        return TOO_YOUNG_OR_OLD, None
    where = named or site
    if where is None:
        raise UsageError(
            f"{known.table} does not say of which site {of_table.label} is.",
            "Add a column site, or name it:  --site NAME",
        )
    return "", SitePrediction(age, float(raw), known.person_of(of_table) or of_table.label, where)


def _preparation(run: Mapping[str, Any]) -> str:
    """What a run's scans were, and all that was asked of their preparation: other words where it differs."""
    options = run.get("options")
    asked = options.get("prepare") if isinstance(options, Mapping) else None
    return BRAINS if asked is None else f"raw heads (--prepare, {json.dumps(asked, sort_keys=True)[1:-1]})"


def _engine(run: Mapping[str, Any]) -> str:
    backend = run.get("backend")
    engine = backend.get("name") if isinstance(backend, Mapping) else None
    return str(engine or "unknown engine")
