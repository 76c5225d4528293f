"""What a run shows of its predictions: the columns of predictions.tsv and of the report, in one table.

A new output column takes two edits:

1. A field of `results.prediction.Prediction`, with how it is read from what was computed of a scan. run.json
   and the sidecars then hold it under the field's name, and earlier results without it are made again.
2. A row of COLUMNS here: its name and meaning, how to read it, its heading in the report. predictions.tsv,
   the data dictionary of hz-bids, the report's table and its panels then show it.

What a table says of a scan besides its predictions (input, status, flags) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hz_runtime.model_space.image_quality import UNITS
from hz_runtime.results.image_quality import quality_words
from hz_runtime.results.prediction import Pair, Prediction

Value = float | Pair | str | None


@dataclass(frozen=True)
class RunOutputs:
    """What the bundle of a run predicts, on which it depends which columns there are.

    negative, positive : labels of its diagnosis network, positive None without one.
    coverage : nominal coverage of its age interval, 0 to 1, or None.  intervals : whether ages have one.
    ages : youngest and oldest of the age network's training, years; None where nobody says.
    calibrated : where ages were calibrated after the bundle was made, in words; "" where they were not.
    spreads : whether the age network answers with a distribution.
    """

    negative: str = ""
    positive: str | None = None
    coverage: float | None = None
    intervals: bool = False
    ages: Pair | None = None
    calibrated: str = ""
    spreads: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> RunOutputs:
        """What the object of run.json says, in its "diagnosis" and "age"; missing keys are no error."""
        labels, age = (run.get(key) for key in ("diagnosis", "age"))
        coverage = age.get("age_interval_coverage") if isinstance(age, Mapping) else None
        coverage = float(coverage) if isinstance(coverage, (int, float)) else None
        negative, positive = "", None
        if isinstance(labels, Mapping) and labels:
            negative, positive = (str(labels.get(key) or "") for key in ("negative", "positive"))
        spreads = isinstance(age, Mapping) and bool(age.get("own_spread"))
        return cls(negative, positive, coverage, coverage is not None, _ages(age), _calibrated(age), spreads)

    @property
    def holds_for(self) -> str:
        """For which ages the ages hold, in words."""
        at = f", and their interval for those that it was calibrated on: {self.calibrated}"
        end = at if self.calibrated else ""
        if self.ages is None:
            return f"people of the age network's training range{end}"
        return (
            f"people of {self.ages[0]:.0f} to {self.ages[1]:.0f} years, whom the age network was trained on"
            f"{end}"
        )

    @property
    def interval_name(self) -> str:
        """ "90 % interval", or just "interval"."""
        return "interval" if self.coverage is None else f"{self.coverage * 100:.0f} % interval"


@dataclass(frozen=True)
class Row:
    """One scan as the columns see it.

    age : known age of its person, years, or None.  quality : measures of its image quality, of run.json.
    """

    prediction: Prediction
    age: float | None
    run: RunOutputs
    quality: Sequence[Mapping[str, Any]] = ()

    def measured(self, measure: str) -> float | None:
        """The value of a measure of image quality; None where it was not measured."""
        value = next((one.get("value") for one in self.quality if one.get("measure") == measure), None)
        return value if isinstance(value, float | int) and not isinstance(value, bool) else None


def _always(_: RunOutputs) -> bool:
    return True


@dataclass(frozen=True)
class Column:
    """One output, in predictions.tsv and in the report.

    names : of its columns in predictions.tsv, each with what it means: one, or two of a pair.
    read : its value of a scan: a number, a pair, text, or None.
    heading : of its column in the report's table; fact : its name in a scan's panel; "" for not there.
        {positive}, {negative} and {interval} stand for the run's own words, as in `legend`.
    units : of BIDS' data dictionary, "" for none.  after : what follows the value in a panel.
    tsv, report : format of its numbers in either.
    legend : what the report says about the column, above its table.
    shown : whether a run has the column.  rare : whether data dictionaries leave it out of other runs.
    """

    names: Mapping[str, str]
    read: Callable[[Row], Value]
    heading: str = ""
    fact: str = ""
    units: str = ""
    after: str = ""
    tsv: str = ".2f"
    report: str = ".1f"
    legend: str = ""
    shown: Callable[[RunOutputs], bool] = _always
    rare: bool = False

    def cells(self, row: Row) -> list[str]:
        """Its cells in predictions.tsv: n/a where there is no value."""
        value = self.read(row)
        if isinstance(value, str):
            return [" ".join(value.split())]
        if value is None:
            return ["n/a"] * len(self.names)
        return [f"{number:{self.tsv}}" for number in (value if isinstance(value, tuple) else (value,))]

    def text(self, row: Row) -> str:
        """Its value in the report, plain text; "" where there is none."""
        value = self.read(row)
        if value is None or isinstance(value, str):
            return value or ""
        numbers = value if isinstance(value, tuple) else (value,)
        return " to ".join(_without_minus_zero(number, self.report) for number in numbers)


def _quality(name: str, meaning: str, measure: str, units: str = "") -> Column:
    """A number of the image quality, of which the report has a list of its own."""
    text = meaning.format(unit=UNITS[measure])
    return Column({name: text}, lambda row: row.measured(measure), units=units, tsv=".4g")


COLUMNS = (
    Column(
        {"age_raw": "Predicted brain age, as the network gave it; holds only for {holds_for}"},
        lambda row: row.prediction.age_raw,
        heading="Age, raw",
        fact="Age, raw",
        units="year",
        after=" years",
        legend="Ages in years; they hold only for {holds_for}.",
    ),
    Column(
        {"age_corrected": "Predicted brain age without its bias by age; holds only for {holds_for}"},
        lambda row: row.prediction.age_corrected,
        heading="corrected",
        fact="Age, corrected",
        units="year",
        after=" years",
        legend="The corrected age has the bias of the age model towards the mean age of its training cohort "
        "taken out; the difference is predicted minus known age.",
    ),
    Column(
        {
            "age_low": "Lower end of the prediction interval of the age",
            "age_high": "Upper end of the prediction interval of the age",
        },
        lambda row: row.prediction.age_interval,
        heading="{interval}",
        fact="{interval}",
        units="year",
        after=" years",
        legend="The {interval} is meant to hold that share of the true ages of people and scans like those "
        "that it was calibrated on.",
        shown=lambda run: run.intervals,
    ),
    Column(
        {"age_spread": "SD of the age network's own distribution of ages; no interval, and never calibrated"},
        lambda row: row.prediction.age_spread,
        heading="own spread",
        fact="Spread by the network itself",
        units="year",
        after=" years",
        legend="The spread is the SD of the distribution that the network answers with: its own uncertainty, "
        "and no interval, for nobody has measured what it covers.",
        shown=lambda run: run.spreads,
        rare=True,
    ),
    Column(
        {"age": "Age that the raw data set states"},
        lambda row: row.age,
        heading="known",
        fact="Known age",
        units="year",
        after=" years",
    ),
    Column(
        {"brain_pad": "Predicted (corrected, if there is one) minus stated age"},
        lambda row: row.prediction.brain_pad(row.age),
        heading="difference",
        units="year",
        report="+.1f",
    ),
    Column(
        {"diagnosis_probability": "Probability of the group named in probability_of, 0 to 1"},
        lambda row: row.prediction.diagnosis_probability,
        heading="Probability of {positive}",
        fact="Probability of {positive}",
        tsv=".4f",
        report=".2f",
        legend="The probability is the network's, of {positive} rather than {negative}, where both are as "
        "common as in its training cohort. It diagnoses nobody.",
        shown=lambda run: run.positive is not None,
    ),
    Column(
        {"probability_of": "Group that diagnosis_probability is about"},
        lambda row: row.run.positive,
        shown=lambda run: run.positive is not None,
    ),
    Column(
        {"image_quality": "Verdict on noise, blur, ghosts and field of the scan: ok, or what to look at"},
        lambda row: quality_words(row.quality),
        heading="Image quality",
        legend="The image quality is that of the brain: noise, blur, ghosts of motion and field; beyond what "
        "sound heads have, the scan is to be looked at.",
    ),
    _quality("noise", "Noise, {unit}", "noise"),
    _quality("blur_mm", "Blur, {unit}", "blur", "mm"),
    _quality("ghosts", "Ghosts of motion, {unit}", "ghosts"),
    _quality("field", "Receive field, {unit}", "field"),
)


def columns_of(run: RunOutputs) -> list[Column]:
    """The columns that a run has, in the order of the table."""
    return [column for column in COLUMNS if column.shown(run)]


def quality_columns() -> list[Column]:
    """Those of the image quality, in the order of the table."""
    names = ["image_quality", "noise", "blur_mm", "ghosts", "field"]
    return [column for column in COLUMNS if next(iter(column.names)) in names]


def descriptions(run: RunOutputs) -> dict[str, dict[str, str]]:
    """What every column of predictions.tsv means, as BIDS' data dictionaries say it."""
    return {
        name: {
            "Description": meaning.format(holds_for=run.holds_for),
            **({"Units": column.units} if column.units else {}),
        }
        for column in COLUMNS
        if column.shown(run) or not column.rare
        for name, meaning in column.names.items()
    }


def _ages(age: object) -> Pair | None:
    """The training range of run.json's "age"."""
    span = age.get("training_range") if isinstance(age, Mapping) else None
    if not isinstance(span, (list, tuple)) or len(span) != 2:
        return None
    return (float(span[0]), float(span[1])) if all(isinstance(end, (int, float)) for end in span) else None


def _calibrated(age: object) -> str:
    """Where run.json's "age" says that ages were calibrated, in words."""
    at = age.get("calibrated_at") if isinstance(age, Mapping) else None
    span, sites = (at.get("age_range"), at.get("sites")) if isinstance(at, Mapping) else (None, None)
    known = _ages({"training_range": span})
    if known is None or not isinstance(sites, (list, tuple)) or not sites:
        return ""
    return f"{', '.join(map(str, sites))}, {known[0]:g} to {known[1]:g} years"


def _without_minus_zero(number: float, spec: str) -> str:
    text = f"{number:{spec}}"
    return f"{0.0:{spec}}" if float(text) == 0 else text
