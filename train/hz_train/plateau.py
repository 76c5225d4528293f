"""When a predictor's learning rate falls and when its training ends: the rule of Bashyam 2020.

The rule is a function of the losses of the epochs done and of nothing else, so that a run which is resumed
goes on as it would have gone on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Plateau:
    """The defaults are the paper's.

    slow_after : epochs without progress of the training loss after which the rate is multiplied by
        `factor`, and again after as many more.  stop_after : of them after which training ends.
    rising : epochs in a row, each with a higher validation loss than the one before it, after which
        training ends. Progress is a training loss below every earlier one.
    """

    slow_after: int = 5
    factor: float = 0.1
    stop_after: int = 10
    rising: int = 5

    def idle(self, losses: Sequence[float]) -> int:
        """Epochs since the training loss made progress."""
        return len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__) if losses else 0

    def factor_of(self, losses: Sequence[float]) -> float:
        """What the first learning rate is multiplied by in the epoch that follows these."""
        idle = [self.idle(losses[: n + 1]) for n in range(len(losses))]
        cuts = sum(n > 0 and n % self.slow_after == 0 for n in idle)
        return self.factor**cuts

    def ended(self, losses: Sequence[float], validation: Sequence[float]) -> str:
        """Why training ends here, or "" where it goes on.

        losses, validation : one of each epoch done; validation is empty where there are no such subjects.
        """
        if self.idle(losses) >= self.stop_after:
            return f"no progress of the training loss in {self.stop_after} epochs"
        last = validation[-self.rising - 1 :]
        if len(last) > self.rising and all(b > a for a, b in pairwise(last)):
            return f"the validation loss rose {self.rising} times in a row"
        return ""
