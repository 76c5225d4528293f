"""Age-bias correction: brain-age models pull everyone towards the mean age of their cohort.

The correction of Cole et al. 2018 (and Smith et al. 2019): fit raw ~ slope * age + intercept on held-out
predictions, then report (raw - intercept) / slope. Fitted on the training fit it would correct nothing,
since a network that has memorised its cohort shows no bias there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hz_runtime.manifest import AgeBias

F64 = NDArray[np.float64]

LEAST_SLOPE = 0.2  # below it the correction multiplies a network's noise by more than five
LEAST_N = 10


def fit_age_bias(ages: F64, held_out_predictions: F64, how: str) -> AgeBias | None:
    """Least-squares fit of raw ~ slope * age + intercept.

    ages, held_out_predictions : (n,) years; every prediction from a model that never saw that subject.
    how : where the predictions come from, for the bundle.
    Returns None where a correction would do harm: fewer than 10 subjects, one single age, or a slope under
    0.2 (the prediction hardly depends on age).
    """
    if len(ages) < LEAST_N or float(np.std(ages)) == 0:
        return None
    slope, intercept = np.polyfit(
        np.asarray(ages, np.float64), np.asarray(held_out_predictions, np.float64), 1
    )
    if slope < LEAST_SLOPE:
        return None
    return AgeBias(float(slope), float(intercept), len(ages), how)
