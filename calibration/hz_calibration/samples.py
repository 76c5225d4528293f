"""Representative scans: what activation ranges and errors are measured on.

Chosen evenly over the sites, and within a site by content hash: the same folder gives the same scans on any
machine and in any order, and nobody picks the ones that suit. Only real scans count. Ranges that are
collected on noise or constants fit no brain, so that every scan must pass the recipe's own checks, lie within
the training cohort's range where that is known, and be smooth as tissue is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import HzError, ScanError, UsageError
from hz_runtime.io.atomic import sha256_file, shown
from hz_runtime.io.participants import certain, read_table
from hz_runtime.io.scan_files import find_scans
from hz_runtime.io.volume import Volume, read_volume
from hz_runtime.model_space.foreground import foreground_threshold
from hz_runtime.model_space.recipe import ModelInput, Recipe, outside, to_model_space

F32 = NDArray[np.float32]
Say = Callable[[str], None]

DEFAULT_COUNT = 16
LEAST_SMOOTHNESS = 0.4  # 134 heads of four sites had 0.69 to 0.95; noise has 0
UNKNOWN_SITE = "unknown"


@dataclass(frozen=True)
class Sample:
    """A scan that was used: sha256 of its file, and its site."""

    sha256: str
    site: str


@dataclass(frozen=True)
class Samples:
    """Prepared scans.

    grids : (n, D, H, W) float32 in [0, 1].  scans : what they came from, in the same order.
    refused : one line for every scan that was passed over, with the reason.
    """

    grids: F32
    scans: tuple[Sample, ...]
    refused: tuple[str, ...] = ()


def choose(
    paths: Sequence[Path],
    recipe: Recipe,
    *,
    count: int = DEFAULT_COUNT,
    participants: Path | None = None,
    statistics: Mapping[str, Mapping[str, float]] | None = None,
    say: Say = lambda _: None,
) -> Samples:
    """Up to `count` real scans, spread over the sites, prepared by `recipe`.

    paths : files, and folders that are searched.  participants : a table with the columns file and site;
    without one (or without a row for a scan) the folder of a scan is its site.  statistics : of the training
    cohort, from the bundle; a scan outside its range is passed over.  say : called with a line for every scan
    that is passed over, and every folder that cannot be listed.
    A scan that is passed over is replaced by the next of its site.
    Raises UsageError where a file cannot be read, or no scan is left.
    """
    if count < 1:
        raise UsageError(f"{count} scans make no calibration.", "Use --count 8 or more.")
    queues = _by_site(_files(paths, say), _sites(participants) if participants else {})
    grids: list[F32] = []
    scans: list[Sample] = []
    refused: list[str] = []
    for sha256, site, path in _turns(queues):
        if len(scans) == count:
            break
        try:
            volume = read_volume(path)
            prepared = to_model_space(volume, recipe, statistics)
            check_real(volume, prepared, statistics or {})
        except (ScanError, _Unreal) as error:
            refused.append(f"{shown(path)}: passed over: {error.message}")
            say(refused[-1])
            continue
        grids.append(prepared.grid)
        scans.append(Sample(sha256, site))
    if not scans:
        raise UsageError(
            f"none of {len(refused)} scans can be used for calibration."
            + (f" The first: {refused[0]}" if refused else ""),
            "Give real, skull-stripped scans of the kind that the network will see.",
        )
    return Samples(np.stack(grids), tuple(scans), tuple(refused))


class _Unreal(HzError):
    """A volume that passes as a file and is no scan of a head."""


def check_real(volume: Volume, prepared: ModelInput, statistics: Mapping[str, Mapping[str, float]]) -> None:
    """Raise HzError for a volume that no scanner made: noise, or unlike the training cohort.

    Smoothness is that of the scan's own voxels: on the network's grid even noise has been interpolated.
    """
    rough = smoothness(volume.data)
    if rough < LEAST_SMOOTHNESS:
        raise _Unreal(f"neighbouring voxels correlate by {rough:.2f} only: this is noise, not tissue.")
    if strange := outside(prepared.features, statistics):
        raise _Unreal(f"{strange[0]}.")


def smoothness(data: F32) -> float:
    """Mean correlation of foreground voxels with their next neighbours, over the three axes, in [-1, 1].

    data : (I, J, K) float32. 0 where the foreground is constant: no anatomy is.
    """
    mask = data > foreground_threshold(data)
    found = []
    for axis in range(3):
        one, other = np.moveaxis(data, axis, 0)[:-1], np.moveaxis(data, axis, 0)[1:]
        both = np.moveaxis(mask, axis, 0)[:-1] & np.moveaxis(mask, axis, 0)[1:]
        a, b = one[both].astype(np.float64), other[both].astype(np.float64)
        spread = float(a.std() * b.std()) if a.size else 0.0
        found.append(float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else 0.0)
    return float(np.mean(found))


def _files(paths: Sequence[Path], say: Say) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += sorted(find_scans(path, say)) if path.is_dir() else [path]
    missing = [p for p in files if not p.is_file()]
    if missing or not files:
        what = (
            f"{shown(missing[0])} does not exist." if missing else "there are no scans (.nii, .nii.gz, .mgz)."
        )
        raise UsageError(what, "Give scans, or a folder that holds some.")
    return files


def _by_site(files: Sequence[Path], sites: Mapping[str, str]) -> dict[str, list[tuple[str, str, Path]]]:
    """(sha256, site, path) of every distinct scan, by site, sorted by sha256."""
    queues: dict[str, list[tuple[str, str, Path]]] = {}
    seen: set[str] = set()
    for path in files:
        try:
            sha256 = sha256_file(path)
        except OSError as error:
            raise UsageError(
                f"{shown(path)} cannot be read ({error.strerror}).", "Make it readable, or leave it out."
            ) from error
        if sha256 in seen:
            continue  # the same scan under two names counts once
        seen.add(sha256)
        site = (
            sites.get(str(path.resolve()))
            or sites.get(path.name)
            or path.absolute().parent.name  # of the link: DataLad's lead to folders named by content
            or UNKNOWN_SITE
        )
        queues.setdefault(site, []).append((sha256, site, path))
    return {site: sorted(queue, key=lambda item: item[0]) for site, queue in sorted(queues.items())}


def _turns(queues: Mapping[str, Sequence[tuple[str, str, Path]]]) -> list[tuple[str, str, Path]]:
    """One scan of every site, then the next of every site, until all are given."""
    longest = max(map(len, queues.values()), default=0)
    return [queue[k] for k in range(longest) for queue in queues.values() if k < len(queue)]


def _sites(path: Path) -> dict[str, str]:
    """Site by path and by file name, of a participants.tsv.

    Raises UsageError for a table without these columns.
    """
    table = read_table(path)
    table.need("file", "site")
    known: dict[str, str] = {}
    by_name: dict[str, set[str]] = {}
    for row in table.rows:
        file, site = row.get("file"), row.get("site")
        if file and site:
            known[str((path.parent / file).resolve())] = site
            by_name.setdefault(Path(file).name, set()).add(site)
    # By name alone only where that means one site: scans may lie elsewhere than the table says.
    return certain(by_name) | known
