"""How well the site of held-out scans can be told after a method, by classifiers of different ambition."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hz_train.cohort import Scan
from hz_train.datasets import ModelInputs
from hz_train.studies.classifier import (
    Fitted,
    Fold,
    Linear,
    Training,
    fit_cnn,
    fit_linear,
    scrambled,
    subject_folds,
)
from hz_train.studies.estimate import balanced, estimates
from hz_train.studies.result import Column, Metric, Row
from hz_train.studies.views import ALL, View, flat_blocks

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CLASSIFIERS = {
    "frozen": "CNN frozen",
    "reseeded": "CNN re-seeded",
    "converged": "CNN converged",
    "linear_frozen": "linear frozen",
    "linear": "linear converged",
}
CONTROLS = {"scrambled": "converged", "linear_scrambled": "linear"}  # asked of scrambled sites
RECALL = tuple(Column(name, title) for name, title in CLASSIFIERS.items())
ACCURACY = (*RECALL, Column("chance", "Chance"), Column("settled", "Settled", "%", 0))
REAL, SCRAMBLED = "real", "scrambled"


@dataclass(frozen=True)
class AuditPlan:
    """short : the schedule that frozen and re-seeded classifiers share.  longest : epochs after which the
    converged one gives up; the report says how often it did.  folds : of the held-out subjects."""

    short: Training = Training()
    longest: int = 80
    folds: int = 3


PLANS = {"quick": AuditPlan(Training(epochs=3, width=4), longest=4, folds=2)}


class SiteAudit:
    """The question for one seed; asked of the raw view first, whose classifiers become the frozen ones.

    Cross-validation over the held-out subjects: the classifier that names a subject's site has learned from
    the training side and from the other folds, never from that subject. The training side's scans taught
    the harmonizer too, and are in it as the method shows them.
    """

    def __init__(
        self, training: ModelInputs, test: ModelInputs, plan: AuditPlan, seed: int, device: str
    ) -> None:
        self.plan, self.seed, self.device = plan, seed, device
        self.scans: tuple[Scan, ...] = test.scans
        self.names = sorted({s.site for s in test.scans})
        everyone = [s for part in (training, test) for s in part.scans if s.site in self.names]
        self.known = np.array([s.site in self.names for s in training.scans], bool)
        subjects = [s.subject for s in everyone]
        sites = [s.site for s in everyone]
        self.codes = self._codes(sites)
        self.false_codes = self._codes(scrambled(sites, subjects, seed))
        self.first = len(everyone) - len(test)  # rows before it are the training side's
        self.subjects = [s.subject for s in test.scans]
        self.folds = subject_folds([s.site for s in test.scans], self.subjects, plan.folds, seed)
        self.frozen: list[Fitted] = []
        self.frozen_linear: list[Linear] = []

    def _codes(self, sites: list[str]) -> I64:
        return np.array([self.names.index(site) for site in sites], np.int64)

    def rows(self, view: View) -> tuple[list[Row], list[Row]]:
        """(balanced accuracy over all sites, for real sites and for scrambled ones; recall of each site)."""
        asked = _Asked(self, view)
        asked.linear()
        if not view.features:
            asked.networks()
        found: dict[str, list[Metric]] = {}
        for name, correct in asked.correct.items():
            codes = self.false_codes if name in CONTROLS else self.codes
            sites = [self.names[c] for c in codes[self.first :]]
            found[name] = estimates(balanced(correct, sites, self.names), self.subjects)
        chance = {"chance": Metric(1 / len(self.names))}
        overall = {name: found[name][0] for name in CLASSIFIERS if name in found} | chance
        if asked.settled:
            overall["settled"] = Metric(100 * float(np.mean(asked.settled)))
        control = {CONTROLS[name]: found[name][0] for name in CONTROLS if name in found} | chance
        everyone = len(set(self.subjects))
        accuracy = [
            Row(view.name, ALL, metrics, everyone, self.seed, self._how(), {"sites": sites})
            for sites, metrics in ((REAL, overall), (SCRAMBLED, control))
        ]
        recall = []
        for k, place in enumerate(self.names, start=1):
            metrics = {name: found[name][k] for name in CLASSIFIERS if name in found}
            people = {s.subject for s in self.scans if s.site == place}
            recall.append(Row(view.name, place, metrics, len(people), self.seed, self._how()))
        return accuracy, recall

    def _how(self) -> str:
        return (
            f"held-out subjects, {len(self.folds)} folds; classifiers learned from the other folds and the "
            "training side; 95 % bootstrap intervals over subjects"
        )


@dataclass
class _Asked:
    """One view under questioning.

    correct : by classifier, (n,) 1 where a held-out scan's site was named.  settled : of converged CNNs.
    """

    audit: SiteAudit
    view: View
    correct: dict[str, F64] = field(default_factory=dict)
    settled: list[bool] = field(default_factory=list)

    def _fits(self) -> list[tuple[I64, I64, I64]]:
        """For each fold: rows of everyone to learn from, rows of everyone to name, and these of the test."""
        first = self.audit.first
        side = np.arange(first)
        folds: list[Fold] = self.audit.folds
        return [(np.concatenate([side, first + learn]), first + named, named) for learn, named in folds]

    def _everyone(self) -> F32:
        return np.concatenate([self.view.training[self.audit.known], self.view.test])

    def _note(self, name: str, named: I64, right: NDArray[np.bool_]) -> None:
        self.correct.setdefault(name, np.full(len(self.audit.scans), np.nan))[named] = right

    def linear(self) -> None:
        audit, x = self.audit, flat_blocks(self._everyone())
        penalty, sites = audit.plan.short.penalty, len(audit.names)
        for fold, (learn, ask, named) in enumerate(self._fits()):
            fitted = fit_linear(x[learn], audit.codes[learn], sites, penalty)
            if self.view.raw:
                audit.frozen_linear.append(fitted)
            control = fit_linear(x[learn], audit.false_codes[learn], sites, penalty)
            self._note("linear_frozen", named, audit.frozen_linear[fold].predict(x[ask]) == audit.codes[ask])
            self._note("linear", named, fitted.predict(x[ask]) == audit.codes[ask])
            self._note("linear_scrambled", named, control.predict(x[ask]) == audit.false_codes[ask])

    def networks(self) -> None:
        audit, x = self.audit, self._everyone()
        short = audit.plan.short
        long = short.converged(audit.plan.longest)
        for fold, (learn, ask, named) in enumerate(self._fits()):

            def fit(
                codes: I64, training: Training, start: int, learn: I64 = learn, fold: int = fold
            ) -> Fitted:
                seed = 1000 * audit.seed + 10 * fold + start
                return fit_cnn(x[learn], codes[learn], len(audit.names), training, seed, audit.device)

            if self.view.raw:
                audit.frozen.append(fit(audit.codes, short, 0))
            converged = fit(audit.codes, long, 2)
            self.settled.append(converged.settled)
            asked = {
                "frozen": (audit.frozen[fold], audit.codes),
                "reseeded": (fit(audit.codes, short, 1), audit.codes),
                "converged": (converged, audit.codes),
                "scrambled": (fit(audit.false_codes, long, 3), audit.false_codes),
            }
            for name, (fitted, codes) in asked.items():
                self._note(name, named, fitted.predict(x[ask]) == codes[ask])
