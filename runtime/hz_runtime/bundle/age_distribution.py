"""What a bundle states of an age network that answers with a distribution: the object "age_distribution".

Its age is the mean of that distribution, and the spread the network's own uncertainty. That is no interval:
nobody has measured what it covers. Plain numbers: to read a manifest takes no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hz_runtime.bundle.fields import REMEDY, get, number
from hz_runtime.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CENTRES = 1000


@dataclass(frozen=True)
class AgeDistribution:
    """centres : the ages, years, that the network gives probabilities of, its second output "features"."""

    centres: tuple[float, ...]

    def spread(self, probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
        """SD in years, (N,), of distributions (N, K) over the K centres."""
        import numpy as np

        shares = np.asarray(probabilities, np.float64)
        shares = shares / shares.sum(1, keepdims=True)  # rounded to float32 they miss 1 by a little
        away = np.asarray(self.centres) - (shares @ np.asarray(self.centres))[:, None]
        found: NDArray[np.float64] = np.sqrt((shares * away**2).sum(1))
        return found

    def __str__(self) -> str:
        over = f"{len(self.centres)} ages of {self.centres[0]:g} to {self.centres[-1]:g} years"
        return f"SD of the network's own distribution over {over}; no interval"


def parse_age_distribution(raw: object, where: str) -> AgeDistribution | None:
    """The distribution, checked; None in bundles without one. `where` starts the message of a BundleError."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BundleError(f"{where} is neither an object nor null.", REMEDY)
    centres = tuple(number(age, f"{where}: centres") for age in get(raw, "centres", list, where))
    rising = all(one < other for one, other in pairwise(centres))
    if not 1 < len(centres) <= MOST_CENTRES or not rising:
        raise BundleError(f"{where}: centres should be 2 to {MOST_CENTRES} rising ages.", REMEDY)
    return AgeDistribution(centres)
