"""Which nodes break parity: bisection over sets of nodes of an ONNX graph.

Nodes are taken in graph order. With the first k of them reduced the error starts at 0 and ends past the
tolerance, so that some node tips it: bisection finds it in log2(n) runs. It is restored, and the search goes
on among the rest until everything that is still reduced keeps to the tolerance. At the end every named
node is tried without: a node that turns out not to be needed is dropped, so that what is named is minimal.

`localize` is the search; `culprit_lines` runs it for a file that has strayed past its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from hz_calibration.deviation import answers
from hz_calibration.graph import convolutions, folded, in_half
from hz_calibration.plan import PrecisionPlan
from hz_export.differences import Check, Tolerance, checks
from hz_export.graph_report import tensor_types
from hz_export.parity import ParityCheck
from hz_export.quantize import to_int8
from hz_runtime.errors import BackendError, HzError

F32 = NDArray[np.float32]
# (found, expected) answers to one number: the error.
Measure = Callable[[F32, F32], float]
ReducedBy = Callable[[set[str]], ModelProto]
Ask = Callable[[ModelProto, F32], F32]

MOST_NAMED = 8
KINDS = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}
MADE = frozenset({"Relu", "LeakyRelu", "Concat", "MaxPool", "Cast"})  # they give on what a neighbour rounded


@dataclass(frozen=True)
class Culprit:
    """A node that breaks parity.

    alone : error where only this node is reduced.  without : error where every node but this one is.
    Infinite where the network gives values that are not finite.
    """

    node: str
    operation: str
    alone: float
    without: float


@dataclass(frozen=True)
class LocalizedNodes:
    """What was found.

    culprits : in graph order.  everything : error with all nodes reduced.  rest : error with all but the
    culprits reduced; past the tolerance only where `complete` is not true.
    complete : whether leaving the culprits as they are keeps parity; otherwise the error is spread over more
    nodes than are named.
    runs : networks that were run.
    """

    culprits: tuple[Culprit, ...]
    everything: float
    rest: float
    tolerance: float
    complete: bool
    runs: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(culprit.node for culprit in self.culprits)

    def lines(self) -> tuple[str, ...]:
        """For a terminal: the verdict, then one line a node."""
        if not self.culprits:
            return (f"parity holds: error {self.everything:.3g}, at most {self.tolerance:g}.",)
        count = f"{len(self.culprits)} node{'s' * (len(self.culprits) > 1)}"
        head = f"error {self.everything:.3g} (at most {self.tolerance:g}); without {count} {self.rest:.3g}"
        if not self.complete:
            head += ": the error is spread over more nodes than these"
        return head, *(
            f"  {c.operation} {c.node}: alone {c.alone:.3g}, all but it {c.without:.3g}"
            for c in self.culprits
        )


def localize(
    reference: ModelProto,
    reduced_by: ReducedBy,
    grids: F32,
    tolerance: float,
    measure: Measure,
    *,
    nodes: Sequence[str] | None = None,
    ask: Ask = answers,
    most: int = MOST_NAMED,
    step: Callable[[], None] = lambda: None,
) -> LocalizedNodes:
    """Name the nodes whose reduced precision puts a network past a tolerance.

    reference : the float32 graph.  reduced_by : the graph with exactly these nodes reduced.  grids : (n, D,
    H, W) float32 that both are given.  measure : the error of (found, expected) answers.  nodes : that may be
    reduced, in graph order; none for the convolutions.  ask : for a graph's answers to the grids.
    most : nodes to name before giving up.  step : called after every run.
    """
    order = tuple(nodes) if nodes is not None else tuple(node.name for node in convolutions(reference))
    unknown = sorted(set(order) - {node.name for node in reference.graph.node})
    if unknown:
        raise HzError(f"The graph has no node {unknown[0]!r}.", "Name nodes of the float32 graph.")
    search = _Search(reduced_by, grids, tolerance, measure, ask(reference, grids), ask, step)
    everything = search.error(order)
    named: list[str] = []
    rest = everything
    while rest > tolerance and len(named) < most and len(named) < len(order):
        left = [n for n in order if n not in named]
        named.append(left[search.tipping(left)])
        rest = search.error([n for n in order if n not in named])
    complete = rest <= tolerance
    if complete:
        named, rest = search.pruned(order, named, rest)
    operations = {node.name: node.op_type for node in reference.graph.node}
    culprits = tuple(
        Culprit(n, operations[n], search.error([n]), search.error([m for m in order if m != n]))
        for n in order
        if n in named
    )
    return LocalizedNodes(culprits, everything, rest, tolerance, complete, search.runs)


class _Search:
    """Errors of sets of reduced nodes, each measured once."""

    def __init__(
        self,
        reduced_by: ReducedBy,
        grids: F32,
        tolerance: float,
        measure: Measure,
        expected: F32,
        ask: Ask,
        step: Callable[[], None],
    ) -> None:
        self.reduced_by = reduced_by
        self.grids = grids
        self.tolerance = tolerance
        self.measure = measure
        self.expected = expected
        self.ask = ask
        self.step = step
        self.known: dict[frozenset[str], float] = {frozenset(): 0.0}

    @property
    def runs(self) -> int:
        return len(self.known) - 1

    def error(self, nodes: Sequence[str]) -> float:
        """Infinite where the network gives values that are not finite, or cannot be run at all."""
        key = frozenset(nodes)
        if key not in self.known:
            try:
                found = self.ask(self.reduced_by(set(nodes)), self.grids)
                error = float(self.measure(found, self.expected))
            except (BackendError, HzError) as failure:
                if "finite" not in failure.message:
                    raise
                error = float("inf")
            self.known[key] = error if error == error else float("inf")  # NaN
            self.step()
        return self.known[key]

    def tipping(self, nodes: Sequence[str]) -> int:
        """Index of a node that, reduced after all before it, takes the error past the tolerance.

        All of `nodes` reduced are past it, none of them is not: bisection keeps that of its two ends.
        """
        within, past = 0, len(nodes)  # how many of the first nodes are reduced
        while past - within > 1:
            middle = (within + past) // 2
            if self.error(nodes[:middle]) > self.tolerance:
                past = middle
            else:
                within = middle
        return past - 1

    def pruned(self, order: Sequence[str], named: list[str], rest: float) -> tuple[list[str], float]:
        """Without those that the tolerance does not need restored."""
        for node in list(named[:-1]):
            fewer = [n for n in named if n != node]
            error = self.error([n for n in order if n not in fewer])
            if error <= self.tolerance:
                named, rest = fewer, error
        return named, rest


def culprit_lines(
    full: ModelProto,
    model: ModelProto,
    parity_check: ParityCheck,
    tolerance: Tolerance,
    plan: PrecisionPlan | None = None,
) -> tuple[str, ...]:
    """Why a file strays past its tolerance: lines that name the nodes, what they are measured by, or why no
    node can be named.

    full : the float32 graph.  model : the file's, in float16, bfloat16 or, by `plan`, int8.
    parity_check : measured the file, on the volumes that are used here too.
    The nodes that the file reduces are rounded one set after another by onnxruntime on the CPU, see
    `hz_calibration.graph.in_half`; what only the failing engine does wrong does not show there.
    """
    nodes, reduced_by = _reduction(full, model, plan)
    if not nodes:
        return ("no node of it computes in less than float32: look at the export itself.",)
    ask = partial(answers, middle_slices=parity_check.middle_slices)
    try:
        past = _worst(parity_check, ask(reduced_by(set(nodes)), parity_check.inputs), tolerance)
    except HzError as error:
        if "finite" not in error.message:
            raise
        past = _any(parity_check, tolerance)
    if past is None:
        return (
            f"rounding the same {len(nodes)} nodes in onnxruntime keeps to the tolerance: the fault is none "
            "of their precision. Look at the engine that strayed, or at the graph itself.",
        )
    key = past.key

    def measure(found: F32, _: F32) -> float:
        return next(c.value for c in checks(parity_check.against(found), tolerance) if c.key == key)

    found = localize(folded(full), reduced_by, parity_check.inputs, past.limit, measure, nodes=nodes, ask=ask)
    return f"by {past.what}, {len(nodes)} nodes, {found.runs} runs:", *found.lines()


def rounded_answers(full: ModelProto, model: ModelProto, parity_check: ParityCheck) -> F32:
    """What a float16 or bfloat16 file answers where every result of a reduced node is rounded, as on a GPU.

    full : the float32 graph.  model : the file's.  Engines on a CPU round nothing between two nodes, and what
    is past float16's largest number stays finite there (findings/float16_on_cpus.sh). Raises HzError where an
    answer is not finite.
    """
    nodes, reduced_by = _reduction(full, model, None)
    return answers(reduced_by(set(nodes)), parity_check.inputs, middle_slices=parity_check.middle_slices)


def _reduction(
    full: ModelProto, model: ModelProto, plan: PrecisionPlan | None
) -> tuple[tuple[str, ...], ReducedBy]:
    """The nodes that a file reduces, in graph order, and how to reduce some of them only."""
    if plan is not None:
        return plan.int8, by_int8(full, plan)
    types = tensor_types(model)
    for kind in KINDS.values():
        made = {n.name for n in model.graph.node if any(types.get(name) == kind for name in n.output)}
        nodes = [n.name for n in full.graph.node if n.name in made and n.op_type not in MADE]
        if nodes:
            return tuple(nodes), by_half(full, kind)
    return (), by_half(full)


def _worst(parity_check: ParityCheck, found: F32, tolerance: Tolerance) -> Check | None:
    """The threshold that these answers are furthest past, of those that a network can be bisected by."""
    held = [c for c in checks(parity_check.against(found), tolerance) if c.past and c.key != "nonfinite"]
    return max(held, key=lambda c: c.value / max(c.limit, 1e-300), default=None)


def _any(parity_check: ParityCheck, tolerance: Tolerance) -> Check:
    """A threshold to bisect by where the whole network's answers are not finite."""
    return next(
        c for c in checks(parity_check.against(parity_check.expected), tolerance) if c.key != "nonfinite"
    )


def by_half(model: ModelProto, kind: int = KINDS["fp16"]) -> ReducedBy:
    """For `localize`: the named nodes in float16 (or bfloat16), the others in float32."""
    plain = folded(model)
    return lambda nodes: in_half(plain, nodes, kind)


def by_int8(model: ModelProto, plan: PrecisionPlan) -> ReducedBy:
    """For `localize`: the named nodes in int8 with the plan's ranges; only nodes that the plan quantizes."""
    return lambda nodes: to_int8(model, replace(plan, int8=tuple(n for n in plan.int8 if n in nodes)))
