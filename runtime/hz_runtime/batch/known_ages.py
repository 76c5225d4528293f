"""The known ages, sites and people of a run's scans, from a participants table or for one scan.

Reading a table is `io.participants`'; here its rows are matched with scans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hz_runtime.batch.inputs import InputScan
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import printable
from hz_runtime.io.participants import AgeIsNoNumber, T, Table, certain, check_age, read_table
from hz_runtime.io.volume import stem


@dataclass(frozen=True)
class KnownAges:
    """Ages and sites by file or participant, from a participants.tsv. Ambiguous keys hold none.

    by_file, site_by_file : by the end of a scan's path, "sub-1.nii" or "A/sub-1.nii"; and, where a table
    names folders, by "/" and the name alone, for scans that lie elsewhere now.
    person_by_file, person_by_participant : who was scanned: the participant_id, else the file.
    only : age of a run's only scan, in years.  table : name of the file they come from, "" for none.
    notes : what the user should hear about them, whatever the scans.
    Raises UsageError where `only` is no age.
    """

    by_file: Mapping[str, float] = field(default_factory=dict)
    by_participant: Mapping[str, float] = field(default_factory=dict)
    only: float | None = None
    site_by_file: Mapping[str, str] = field(default_factory=dict)
    site_by_participant: Mapping[str, str] = field(default_factory=dict)
    person_by_file: Mapping[str, str] = field(default_factory=dict)
    person_by_participant: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.only is not None:
            check_age(self.only, "The known age")

    def check(self, scans: int) -> None:
        """Raise UsageError where the age of one scan meets several."""
        if self.only is not None and scans != 1:
            raise UsageError(
                "--age is for a single scan.", "For several give their ages in a table:  --participants TSV"
            )

    def of(self, scan: InputScan) -> float | None:
        """Age in years of the scan's person, or None. File names win over participants."""
        if self.only is not None:
            return self.only
        return _entry(scan, self.by_file, self.by_participant)

    def site_of(self, scan: InputScan) -> dict[str, str]:
        """{"site": name} of the scan's site, looked up as its age is; {} where none is known."""
        site = _entry(scan, self.site_by_file, self.site_by_participant)
        return {} if site is None else {"site": site}

    def person_of(self, scan: InputScan) -> str | None:
        """Who was scanned, looked up as the age is: the same for all scans of one person. None if unknown."""
        return _entry(scan, self.person_by_file, self.person_by_participant)

    def gaps(self, scans: Sequence[InputScan]) -> tuple[str, ...]:
        """What the user should hear: `notes`, and where the table has no age for some of the scans."""
        without = [scan.label for scan in scans if self.of(scan) is None] if self.table else []
        if not without:
            return self.notes
        which = f"{len(without)} of {len(scans)} scans, {without[0]} first"
        return (
            *self.notes,
            f"{self.table}: no age for {which}; see its columns file, participant_id and age",
        )

    @classmethod
    def from_tsv(cls, path: Path) -> KnownAges:
        """Read columns `age`, `file` (or filename) and/or `participant_id`, and `site` where there is one.

        Ages are in years, or in the unit of the data dictionary beside the table. A row whose age is no
        number (89+) has none, which `notes` says.
        Raises UsageError: no such table, or an age outside 0 to 120 years, whose line it names.
        """
        table = read_table(path)
        file_column = "file" if "file" in table.columns else "filename"
        if not {file_column, "participant_id"} & set(table.columns):
            table.need("file or participant_id", "age")
        table.need("age")
        if not table.rows:
            raise UsageError(
                f"{path.name}: no rows below the column names.", "Write one scan or participant a line."
            )
        ages, notes = _ages(table)
        found: tuple[dict[str, set[float]], ...] = ({}, {})
        places: tuple[dict[str, set[str]], ...] = ({}, {})
        people: tuple[dict[str, set[str]], ...] = ({}, {})
        for row, age in zip(table.rows, ages, strict=True):
            file, person = row.get(file_column), row.get("participant_id")
            parts = [part for part in Path(file).parts if part not in ("/", "..")]
            by_name = {f"/{parts[-1]}"} if len(parts) > 1 else set()
            keys = {"/".join(parts), *by_name} - {""}, {person, person.removeprefix("sub-")} - {""}
            site = printable(row.get("site"))
            for by_key, sites, who, names in zip(found, places, people, keys, strict=True):
                for name in names:
                    who.setdefault(name, set()).add(person or file)
                    if age is not None:
                        by_key.setdefault(name, set()).add(age)
                    if site:
                        sites.setdefault(name, set()).add(site)
        return cls(
            certain(found[0]),
            certain(found[1]),
            site_by_file=certain(places[0]),
            site_by_participant=certain(places[1]),
            person_by_file=certain(people[0]),
            person_by_participant=certain(people[1]),
            table=path.name,
            notes=notes,
        )


def _ages(table: Table) -> tuple[list[float | None], tuple[str, ...]]:
    """Years of every row, and a note where some are no number. Raises UsageError as `Table.age`."""
    ages: list[float | None] = []
    faults: list[str] = []
    for row in table.rows:
        try:
            ages.append(table.age(row))
        except AgeIsNoNumber as error:
            ages.append(None)
            faults.append(error.message)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ages, (faults[0] + more,) if faults else ()


def _entry(scan: InputScan, by_file: Mapping[str, T], by_participant: Mapping[str, T]) -> T | None:
    """What a table holds for a scan: under its path, else its file's name, else its participant's."""
    parts = scan.path.parts[1:] if scan.path.is_absolute() else scan.path.parts
    keys = ["/".join(parts[start:]) for start in range(len(parts))]
    if "/" not in scan.label:  # else its folder is known, and is not the one that the table names
        keys.append(f"/{scan.path.name}")
    for key in keys:
        if key in by_file:
            return by_file[key]
    words = [stem(scan.path), stem(scan.path).split("_")[0]]
    words += [p for p in reversed(scan.label.split("/")[:-1]) if p.startswith("sub-")]
    for word in words:
        for key in (word, word.removeprefix("sub-")):
            if key in by_participant:
                return by_participant[key]
    return None
