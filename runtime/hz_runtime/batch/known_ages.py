"""What a participants table or --age says about the people of a run: their ages, and their sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hz_runtime.batch.inputs import InputScan
from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import printable
from hz_runtime.io.participants import T, certain, read_rows, years
from hz_runtime.io.volume import stem


@dataclass(frozen=True)
class KnownAges:
    """Ages and sites by file or participant, from a participants.tsv. Ambiguous keys hold none.

    by_file, site_by_file : by the end of a scan's path, "sub-1.nii" or "A/sub-1.nii"; and, where a table
    names folders, by "/" and the name alone, for scans that lie elsewhere now.
    only : age of a run's only scan.  table : name of the file they come from, "" for none.
    """

    by_file: Mapping[str, float] = field(default_factory=dict)
    by_participant: Mapping[str, float] = field(default_factory=dict)
    only: float | None = None
    site_by_file: Mapping[str, str] = field(default_factory=dict)
    site_by_participant: Mapping[str, str] = field(default_factory=dict)
    table: str = ""

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

    def gaps(self, scans: Sequence[InputScan]) -> tuple[str, ...]:
        """What the user should hear where the table has no age for some of the scans."""
        without = [scan.label for scan in scans if self.of(scan) is None] if self.table else []
        if not without:
            return ()
        which = f"{len(without)} of {len(scans)} scans, {without[0]} first"
        return (f"{self.table}: no age for {which}; see its columns file, participant_id and age",)

    @classmethod
    def from_tsv(cls, path: Path) -> KnownAges:
        """Read columns `age`, `file` (or filename) and/or `participant_id`, and `site` where there is one.

        Raises UsageError.
        """
        columns, rows = read_rows(path)
        file_column = "file" if "file" in columns else "filename"
        if not rows or "age" not in columns or not {file_column, "participant_id"} & set(columns):
            raise UsageError(
                f"{path.name}: needs a column age and a column file or participant_id; "
                f"found: {', '.join(columns) if rows else 'no rows'}.",
                "Write it tab-separated, one scan or participant a line.",
            )
        found: tuple[dict[str, set[float]], ...] = ({}, {})
        places: tuple[dict[str, set[str]], ...] = ({}, {})
        for row in rows:
            file, person = row.get(file_column, ""), row.get("participant_id", "")
            parts = [part for part in Path(file).parts if part not in ("/", "..")]
            by_name = {f"/{parts[-1]}"} if len(parts) > 1 else set()
            keys = {"/".join(parts), *by_name} - {""}, {person, person.removeprefix("sub-")} - {""}
            age, site = years(row.get("age")), printable(row.get("site", ""))
            for ages, sites, names in zip(found, places, keys, strict=True):
                for name in names:
                    if age is not None:
                        ages.setdefault(name, set()).add(age)
                    if site:
                        sites.setdefault(name, set()).add(site)
        return cls(
            certain(found[0]),
            certain(found[1]),
            site_by_file=certain(places[0]),
            site_by_participant=certain(places[1]),
            table=path.name,
        )


def _entry(scan: InputScan, by_file: Mapping[str, T], by_participant: Mapping[str, T]) -> T | None:
    """What a table holds for a scan: under its path, else its file's name, else its participant's."""
    parts = scan.path.parts[1:] if scan.path.is_absolute() else scan.path.parts
    keys = ["/".join(parts[start:]) for start in range(len(parts))]
    if "/" not in scan.label:  # else its folder is told, and is not the one that the table names
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
