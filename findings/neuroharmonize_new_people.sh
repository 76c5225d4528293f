#!/usr/bin/env bash
# neuroHarmonize: a ComBat model learned on 100 people of three sites (site, sex, age) and applied, with harmonizationApply,
# to people who were in it, so that the truth is what learning gave them.
#
# Guessed: columns of the covariates go by their names, and what a person gets does not depend on who else is in the call.
# Seen (neuroHarmonize 2.5.2): columns go by their places: with sex and age in the other order values are up to 15 off,
# five of their standard deviations, without a word. Where age is a smooth term, the people of one site alone get values
# that are hundreds off: of the absent sites, the columns of sex and age take the places, so that a year of age counts as
# a site. With a linear age the same call raises a ValueError; all people at once come out as they were learned.
# Why hz cares: new scans of one site are what harmonization is for, and such a table of volumes looks like any other.
# hz's own ComBat, a baseline of its studies, goes by the sites' names alone and refuses those that it was not fitted on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  neuroHarmonize==2.5.2 neuroCombat==0.2.12 statsmodels==0.15.0 numpy==1.26.4 pandas==2.3.3
"$work/venv/bin/python" - 2>"$work/errors" <<'PY' || { tail -n 3 "$work/errors"; exit 1; }
import sys

import numpy as np
import pandas as pd
from neuroHarmonize import harmonizationApply, harmonizationLearn

rng = np.random.default_rng(0)
site = np.repeat([0, 1, 2], [40, 30, 30])
age, sex = rng.uniform(20, 80, 100), rng.integers(0, 2, 100)
values = 100 + np.outer(age, rng.normal(0, 0.1, 50)) + np.outer(sex, rng.normal(0, 1, 50)) + rng.normal(0, 1, (100, 50))
values += rng.normal(0, 3, (3, 50))[site]
people = pd.DataFrame({"SITE": np.array(["A", "B", "C"])[site], "sex": sex, "age": age})
one_site = np.flatnonzero(people.SITE == "B")


def off(model, learned, rows, columns):
    """The largest difference between what a person got when the model was learned and what harmonizationApply gives."""
    given = people.iloc[rows][columns].reset_index(drop=True)
    return float(np.abs(harmonizationApply(values[rows].copy(), given, model) - learned[rows]).max())


everybody, columns = np.arange(100), ["SITE", "sex", "age"]
linear, by_linear = harmonizationLearn(values.copy(), people.copy())
smooth, by_smooth = harmonizationLearn(values.copy(), people.copy(), smooth_terms=["age"])
found = {
    "linear, all people": off(linear, by_linear, everybody, columns),
    "linear, sex and age in the other order": off(linear, by_linear, everybody, ["SITE", "age", "sex"]),
    "smooth, all people": off(smooth, by_smooth, everybody, columns),
    "smooth, the people of one site": off(smooth, by_smooth, one_site, columns),
}
try:
    off(linear, by_linear, one_site, columns)
    found["linear, the people of one site"] = 0.0
except ValueError:
    print("linear, the people of one site: ValueError")
print(f"standard deviation of a value: {values.std(0).mean():.1f}")
for what, largest in found.items():
    print(f"{what}: up to {largest:.3g} off")
wrong = [what for what, largest in found.items() if largest > 10]
right = [what for what, largest in found.items() if largest < 1e-6]
same = wrong == ["linear, sex and age in the other order", "smooth, the people of one site"] and len(right) == 2
sys.exit(0 if same else f"changed: wrong are {wrong}, right are {right}")
PY
