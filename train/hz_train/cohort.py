"""A cohort: who was scanned where, from a participants.tsv, and splits that keep subjects whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import sha256_bytes
from hz_runtime.io.participants import Row, Table, read_table

COLUMNS = ("file", "site", "age", "sex", "group")
LEAST_SUBJECTS = 4  # that a predictor can be trained and scored on


@dataclass(frozen=True)
class Scan:
    """One row: a file and what is known of it. subject is the participant, not the file: rescans share it.

    truth : the same head as the reference site would have shown it, where that is known (simulated cohorts).
    labels : its tissues, 0 background, 1 CSF, 2 grey and 3 white matter, or its regions
    (`studies.tissue_labels`), in the scan's own space.
    """

    path: Path
    subject: str
    site: str
    age: float | None
    sex: str
    group: str
    truth: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Cohort:
    """Scans in the order of the table."""

    scans: tuple[Scan, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({scan.site for scan in self.scans}))

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({scan.subject for scan in self.scans}))

    def at(self, sites: Sequence[str]) -> Cohort:
        """Only the scans of these sites. Raises UsageError for a site that has none."""
        for site in sites:
            if site not in self.sites:
                raise UsageError(
                    f"site {site!r} has no scans in this cohort; it has {', '.join(self.sites)}.",
                    "Check --source and --target against the site column of participants.tsv.",
                )
        return Cohort(tuple(scan for scan in self.scans if scan.site in sites))

    def with_age(self) -> Cohort:
        return Cohort(tuple(scan for scan in self.scans if scan.age is not None))

    def of(self, subjects: Iterable[str]) -> Cohort:
        wanted = set(subjects)
        return Cohort(tuple(scan for scan in self.scans if scan.subject in wanted))

    def first(self, count: int) -> Cohort:
        """The first `count` subjects of each site in the table's order, with all their scans.

        A subject that was scanned at several sites counts at that of its first row.
        """
        home: dict[str, str] = {}
        for scan in self.scans:
            home.setdefault(scan.subject, scan.site)
        return self.of(
            subject for site in self.sites for subject in [s for s in home if home[s] == site][:count]
        )

    def split(self, held_out: float, seed: int) -> tuple[Cohort, Cohort]:
        """(training, held-out) with every subject on one side only, a share of each site's subjects held out.

        held_out : share in [0, 1); the paper's age split is 0.3. At least one subject of each site with
        more than two is held out when the share is above 0. A subject that was scanned at several sites
        counts at the first of them by name, with all scans.
        """
        kept: list[str] = []
        out: list[str] = []
        home = {scan.subject: scan.site for scan in sorted(self.scans, key=lambda s: s.site, reverse=True)}
        for site in self.sites:
            subjects = sorted(subject for subject in home if home[subject] == site)
            order = np.random.default_rng([seed, 1]).permutation(len(subjects))
            n = round(held_out * len(subjects))
            if held_out > 0 and len(subjects) > 2:
                n = max(n, 1)
            out += [subjects[i] for i in order[:n]]
            kept += [subjects[i] for i in order[n:]]
        return self.of(kept), self.of(out)

    def folds(self, k: int, seed: int) -> list[tuple[Cohort, Cohort]]:
        """k (training, held-out) pairs; every subject is held out exactly once.

        Raises UsageError for fewer than two folds, or more than there are subjects.
        """
        subjects = list(self.subjects)
        if not 2 <= k <= len(subjects):
            raise UsageError(
                f"{len(subjects)} subjects cannot be held out in {k} folds.",
                f"Give --folds from 2 to {len(subjects)}, or 0 for a single split.",
            )
        order = np.random.default_rng([seed, 2]).permutation(len(subjects))
        parts = [{subjects[i] for i in order[f::k]} for f in range(k)]
        return [(self.of(set(subjects) - part), self.of(part)) for part in parts]


def with_known_age(cohort: Cohort, sites: Sequence[str], controls_only: bool) -> Cohort:
    """The scans that an age network can learn from. sites : whose; none for all.

    Raises UsageError where too few subjects with an age are left.
    """
    used = (cohort.at(sites) if sites else cohort).with_age()
    if controls_only:
        used = Cohort(tuple(s for s in used.scans if s.group in ("control", "n/a")))
    if len(used.subjects) < LEAST_SUBJECTS:
        raise UsageError(
            f"{len(used.subjects)} subjects with an age are left; training and scoring need at least "
            f"{LEAST_SUBJECTS}.",
            "Check the age, site and group columns, or pass --all-groups.",
        )
    return used


def pseudonym(subject: str) -> str:
    """A name for a subject that tells it apart and nothing else."""
    return sha256_bytes(subject.encode())[:12]


def pseudonyms(cohort: Cohort) -> list[str]:
    """The subjects of a cohort under such names, each once, sorted."""
    return sorted(map(pseudonym, cohort.subjects))


def read_participants(path: Path) -> Cohort:
    """Read a tab-separated table with the columns file, site, age, sex and group.

    `participant_id` names the subject where present, so that rescans are recognised; otherwise every
    file is its own subject. Files are relative to the table. Ages may be n/a; they are in years, or in the
    unit of the data dictionary beside the table. The optional columns `truth` and `labels` name files as in
    `Scan`.
    Raises UsageError naming the row and column that is wrong.
    """
    table = read_table(path)
    if not table.rows:
        raise UsageError(f"{path.name} has no rows.", "A cohort needs one line per scan.")
    table.need(*COLUMNS)
    return Cohort(tuple(_scan(path.parent, table, row) for row in table.rows))


def _scan(folder: Path, table: Table, row: Row) -> Scan:
    file, where = row.get("file"), f"{table.name}, line {row.line}"
    path = (folder / file).resolve()
    if not file or not path.is_file():
        raise UsageError(f"{where}: file {file!r} does not exist.", "Paths are relative to the table.")
    if not row.get("site"):
        raise UsageError(f"{where}: the site is empty.", "Every scan needs the site it was taken at.")
    return Scan(
        path=path,
        subject=row.get("participant_id", file),
        site=row.get("site"),
        age=table.age(row),
        sex=row.get("sex", "n/a"),
        group=row.get("group", "n/a"),
        truth=_beside(folder, where, row, "truth"),
        labels=_beside(folder, where, row, "labels"),
    )


def _beside(folder: Path, where: str, row: Row, column: str) -> Path | None:
    """The file that an optional column names; None where it is missing, empty or n/a."""
    file = row.get(column)
    if file.lower() in ("", "n/a"):
        return None
    path = (folder / file).resolve()
    if not path.is_file():
        raise UsageError(
            f"{where}: {column} {file!r} does not exist.",
            "Paths are relative to the table; write n/a where there is none.",
        )
    return path
