"""A simulated multi-site cohort with known truth: real anatomy, made-up subjects, made-up scanners.

Each subject's anatomy is made from a real head (simulate_heads, simulate_anatomy) and rendered by the
scanners of sites (simulate_site). Every subject is also rendered at the reference site, which is the truth
that a harmonizer of its other scans should reach, and comes with its label map.

The same `Simulation` gives the same bytes on one machine, whatever the number of workers.
"""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hz_runtime.errors import UsageError
from hz_runtime.io.atomic import atomic_write_bytes, sha256_file
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import write_volume
from hz_train.cohort import read_participants
from hz_train.simulate_anatomy import Subject, Tissues, tissues
from hz_train.simulate_heads import BUILT_IN, F32, Grid, Head, built_in_head, label_head
from hz_train.simulate_site import REFERENCE, SITES, Site, named_site, scan

__all__ = [
    "SITES",
    "Simulation",
    "Site",
    "Subject",
    "anatomy",
    "label_maps",
    "named_site",
    "render",
    "simulate",
    "subjects",
]

COLUMNS = ("file", "participant_id", "site", "age", "sex", "group", "session", "truth", "labels")
LEAST_AGE, MOST_AGE = 20.0, 85.0
WINDOW = 0.5  # share of the age range that one site spans where age and site are confounded
PATIENTS = (0.2, 0.8)  # share of patients at the first and the last site where group and site are
MNI = 4  # NIfTI code of an affine to MNI152 coordinates


@dataclass(frozen=True)
class Simulation:
    """Everything that decides a simulated cohort.

    sites : where subjects are scanned; the first is the reference site that truth is rendered at.
    subjects_per_site : who calls each site home.  travelling : how many of them are scanned at every other
        site as well.  sessions : scans of each subject at each of its sites.
    seed : decides everything random.
    heads : label maps to take anatomy from; none for the built-in MNI152 maps.  head_ages : years, one for
        each of them, None where unknown.
    size : voxels a side of the scans; None for the template's grid of 2 mm.
    ages : youngest and oldest, between which ages are uniform.
    confound_age : sites scan different ages, the reference site the youngest.
    confound_group : sites scan different shares of patients; else half of every site, at every age.
    strength : of the sites' departure from the reference site; 1 is as in `simulate_site.SITES`, 0 leaves
        each only the faint pattern of its own coil. Another one than 1 wants the reference site first.
    effect : size of the disease, of the one in `simulate_anatomy`; 0 for groups that differ in name only.
    """

    sites: tuple[Site, ...] = SITES
    subjects_per_site: int = 90
    seed: int = 0
    heads: tuple[Path, ...] = ()
    head_ages: tuple[float | None, ...] = ()
    size: int | None = 64
    ages: tuple[float, float] = (LEAST_AGE, MOST_AGE)
    confound_age: bool = False
    confound_group: bool = False
    strength: float = 1.0
    effect: float = 1.0
    travelling: int = 0
    sessions: int = 1

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"the sites are {', '.join(names) or 'none'}.", "Name each site once, and at least one."
            )
        if not all(name.isalnum() for name in names):
            raise UsageError(
                f"a site's name becomes part of file names: {', '.join(names)}.", "Use letters and digits."
            )
        if self.subjects_per_site < 1 or self.sessions < 1 or self.seed < 0:
            raise UsageError("a cohort needs at least one subject and one session, and a seed from 0 up.")
        if self.size is not None and not 16 <= self.size <= 128:
            raise UsageError(f"scans of {self.size} voxels a side cannot be simulated.", "Use 16 to 128.")
        if not 0 <= self.ages[0] < self.ages[1] <= 120:
            raise UsageError(f"ages from {self.ages[0]:g} to {self.ages[1]:g} are no range of years.")
        if self.strength != 1 and self.sites[0] != REFERENCE:
            raise UsageError(
                f"a strength of {self.strength:g} is of the departure from {REFERENCE.name}, and the first "
                f"site is {names[0]}.",
                f"Name {REFERENCE.name} first.",
            )
        if self.head_ages and len(self.head_ages) != len(self.heads):
            raise UsageError(f"{len(self.heads)} heads with {len(self.head_ages)} ages.")

    @property
    def grid(self) -> Grid:
        return Grid.of(self.size)

    @property
    def shifted_sites(self) -> tuple[Site, ...]:
        """The sites with `strength` applied; the first stays as it is."""
        return self.sites[0], *(site.at(self.strength) for site in self.sites[1:])

    def site(self, name: str) -> Site:
        """A site by name, with `strength` applied. Raises UsageError."""
        for site in self.shifted_sites:
            if site.name == name:
                return site
        raise UsageError(f"{name!r} is not a site of this simulation.")

    @property
    def reference(self) -> Site:
        return self.sites[0]


