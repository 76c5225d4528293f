"""ComBat: location and scale of every feature at every site, shrunk by empirical Bayes.

Johnson, Li & Rabinovic 2007, parametric priors, with a reference batch as in Fortin's neuroCombat, whose
names and estimators are followed: means and variances of the reference site are the standard, and its
scans stay as they are. There are no covariates here (`baselines.ComBat` says why). Written out, because
under numpy 2 neuroCombat 0.2.12 neither takes a reference batch nor applies what it has learned, and
neuroHarmonize 2.5 refuses numpy 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hz_runtime.errors import UsageError

F64 = NDArray[np.float64]

TOLERANCE = 1e-6  # relative change of the last iteration
ITERATIONS = 1000


@dataclass(frozen=True)
class CombatModel:
    """What ComBat has learned of p features.

    mean, sd : (p,) of the standard.  gamma, delta : by site, (p,) additive and multiplicative effect of
    standardised features.
    """

    mean: F64
    sd: F64
    gamma: dict[str, F64]
    delta: dict[str, F64]

    def apply(self, features: F64, sites: Sequence[str]) -> F64:
        """(n, p) features of these sites, site effects taken out. Raises UsageError for an unknown site."""
        unknown = sorted(set(sites) - set(self.gamma))
        if unknown:
            raise UsageError(
                f"ComBat was not fitted on site {', '.join(unknown)}.", "Add its scans to the training side."
            )
        gamma = np.stack([self.gamma[site] for site in sites])
        delta = np.stack([self.delta[site] for site in sites])
        standardised = (features - self.mean) / self.sd
        made: F64 = (standardised - gamma) / np.sqrt(delta) * self.sd + self.mean
        return made


def fit_combat(features: F64, sites: Sequence[str], reference: str | None = None) -> CombatModel:
    """Learn site effects from (n, p) features, p at least 2, every one varying at every site.

    reference : site whose mean and variance are the standard and which is left alone; None takes the mean
        of all scans and the variance within sites, as in Johnson 2007.
    """
    names = np.asarray(sites)
    rows = {str(site): np.flatnonzero(names == site) for site in np.unique(names)}
    residuals = features.copy()
    for index in rows.values():
        residuals[index] -= features[index].mean(0)
    standard = rows[reference] if reference is not None else np.arange(len(features))
    mean = features[standard].mean(0)
    sd = np.sqrt(np.square(residuals[standard]).mean(0))
    gamma, delta = {}, {}
    for site, index in rows.items():
        if site == reference:
            gamma[site], delta[site] = np.zeros_like(mean), np.ones_like(mean)
        else:
            gamma[site], delta[site] = _site_effects((features[index] - mean) / sd)
    return CombatModel(mean, sd, gamma, delta)


def _site_effects(standardised: F64) -> tuple[F64, F64]:
    """(gamma, delta), each (p,), of one site's standardised features (n, p): posterior means.

    The priors, normal for gamma and inverse gamma for delta, are those of the site's own p features by the
    method of moments; the two posteriors depend on each other and are iterated (Johnson 2007, section 3.1).
    """
    n = len(standardised)
    gamma_hat, delta_hat = standardised.mean(0), standardised.var(0, ddof=1)
    centre, spread = float(gamma_hat.mean()), float(gamma_hat.var(ddof=1))
    m, s2 = float(delta_hat.mean()), max(float(delta_hat.var(ddof=1)), 1e-12)
    shape, scale = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    gamma, delta = gamma_hat, delta_hat
    for _ in range(ITERATIONS):
        was = gamma, delta
        gamma = (spread * n * gamma_hat + delta * centre) / (spread * n + delta)
        delta = (0.5 * np.square(standardised - gamma).sum(0) + scale) / (n / 2 + shape - 1)
        if all(
            np.allclose(a, b, rtol=TOLERANCE, atol=1e-12) for a, b in zip(was, (gamma, delta), strict=True)
        ):
            break
    return gamma, delta
