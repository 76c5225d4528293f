"""Which nodes lose precision: every node's own error in float16 and int8, and which to raise first.

Errors of single nodes do not add up, so that they only give the order in which nodes are tried; what is
recorded for a choice is the error of the whole network before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from hz_calibration.deviation import Budget, Deviation

# A graph in which exactly these nodes are reduced.
Reduce = Callable[[Collection[str]], ModelProto]
Measure = Callable[[ModelProto], Deviation]

LOOK = 3  # how many of the worst nodes are tried before one is raised


@dataclass(frozen=True)
class Raised:
    """A node that stays in float32, and the network's deviation before and after that choice."""

    node: str
    before: Deviation
    after: Deviation


def alone(
    nodes: Sequence[str], reduce: Reduce, measure: Measure, step: Callable[[str], None] = lambda _: None
) -> dict[str, Deviation]:
    """The deviation that each node brings when it alone is reduced. step : told every node that is done."""
    found = {}
    for node in nodes:
        found[node] = measure(reduce((node,)))
        step(node)
    return found


def raise_until(
    nodes: Sequence[str],
    single: Mapping[str, Deviation],
    reduce: Reduce,
    measure: Measure,
    budget: Budget,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[Raised, ...], Deviation]:
    """Raise one node after the other until the budget holds: each time the one that removes most error.

    nodes : all that may be reduced.  single : of `alone`.  step : told every node that is raised.
    Returns the raised nodes in order, and the deviation that is left. With every node raised the deviation is
    0 and the search ends.
    """
    reduced = list(nodes)
    now = measure(reduce(reduced))
    raised: list[Raised] = []
    while reduced and budget.used(now) > 1:
        worst = sorted(reduced, key=lambda n: (-budget.used(single[n]), nodes.index(n)))[:LOOK]
        tried = {node: measure(reduce([n for n in reduced if n != node])) for node in worst}
        best = min(tried, key=lambda n: (budget.used(tried[n]), worst.index(n)))
        raised.append(Raised(best, now, tried[best]))
        reduced.remove(best)
        now = tried[best]
        step(best)
    return tuple(raised), now