def subjects(simulation: Simulation) -> tuple[Subject, ...]:
    """Everyone in the cohort, site by site."""
    everyone: list[Subject] = []
    for number, site in enumerate(simulation.sites):
        rng = np.random.default_rng([simulation.seed, number])
        n = simulation.subjects_per_site
        ages = np.sort(rng.uniform(*_ages(simulation, number), n))
        patient = _patients(simulation, number, n, rng)
        men = rng.permutation(n) < n // 2
        heads = rng.integers(0, max(len(simulation.heads), 1), n)
        for k in rng.permutation(n):
            index = len(everyone)
            everyone.append(
                Subject(
                    index=index,
                    name=f"sub-{index + 1:04d}",
                    home=site.name,
                    age=round(float(ages[k]), 1),
                    sex="M" if men[k] else "F",
                    group="patient" if patient[k] else "control",
                    head=int(heads[k]),
                    seed=simulation.seed,
                )
            )
    return tuple(everyone)


def _ages(simulation: Simulation, number: int) -> tuple[float, float]:
    low, high = simulation.ages
    if not simulation.confound_age or len(simulation.sites) == 1:
        return low, high
    width = WINDOW * (high - low)
    start = low + (high - low - width) * number / (len(simulation.sites) - 1)
    return start, start + width


