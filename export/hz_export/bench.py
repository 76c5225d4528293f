"""Timing: several ways to do one thing, taken in turns, in medians and percentiles.

Machines drift: clocks, neighbours, heat. So the ways take turns (A, B, A, B, ...), and a ratio of two is
the median over rounds of the two times of one round, not the ratio of two numbers from different minutes.
Standard library and numpy only; what is timed is somebody else's function, which must block until done.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)
MATMUL = "matmul"  # stands for the machine's peak among what is timed


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    repeats : timed rounds.  warmup : untimed calls of each way first: they compile, plan and fill caches.
    most_seconds : no further round starts after this long, once `least` rounds are done.
    pause : seconds between two calls, for the threads of the last one to go to sleep.
    """

    repeats: int = 10
    warmup: int = 3
    least: int = 3
    most_seconds: float = 60.0
    pause: float = 0.01

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or self.least < 1:
            raise ValueError(f"{self.repeats} repeats after {self.warmup} warm-ups cannot be measured")


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed call of one way, round by round; or why there are none.

    error : the words of the exception that ended its turns; its samples are dropped, because its
    rounds no longer match the others'.
    """

    samples: tuple[float, ...] = ()
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the calls kept to, interpolated between calls."""
        return float(np.percentile(self.samples, percent))

    def to_dict(self, volumes: int = 1) -> dict[str, Any]:
        """Milliseconds a volume, of calls with `volumes` of them; every sample, so that anything else that
        one may want can be computed from it."""
        if self.error is not None:
            return {"error": self.error}
        scale = 1e3 / volumes
        return {
            "median_ms": round(self.median * scale, 5),
            "p5_ms": round(self.percentile(5) * scale, 5),
            "p95_ms": round(self.percentile(95) * scale, 5),
            "least_ms": round(min(self.samples) * scale, 5),
            "calls": len(self.samples),
            "samples_ms": [round(s * scale, 5) for s in self.samples],
        }


def interleaved_timings(
    ways: Mapping[Key, Callable[[], object]],
    plan: Plan,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[Key, Timing]:
    """Time every way, in turns.

    ways : name -> what to call.  One that raises is out, with its words; the others go on.
    Returns a Timing for every name, all without an error having the same number of rounds.
    """
    running = dict(ways)
    samples: dict[Key, list[float]] = {name: [] for name in ways}
    errors: dict[Key, str] = {}

    def call(name: Key) -> float | None:
        try:
            begin = clock()
            running[name]()
            return clock() - begin
        except Exception as error:
            errors[name] = words(error)
            del running[name]
            return None

    for name in ways:
        for _ in range(plan.warmup):
            if name in running:
                call(name)
    was_enabled = gc.isenabled()
    gc.disable()  # a collection of somebody else's garbage is nobody's time
    try:
        begin = clock()
        for done in range(plan.repeats):
            if done >= plan.least and clock() - begin > plan.most_seconds:
                break
            for name in tuple(running):
                sleep(plan.pause)
                seconds = call(name)
                if seconds is not None:
                    samples[name].append(seconds)
    finally:
        if was_enabled:
            gc.enable()
    return {
        name: Timing(error=errors[name]) if name in errors else Timing(tuple(samples[name])) for name in ways
    }


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times faster: median over rounds of the two calls of one round."""
    return statistics.median(a / b for a, b in zip(slower.samples, faster.samples, strict=True))


def words(error: BaseException) -> str:
    """An exception's own words on one line, with its kind where it is not one of hz's."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return getattr(error, "one_line", None) or (f"{kind}: {text}" if text else kind)


@dataclass(frozen=True)
class OpenCandidate:
    """One engine with one network, ready to run.

    device : "cpu" or "cuda".  precision : of its arithmetic, e.g. "fp32"; a peak is chosen by it.
    ran : what it says about itself (name, version, provider, ...).
    answer : (N, 1, D, H, W) float32 to the network's answer, from host memory to host memory.
    resident : a batch, laid where the network computes, to a call that runs it there and waits; None where
        that is host memory, so that `answer` has no transfers in it.
    """

    name: str
    device: str
    precision: str
    ran: Mapping[str, str]
    answer: Callable[[F32], F32]
    resident: Callable[[F32], Callable[[], object]] | None = None
    close: Callable[[], None] = lambda: None

    def ways(self, batch: F32) -> dict[str, Callable[[], object]]:
        """What to time, by scope: "model" the network alone, "transfers" with both ways over the bus.

        An engine that computes in host memory has only "model"; a GPU engine that cannot keep its data
        there has only "transfers".
        """
        if self.device == "cpu":
            return {"model": lambda: self.answer(batch)}
        moved: dict[str, Callable[[], object]] = {"transfers": lambda: self.answer(batch)}
        return moved if self.resident is None else {"model": self.resident(batch), **moved}


@dataclass(frozen=True)
class Candidate:
    """One yet to be opened; `open` raises, in words, where this machine has no such thing."""

    name: str
    open: Callable[[], OpenCandidate]


@contextmanager
def opened(
    candidates: Sequence[Candidate],
    left_out: list[dict[str, str]],
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[list[OpenCandidate]]:
    """The candidates that this machine can open; closed at the end.

    left_out : the others are added to it, {"name": ..., "why": their own words}.
    """
    with ExitStack() as stack:
        here = []
        for candidate in candidates:
            say(f"opening {candidate.name}")
            try:
                here.append(candidate.open())
            except Exception as error:
                left_out.append({"name": candidate.name, "why": words(error)})
            else:
                stack.callback(here[-1].close)
        yield here


def time_batch(
    candidates: Sequence[OpenCandidate],
    batch: F32,
    plan: Plan,
    peaks: Mapping[str, Callable[[], object]] | None = None,
) -> dict[tuple[str, str], Timing]:
    """One batch through every candidate in turns, with the multiplications that stand for the peak.

    peaks : precision -> a call.  Returns timings by (candidate's name, scope) and by (MATMUL, precision).
    """
    ways: dict[tuple[str, str], Callable[[], object]] = {
        (MATMUL, precision): call for precision, call in (peaks or {}).items()
    }
    failed: dict[tuple[str, str], Timing] = {}
    for candidate in candidates:
        try:
            made = candidate.ways(batch)
        except Exception as error:  # the batch may not fit into the GPU's memory
            failed[candidate.name, "model"] = Timing(error=words(error))
            continue
        ways.update({(candidate.name, scope): call for scope, call in made.items()})
    return {**interleaved_timings(ways, plan), **failed}


def tiled(volumes: F32, n: int) -> F32:
    """(n, 1, D, H, W) of (k, D, H, W), repeated in order."""
    return np.ascontiguousarray(volumes[np.arange(n) % len(volumes)][:, None])


def candidate_row(candidate: OpenCandidate) -> dict[str, Any]:
    """A candidate's own part of the result, still without times."""
    return {
        "name": candidate.name,
        "device": candidate.device,
        "precision": candidate.precision,
        "backend": dict(candidate.ran),
        "batches": {},
    }


def timing_row(
    timing: Timing, batch: int, flops: int | None, peak: float | None, reference: Timing | None
) -> dict[str, Any]:
    """One timing as the result states it.

    flops : of one volume.  peak : FLOP/s of this machine in this precision.  reference : the baseline's.
    """
    row = timing.to_dict(batch)
    if timing.error is not None:
        return row
    if flops:
        rate = flops * batch / timing.median
        row["flops_per_s"] = rate
        row["share_of_peak"] = round(rate / peak, 4) if peak else None
    usable = reference is not None and reference.error is None
    row["times_baseline"] = round(ratio(reference, timing), 4) if reference and usable else None
    return row
