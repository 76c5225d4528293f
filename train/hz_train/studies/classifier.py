"""Can the site still be told? Classifiers of the site, and how they are asked.

Harmonizers that are trained against a discriminator learn to fool that one; a classifier trained once on
raw scans (`frozen`) is fooled by any change of intensity, harmonized or not. Whether the site is gone is
asked by classifiers that are trained on what the method made: with the same short schedule and another
start (`re-seeded`), and until their own loss has nothing left to give (`converged`), beside a linear one
whose optimum is unique.

What they do not know: an answer at chance is no proof of absence. A small cohort teaches little, so that
the same classifier's accuracy on raw scans, and with scrambled sites, belongs beside every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from hz_train.fit import Run, Schedule

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Fold = tuple[I64, I64]


@dataclass(frozen=True)
class Training:
    """How a site classifier is trained.

    epochs : at most.  settled : stop once the epoch's mean cross-entropy is below; None never stops early.
    patience : epochs without a better loss after which the rate falls to a tenth, and after which, the second
        time, training ends; they count only where `settled` is given.
    width : channels of the first conv.  penalty : of the linear classifier's squared weights.
    """

    epochs: int = 20
    settled: float | None = None
    patience: int = 12
    batch: int = 8
    lr: float = 1e-3
    width: int = 8
    penalty: float = 1.0

    def converged(self, epochs: int) -> Training:
        """The same until nothing is left to learn, for at most `epochs`."""
        return replace(self, epochs=epochs, settled=0.02)


class SiteCNN(nn.Module):
    """(N, 1, D, H, W) float32 to (N, sites) logits: three strided convs, pooling, one linear layer.

    Pooling keeps the mean of each octant and the peak of the whole: a peak does not hang on a brain's size.
    Batch norm and not instance norm, which would take away the very gain and offset that tell scanners apart.
    Inputs are standardised with the mean and sd of the training volumes, which are kept like weights.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, sites: int, width: int = 8) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for k in range(3):
            layers += [
                nn.Conv3d(channels[k], channels[k + 1], 4, 2, 1, bias=False),
                nn.BatchNorm3d(channels[k + 1]),
                nn.LeakyReLU(0.1),
            ]
        self.features = nn.Sequential(*layers)
        self.mean_of = nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten())
        self.peak_of = nn.Sequential(nn.AdaptiveMaxPool3d(1), nn.Flatten())
        self.head = nn.Linear(9 * channels[-1], sites)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("sd", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        found = self.features((x - self.mean) / self.sd)
        logits: Tensor = self.head(torch.cat([self.mean_of(found), self.peak_of(found)], dim=1))
        return logits


@dataclass(frozen=True)
class Fitted:
    """A trained SiteCNN. settled : whether it stopped because its loss was small or no longer fell."""

    network: SiteCNN
    run: Run
    epochs: int
    settled: bool

    @torch.no_grad()
    def predict(self, volumes: F32) -> I64:
        """(n, D, H, W) to (n,) site codes."""
        codes = [int(self.network(self.run.put(v[None])).argmax()) for v in volumes]
        return np.array(codes, np.int64)


def fit_cnn(
    volumes: F32, codes: I64, sites: int, training: Training, seed: int, device: str = "auto"
) -> Fitted:
    """Train a SiteCNN.

    volumes : (n, D, H, W) float32.  codes : (n,) from 0 to sites - 1. Every site weighs the same.
    Volumes are flipped left to right and shifted by a voxel at random: a site should be told by how its
    scanner shows brains, not by where a head lay.
    """
    run = Run.start(Schedule(seed=seed, lr=training.lr, batch=training.batch), device)
    torch.manual_seed(seed)
    network = SiteCNN(sites, training.width)
    network.mean.fill_(float(volumes.mean()))
    network.sd.fill_(max(float(volumes.std()), 1e-6))
    network.to(run.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.lr, weight_decay=1e-4)
    counts = np.bincount(codes, minlength=sites)
    weights = torch.from_numpy(np.where(counts > 0, codes.size / np.maximum(counts, 1), 0).astype(np.float32))
    weights = (weights / max(1, int((counts > 0).sum()))).to(run.device)
    plateau = _Plateau(training)
    for epoch in range(training.epochs):
        loss = _one_epoch(network, optimizer, volumes, codes, weights, run, epoch)
        if plateau.ends(loss, optimizer):
            return Fitted(_settled(network, volumes, run), run, epoch + 1, True)
    return Fitted(_settled(network, volumes, run), run, training.epochs, training.settled is None)


def _one_epoch(
    network: SiteCNN,
    optimizer: torch.optim.Optimizer,
    volumes: F32,
    codes: I64,
    weights: Tensor,
    run: Run,
    epoch: int,
) -> float:
    """Mean weighted cross-entropy of one pass over the scans, in an order drawn from (seed, epoch)."""
    rng = np.random.default_rng([run.schedule.seed, 21, epoch])
    order = rng.permutation(len(volumes))
    network.train()
    total, size = 0.0, run.schedule.batch
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        wanted = torch.from_numpy(codes[rows]).to(run.device)
        logits = network(run.put(_jittered(volumes[rows], rng)))
        each = functional.cross_entropy(logits, wanted, reduction="none") * weights[wanted]
        run.descend(each.mean(), optimizer)
        total += float(each.detach().sum())
    return total / len(order)


@torch.no_grad()
def _settled(network: SiteCNN, volumes: F32, run: Run) -> SiteCNN:
    """Batch norm's statistics taken afresh over all volumes: its running averages trail a short training."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
    network.train()
    order = np.random.default_rng([run.schedule.seed, 27]).permutation(len(volumes))
    for rows in np.array_split(order, max(1, len(order) // run.schedule.batch)):
        network(run.put(volumes[rows]))
    return network.eval()


def _jittered(volumes: F32, rng: np.random.Generator) -> F32:
    moved = np.roll(volumes, rng.integers(-1, 2, 3), axis=(1, 2, 3))
    return moved[:, ::-1] if rng.random() < 0.5 else moved


class _Plateau:
    """Whether a loss is small enough, or has stopped falling at a tenth of the rate too."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.best, self.waited, self.lowered = np.inf, 0, False

    def ends(self, loss: float, optimizer: torch.optim.Optimizer) -> bool:
        if self.training.settled is None:
            return False
        if loss < self.training.settled:
            return True
        self.waited = 0 if loss < 0.99 * self.best else self.waited + 1
        self.best = min(self.best, loss)
        if self.waited < self.training.patience:
            return False
        if self.lowered:
            return True
        self.waited, self.lowered = 0, True
        for group in optimizer.param_groups:
            group["lr"] *= 0.1
        return False


@dataclass(frozen=True)
class Linear:
    """Multinomial logistic regression on standardised features, fitted to its unique optimum."""

    mean: F64
    sd: F64
    weights: F64
    bias: F64

    def predict(self, features: F64) -> I64:
        """(n, features) to (n,) site codes."""
        return np.asarray(
            ((features - self.mean) / self.sd @ self.weights + self.bias).argmax(axis=1), np.int64
        )


def fit_linear(features: F64, codes: I64, sites: int, penalty: float = 1.0) -> Linear:
    """Minimise sum_i w_i cross-entropy_i + penalty / 2 |weights|^2, every site weighing the same.

    features : (n, f), standardised here; columns that do not vary are left out.  codes : (n,).
    The bias is not penalised; w_i = n / (sites at hand * scans of the site), as scikit-learn's "balanced".
    """
    mean, sd = features.mean(axis=0), features.std(axis=0)
    # Against the size of the features: rounding gives a constant column a spread, too.
    flat = sd <= 1e-6 * max(float(np.abs(features).max()), 1e-12)
    sd = np.where(flat, 1.0, sd)
    x = np.where(flat, 0.0, (features - mean) / sd)
    # A squared penalty keeps the optimum in the span of the scans: n unknowns a site in place of f.
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    z = u * s
    counts = np.bincount(codes, minlength=sites)
    w = (codes.size / ((counts > 0).sum() * np.maximum(counts, 1)))[codes]
    wanted = np.eye(sites)[codes]
    rank = z.shape[1]

    def loss(flattened: F64) -> tuple[float, F64]:
        table = flattened.reshape(rank + 1, sites)
        logits = z @ table[:-1] + table[-1]
        logits -= logits.max(axis=1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gap = w[:, None] * (np.exp(log) - wanted)
        value = -(w * (log * wanted).sum(axis=1)).sum() + penalty / 2 * np.square(table[:-1]).sum()
        return float(value), np.vstack([z.T @ gap + penalty * table[:-1], gap.sum(axis=0)]).ravel()

    start = np.zeros((rank + 1) * sites)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-7}
    )
    table = np.asarray(found.x).reshape(rank + 1, sites)
    return Linear(mean, sd, np.where(flat[:, None], 0.0, vt.T @ table[:-1]), table[-1])