def _patients(simulation: Simulation, number: int, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) who is a patient among people in the order of age: an even share along it."""
    share = 0.5
    if simulation.confound_group and len(simulation.sites) > 1:
        share = float(np.interp(number, (0, len(simulation.sites) - 1), PATIENTS))
    steps = np.floor((np.arange(n + 1) + rng.random()) * share)
    return np.asarray(np.diff(steps) > 0)


def anatomy(subject: Subject, simulation: Simulation) -> NDArray[np.uint8]:
    """(D, H, W) label map: 0 background, 1 CSF, 2 grey matter, 3 white matter."""
    return _tissues(subject, simulation).labels


def render(subject: Subject, site: Site, simulation: Simulation, session: int = 1) -> F32:
    """One scan, (D, H, W) float32 in stored units, zero outside the brain.

    site : as it is; `simulation.site(name)` has the simulation's strength.
    """
    return scan(_tissues(subject, simulation), site, site.stream(subject, session))


def _tissues(subject: Subject, simulation: Simulation) -> Tissues:
    return tissues(subject, _head(simulation, subject.head), simulation.effect)


def _head(simulation: Simulation, index: int) -> Head:
    if not simulation.heads:
        return _read_head(None, None, simulation.size, 0)
    age = simulation.head_ages[index] if simulation.head_ages else None
    path = simulation.heads[index]
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror}.", "Name label maps.") from error
    return _read_head(path, age, simulation.size, changed)


@lru_cache(maxsize=64)
def _read_head(path: Path | None, age: float | None, size: int | None, _changed: int) -> Head:
    """A head, read once; again where its file has changed."""
    grid = Grid.of(size)
    return built_in_head(grid) if path is None else label_head(path, grid, age)


def simulate(out: Path, simulation: Simulation, workers: int = 2, overwrite: bool = False) -> Path:
    """Write the cohort: scans, truth and label maps under `out`; returns out/participants.tsv.

    The table comes last, so that a folder with one is complete. Files are relative to it:
    `truth` is the same subject at the reference site (for its own scans there, the first of them), `labels`
    its label map. simulation.json records how it was made.
    Raises UsageError where `out` holds a cohort and overwrite is False, or a head cannot be used.
    """
    table = out / "participants.tsv"
    if table.exists() and not overwrite:
        raise UsageError(f"{out.name} holds a cohort.", "Use another folder, or overwrite it (--overwrite).")
    everyone = subjects(simulation)
    for index in range(max(len(simulation.heads), 1)):  # before the workers, so that none is read twice
        _head(simulation, index)
    table.unlink(missing_ok=True)
    for folder in ("scans", "truth", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).glob("sub-*.nii.gz"):  # of another simulation, maybe
            old.unlink()
    with ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(lambda subject: _write_subject(out, simulation, subject), everyone)
        rows = [
            row for part in tqdm(jobs, total=len(everyone), desc="simulating", disable=None) for row in part
        ]
    atomic_write_bytes(out / "simulation.json", (json.dumps(record(simulation), indent=1) + "\n").encode())
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    atomic_write_bytes(table, text.getvalue().encode())
    return table


def record(simulation: Simulation) -> dict[str, object]:
    """The simulation as plain JSON types; heads by name and sha256, without their folders."""
    plain = asdict(simulation)
    plain["sites"] = [asdict(site) for site in simulation.shifted_sites]
    plain["reference"] = simulation.reference.name
    plain["heads"] = [{"name": p.name, "sha256": sha256_file(p)} for p in simulation.heads] or BUILT_IN
    return plain


def _write_subject(out: Path, simulation: Simulation, subject: Subject) -> list[tuple[object, ...]]:
    """One subject's files; its rows of the table."""
    made = _tissues(subject, simulation)
    geometry = Geometry.from_affine(made.grid.shape, made.grid.affine, code=MNI)

    def write(file: str, site: Site, session: int) -> None:
        write_volume(out / file, scan(made, site, site.stream(subject, session)), geometry)

    labels = f"labels/{subject.name}_dseg.nii.gz"
    # float32 keeps whole numbers whole; int16 with a slope would not.
    write_volume(out / labels, made.labels.astype(np.float32), geometry, dtype="float32")
    visited = _visited(simulation, subject)
    if simulation.reference in visited:
        truth = _file(subject, simulation.reference, 1)
    else:
        truth = f"truth/{subject.name}_T1w.nii.gz"
        write(truth, simulation.reference, 1)
    rows: list[tuple[object, ...]] = []
    who = (f"{subject.age:g}", subject.sex, subject.group)
    for site in visited:
        for session in range(1, simulation.sessions + 1):
            file = _file(subject, site, session)
            write(file, site, session)
            rows.append((file, subject.name, site.name, *who, session, truth, labels))
    return rows


def _file(subject: Subject, site: Site, session: int) -> str:
    return f"scans/{subject.name}_ses-{session}_acq-{site.name}_T1w.nii.gz"


def _visited(simulation: Simulation, subject: Subject) -> list[Site]:
    """The subject's own site, and every other one where it travels."""
    home = simulation.site(subject.home)
    travels = subject.index % simulation.subjects_per_site < simulation.travelling
    return [home, *(site for site in simulation.shifted_sites if travels and site != home)]


def label_maps(table: Path) -> tuple[tuple[Path, ...], tuple[float | None, ...]]:
    """Label maps of a cohort and the ages that go with them, from its participants.tsv.

    A scan's map is the file its `labels` column names, or else the one beside it whose name has _tissues or
    _dseg in place of _T1w. Scans without one are left out.
    Raises UsageError where no scan has one, or the table cannot be read.
    """
    found: dict[Path, float | None] = {}
    for scanned in read_participants(table).scans:
        path = scanned.labels or _beside(scanned.path)
        if path is not None:
            found.setdefault(path.resolve(), scanned.age)
    if not found:
        raise UsageError(
            f"no scan of {table.name} has a label map.",
            "Name them in a column labels, or beside each scan: NAME_T1w.nii.gz and NAME_dseg.nii.gz.",
        )
    return tuple(found), tuple(found.values())


def _beside(path: Path) -> Path | None:
    names = [path.name.replace("_T1w", suffix) for suffix in ("_tissues", "_dseg")]
    return next((path.with_name(n) for n in names if n != path.name and path.with_name(n).is_file()), None)
