"""From a network and scans to its precision plan: ranges, every node's error, what has to stay float32."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from onnx import ModelProto, NodeProto

from hz_calibration.deviation import Budget, Deviation, DeviationMeasure
from hz_calibration.graph import convolutions, fingerprint, in_half
from hz_calibration.plan import Kept, NodeError, PrecisionPlan
from hz_calibration.ranges import METHODS, Histogram, collect, ranges
from hz_calibration.samples import Samples
from hz_calibration.sensitivity import Measure, Raised, alone, raise_until
from hz_runtime.errors import UsageError

# A float32 graph and a plan to a quantized graph: hz_export.quantize.to_int8, which this room cannot import.
Quantize = Callable[[ModelProto, PrecisionPlan], ModelProto]
Step = Callable[[str], None]

BEST = "best"
RULES = {
    "first": "the first convolution reads the scan itself, and has too few channels for int8 to pay",
    "last": "the last convolution makes the result: nothing after it evens out its error",
}


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made.

    method : of METHODS, or "best": the one with the least error of the whole network.
    budget : None for the measure's own.  weight_bits : 8, or 7 for CPUs without VNNI.
    half : also measure float16, node by node.
    """

    method: str = BEST
    budget: Budget | None = None
    weight_bits: int = 8
    half: bool = True


def make_plan(
    role: str,
    measure: DeviationMeasure,
    samples: Samples,
    quantize: Quantize,
    options: PlanOptions,
    step: Step = lambda _: None,
) -> PrecisionPlan:
    """The plan of one network.

    measure : holds the float32 graph and what it is given.  samples : what that came from.
    quantize : see Quantize.  step : told what was done, one call a measured network or scan.
    Raises UsageError where the network has no convolution between its first and last.
    """
    model = measure.model
    kept, inner = _by_rule(model)
    if not inner:
        raise UsageError(
            "the network has no convolution between its first and its last: nothing to quantize.",
            "Export it with --fp16.",
        )
    names = [node.name for node in inner]
    budget = options.budget or measure.budget
    # Refuses a budget in the wrong unit before minutes of work.
    budget.used(measure.deviation(measure.expected))
    histograms = collect(
        model, [node.input[0] for node in inner], measure.grids, lambda: step("activation ranges")
    )
    rules = _by_rules_alone(role, measure, samples, options.weight_bits, budget)
    plan = _with_ranges(rules, histograms, measure, quantize, options.method, budget, step)

    def in_int8(nodes: Collection[str]) -> ModelProto:
        return quantize(model, replace(plan, int8=tuple(n for n in names if n in nodes)))

    int8 = alone(names, in_int8, measure, lambda node: step(f"int8 {node}"))
    raised, left = raise_until(names, int8, in_int8, measure, budget, lambda node: step(f"raised {node}"))
    fp16, half_kept, whole_half = _half(model, measure, budget, step) if options.half else ({}, (), None)
    operations = {node.name: node.op_type for node in model.graph.node}
    errors = tuple(
        NodeError(n, operations[n], fp16.get(n), int8.get(n)) for n in operations if n in fp16 or n in int8
    )
    before = raised[0].before if raised else left
    return replace(
        plan,
        int8=tuple(n for n in names if n not in {r.node for r in raised}),
        kept=(*kept, *_as_kept(raised, operations, "int8")),
        half_kept=half_kept,
        nodes=errors,
        whole={"int8_all": before, "int8": left, **({"fp16": whole_half} if whole_half else {})},
    )


def steps(model: ModelProto, scans: int, options: PlanOptions) -> int:
    """How often `make_plan` calls `step` where no node has to be raised; for a progress bar."""
    inner = len(_by_rule(model)[1])
    halves = len(_half_nodes(model)) + 1 if options.half else 0
    return scans + (len(METHODS) if options.method == BEST else 0) + inner + halves


def _by_rules_alone(
    role: str, measure: DeviationMeasure, samples: Samples, weight_bits: int, budget: Budget
) -> PrecisionPlan:
    """The plan before anything is measured: every convolution in int8 that no rule keeps, without ranges."""
    kept, inner = _by_rule(measure.model)
    return PrecisionPlan(
        role=role,
        network=fingerprint(measure.model),
        method=METHODS[0],
        weight_bits=weight_bits,
        budget=budget,
        ranges={},
        int8=tuple(node.name for node in inner),
        kept=tuple(kept),
        half_kept=(),
        nodes=(),
        whole={},
        scans=samples.scans,
        engine=f"{measure.engine} {_version(measure.engine)}, CPU",
    )


def _by_rule(model: ModelProto) -> tuple[list[Kept], list[NodeProto]]:
    """(convolutions that stay in any case, the others)."""
    nodes = convolutions(model)
    fixed = {}
    if nodes:
        fixed = {nodes[0].name: RULES["first"], nodes[-1].name: RULES["last"]}
    return [Kept(n.name, n.op_type, fixed[n.name]) for n in nodes if n.name in fixed], [
        n for n in nodes if n.name not in fixed
    ]


def _with_ranges(
    plan: PrecisionPlan,
    histograms: dict[str, Histogram],
    measure: DeviationMeasure,
    quantize: Quantize,
    method: str,
    budget: Budget,
    step: Step,
) -> PrecisionPlan:
    """The plan with ranges by `method`, or by the one that strays least."""
    if method != BEST:
        return replace(plan, method=method, ranges=ranges(histograms, method))
    found: list[tuple[float, PrecisionPlan]] = []
    for name in METHODS:
        tried = replace(plan, method=name, ranges=ranges(histograms, name))
        found.append((budget.used(measure(quantize(measure.model, tried))), tried))
        step(f"method {name}")
    return min(found, key=lambda pair: pair[0])[1]


def _half(
    model: ModelProto, measure: Measure, budget: Budget, step: Step
) -> tuple[dict[str, Deviation], tuple[Kept, ...], Deviation]:
    """(every node's own float16 deviation, what float16 would have to leave out, the whole network's)."""
    names = _half_nodes(model)

    def reduce(nodes: Collection[str]) -> ModelProto:
        return in_half(model, nodes)

    single = alone(names, reduce, measure, lambda node: step(f"fp16 {node}"))
    raised, left = raise_until(names, single, reduce, measure, budget, lambda node: step(f"raised {node}"))
    operations = {node.name: node.op_type for node in model.graph.node}
    step("fp16")
    return single, _as_kept(raised, operations, "fp16"), raised[0].before if raised else left


def _half_nodes(model: ModelProto) -> list[str]:
    """Nodes up to the last convolution that make new numbers: convolutions and sums.

    The others that `hz_export.graph_precision` types in float16 (activations, joins, pools) give on values
    that a neighbour has rounded or will round.
    """
    nodes = list(model.graph.node)
    names = {node.name for node in convolutions(model)}
    last = max((k for k, node in enumerate(nodes) if node.name in names), default=-1)
    return [n.name for n in nodes[: last + 1] if n.name in names or n.op_type == "Add"]


def _as_kept(raised: tuple[Raised, ...], operations: dict[str, str], word: str) -> tuple[Kept, ...]:
    return tuple(
        Kept(r.node, operations[r.node], f"in {word} the network strays past the budget", r.before, r.after)
        for r in raised
    )


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
