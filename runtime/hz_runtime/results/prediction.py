"""What the networks predict of one scan: its ages, their interval, a probability.

Files hold the fields flat, under their own names: run.json in a scan's object, sidecars in "hz.predictions".
A field is a number, a pair of numbers, or None where there is nothing to say; `output_columns` says how
tables and reports show it, and how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hz_runtime.inference.predictors import Ages
    from hz_runtime.model_space.recipe import ModelInput

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """What was computed of one scan, for the fields of `Prediction` to be read from.

    model_input : what the networks were given.  harmonized : (D, H, W) float32 in [0, 1].
    ages, probabilities : of its whole batch, None without such a network; `row` is the scan's place there.
    corrects : whether the bundle corrects ages; else `ages.corrected` only repeats the raw ones.
    """

    model_input: ModelInput
    harmonized: F32
    row: int
    ages: Ages | None = None
    corrects: bool = False
    probabilities: F64 | None = None


def _read(read: Callable[[Answers], float | Pair | None]) -> Any:
    """A field, and how it is read from what was computed."""
    return field(default=None, metadata={"read": read})


@dataclass(frozen=True)
class Prediction:
    """Predictions of one scan, rounded to 1/10000.

    age_raw, age_corrected : years, as the network gave it, and without its bias by age; None without an age
        network or without correction.
    age_interval : lower and upper limit around `age`, years; None where the bundle holds no interval.
    age_spread : SD of the distribution that the network answers with, years: its own uncertainty, whose
        coverage nobody has measured. None of a network that gives an age alone.
    diagnosis_probability : of the bundle's positive label, 0 to 1; None without a diagnosis network.
    """

    age_raw: float | None = _read(
        lambda answers: None if answers.ages is None else number_at(answers.ages.raw, answers.row)
    )
    age_corrected: float | None = _read(
        lambda answers: (
            number_at(answers.ages.corrected, answers.row)
            if answers.ages is not None and answers.corrects
            else None
        )
    )
    age_interval: Pair | None = _read(
        lambda answers: None if answers.ages is None else pair_at(answers.ages.interval, answers.row)
    )
    age_spread: float | None = _read(
        lambda answers: None if answers.ages is None else number_at(answers.ages.spreads, answers.row)
    )
    diagnosis_probability: float | None = _read(lambda answers: number_at(answers.probabilities, answers.row))

    @classmethod
    def of(cls, answers: Answers) -> Prediction:
        """Every field as it is read from what was computed of the scan."""
        return cls(**{one.name: one.metadata["read"](answers) for one in fields(cls)})

    @property
    def age(self) -> float | None:
        """The predicted age to show, years: the corrected one where there is one."""
        return self.age_raw if self.age_corrected is None else self.age_corrected

    def brain_pad(self, known: float | None) -> float | None:
        """Predicted minus known age, years; None where either is missing."""
        return None if self.age is None or known is None else self.age - known

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the order of the fields."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Prediction:
        """What `to_dict` gave; keys that are missing are None, others than the fields' do not matter.

        Raises TypeError or ValueError for values that are no numbers.
        """
        return cls(**{one.name: _stored(stored.get(one.name)) for one in fields(cls)})


def number_at(values: F64 | None, row: int) -> float | None:
    """Element `row` of values (N,), rounded to 1/10000; None where there are none or it is not finite."""
    if values is None:
        return None
    value = float(np.asarray(values).reshape(-1)[row])
    return round(value, 4) if np.isfinite(value) else None


def pair_at(values: F64 | None, row: int) -> Pair | None:
    """Row `row` of values (N, 2), as `number_at` gives a number."""
    if values is None or not np.isfinite(values[row]).all():
        return None
    low, high = np.round(values[row], 4).tolist()
    return low, high


def _stored(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        low, high = value
        return float(low), float(high)
    return None if value is None else float(value)
