"""A shard: one of the parts into which a list of scans is divided for as many jobs. Nothing is read here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hz_runtime.batch.inputs import InputScan
from hz_runtime.errors import UsageError

MOST_SHARDS = 100_000
ARRAY = "array"  # in the place of I/N: what the scheduler of an array of jobs says
# Of each scheduler: the variables of this element, the first, the step, and how many there are or the last.
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
_GRID_ENGINE = ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_STEPSIZE", "SGE_TASK_LAST")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1. Raises UsageError where there is no such part."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise UsageError(
                f"there is no shard {self.index}/{self.count}.",
                f"Count from 1, up to {MOST_SHARDS} at most:  --shard 1/12",
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """What its files are called: sorted by name, they are in order."""
        width = len(str(self.count))
        return f"{self.index:0{width}}-of-{self.count}"

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """The shard that "3/12" names, or ARRAY with the variables of Slurm's or Grid Engine's element.

        Raises UsageError for another text, or where the variables are missing or do not belong together.
        """
        if text == ARRAY:
            return cls._of_array(environment)
        found = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
        if not found:
            raise UsageError(
                f"{text!r} is no shard.", f"Write --shard 3/12, or --shard {ARRAY} in a job array."
            )
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Shard:
        for variables in (_SLURM, _GRID_ENGINE):
            values = [environment.get(variable, "") for variable in variables]
            if not all(value.isdigit() for value in (values[0], values[3])):
                continue
            element, first, step, last = (int(v) if v.isdigit() else 1 for v in values)
            count = last if variables is _SLURM else (last - first) // max(step, 1) + 1
            place, rest = divmod(element - first, max(step, 1))
            if rest or not 0 <= place < count:
                raise UsageError(
                    f"element {element} of this job array is none of {count} that begin with {first}: "
                    "the array has gaps.",
                    "Say which shard it is:  --shard 3/12",
                )
            return cls(place + 1, count)
        raise UsageError(
            "this is no element of a job array: its variables, such as SLURM_ARRAY_TASK_ID, are missing.",
            "Say which shard it is:  --shard 3/12",
        )

    def takes(self, scans: Sequence[InputScan]) -> list[InputScan]:
        """Its part of a run's scans, in their order: the same one whatever that order is.

        Parts differ by one scan at most. Neighbours by name, which often cost alike, go to different ones.
        """
        mine = {scan.name for scan in sorted(scans, key=lambda s: s.name)[self.index - 1 :: self.count]}
        return [scan for scan in scans if scan.name in mine]