def subject_folds(sites: Sequence[str], subjects: Sequence[str], k: int, seed: int) -> list[Fold]:
    """k (training, scored) pairs of scan rows: whole subjects, each site spread over all folds.

    A subject is scored exactly once. k is lowered to the subjects of the smallest site, at least 2.
    """
    people, where = np.asarray(subjects, str), np.asarray(sites, str)
    home = {person: str(site) for person, site in zip(people[::-1], where[::-1], strict=True)}
    names = sorted(set(home.values()))
    by_home = [sorted(p for p in home if home[p] == name) for name in names]
    k = max(2, min(k, *(len(b) for b in by_home)))
    rng = np.random.default_rng([seed, 23])
    dealt = [str(b[i]) for b in by_home for i in rng.permutation(len(b))]
    fold_of = {person: index % k for index, person in enumerate(dealt)}
    folds = np.array([fold_of[p] for p in people])
    rows = np.arange(len(people))
    return [(rows[folds != f], rows[folds == f]) for f in range(k)]


def scrambled(sites: Sequence[str], subjects: Sequence[str], seed: int) -> list[str]:
    """Sites dealt anew: sizes stay, the truth goes. What is still found in them would be found in nothing.

    Subjects of one site exchange it among each other, with all their scans; a subject who was scanned at
    several exchanges these among his own scans.
    """
    rng = np.random.default_rng([seed, 29])
    at = {
        p: sorted({s for s, q in zip(sites, subjects, strict=True) if q == p}) for p in sorted(set(subjects))
    }
    settled = [p for p in at if len(at[p]) == 1]
    new = {
        p: {at[p][0]: at[settled[i]][0]} for p, i in zip(settled, rng.permutation(len(settled)), strict=True)
    }
    for person, own in at.items():
        if len(own) > 1:
            new[person] = {site: own[i] for site, i in zip(own, rng.permutation(len(own)), strict=True)}
    return [new[person][site] for site, person in zip(sites, subjects, strict=True)]
