"""The self-test of an installation: every engine that is here, held to the answers that the bundle expects.

What is looked for, each under a name of its own: a network file that is not the one whose answers are known;
an engine that computes in less precision than the file's; answers that stray past the tolerance, with one
thread or two; a network that answers the same for everybody; another path from scan to grid, another
template, another version of niimath. Nothing is written, and no scan of a person is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from hz_runtime.backends.fallback import choose
from hz_runtime.backends.file_choice import FileChoice
from hz_runtime.backends.registry import ENGINES, Engine, missing
from hz_runtime.bundle.manifest import RUN_ROLES
from hz_runtime.errors import BackendError, HzError, UsageError
from hz_runtime.inference.expected_answers import (
    ExpectedAnswers,
    ask,
    expected_answers,
    model_input,
    same_for_everybody,
    variants,
)
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.preparation.n4 import niimath_words
from hz_runtime.preparation.template import mni152

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle, ModelEntry

THREADS = (1, 2)
GRID_TOLERANCE = 1e-5  # of intensities in model space: numpy's sums round otherwise on other processors
NIIMATH = "1.0.20261016"  # what the extra `prep` pins
TEMPLATE_SHA256 = "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    name : what, e.g. "age.onnx on openvino, 2 threads".  fault : what is wrong; empty where nothing is.
    note : what was found where nothing is wrong.  run : False where there was nothing here to look at.
    """

    name: str
    fault: str = ""
    note: str = ""
    run: bool = True

    def __str__(self) -> str:
        state = "FAILED" if self.fault else "ok" if self.run else "-"
        said = self.fault or self.note
        return f"{state:<7} {self.name}{': ' if said else ''}{said}"


@dataclass(frozen=True)
class SelfTest:
    """checks : in order.  seconds : wall time."""

    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.fault)

    def summary(self) -> str:
        """One line."""
        done = sum(check.run for check in self.checks)
        verdict = f"{len(self.failed)} FAILED" if self.failed else "all passed"
        return f"self-test: {done} checks, {verdict}, in {self.seconds:.1f} s"


def self_test(bundle: Bundle, on_check: Callable[[Check], None] = lambda _: None) -> SelfTest:
    """Look at everything.  on_check : called with each check as it ends.

    Raises UsageError where the bundle carries no self-test, BundleError where that cannot be read.
    """
    expected = expected_answers(bundle)
    if expected is None:
        raise UsageError(
            f"{bundle.path.name} carries no self-test.",
            "Add one where it is known to work, which changes its id:  hz-bundle self-test BUNDLE",
        )
    started, checks = time.perf_counter(), []
    for check in _checks(bundle, expected):
        checks.append(check)
        on_check(check)
    return SelfTest(tuple(checks), time.perf_counter() - started)


def _checks(bundle: Bundle, expected: ExpectedAnswers) -> Iterator[Check]:
    recipe = Recipe.from_dict(dict(bundle.recipe))
    volume = model_input(expected.scan, recipe)
    yield _grid_check(volume, expected)
    if expected.voxels.max() >= volume.size:
        return
    yield _template_check()
    yield _niimath_check()
    entries = [entry for entry in bundle.models if entry.role in RUN_ROLES]
    for entry in entries:
        if entry.file in expected.files:
            yield _weights_check(entry, expected)
    inputs, ran = variants(volume), False
    for engine in ENGINES:
        problem, _ = missing(engine)
        if problem:
            yield Check(engine.name, note=f"not here ({problem})", run=False)
            continue
        for entry in entries:
            for check in _engine_checks(bundle, entry, engine, inputs, expected, recipe):
                ran = ran or check.run
                yield check
    if not ran:
        yield Check("engines", "none is here.  pip install 'hz-mri[cpu]'")


def _grid_check(volume: np.ndarray, expected: ExpectedAnswers) -> Check:
    name = "scan to model space"
    if expected.voxels.max() >= volume.size:
        return Check(name, "the grid is smaller than that of the expected answers")
    off = float(np.abs(volume.reshape(-1)[expected.voxels] - expected.grid).max())
    if off > GRID_TOLERANCE:
        return Check(name, f"{off:.3g} off (at most {GRID_TOLERANCE:g}): the recipe or its code is another")
    return Check(name, note=f"{off:.1g} off")


def _template_check() -> Check:
    name = "template"
    try:
        found = mni152().sha256
    except HzError as error:
        return Check(name, f"cannot be read: {error.message}")
    if found != TEMPLATE_SHA256:
        return Check(name, f"sha256 {found[:12]}..., not the MNI152 file that hz was made with")
    return Check(name, note="the MNI152 file that hz was made with")


def _niimath_check() -> Check:
    """The installed package's version, and what the program says of itself: either may have been replaced."""
    name = "niimath"
    if find_spec("niimath") is None:
        return Check(name, note="not here (raw heads need it; extra prep)", run=False)
    try:
        package = version("niimath")
    except PackageNotFoundError:
        package = "unknown"
    said = niimath_words()
    if package != NIIMATH or NIIMATH not in said:
        words = said.split(" OpenMP")[0][:80] or "nothing"
        return Check(
            name, f"version {package} whose program says {words!r}; hz prepares heads with {NIIMATH}"
        )
    return Check(name, note=package)


def _weights_check(entry: ModelEntry, expected: ExpectedAnswers) -> Check:
    known = expected.files[entry.file].sha256
    name = f"weights of {entry.file}"
    if entry.sha256 != known:
        found = f"sha256 {entry.sha256[:12]}..., expected {known[:12]}..."
        return Check(name, f"not the file whose answers are known ({found})")
    return Check(name, note=f"sha256 {known[:12]}...")


def _engine_checks(
    bundle: Bundle,
    entry: ModelEntry,
    engine: Engine,
    inputs: np.ndarray,
    expected: ExpectedAnswers,
    recipe: Recipe,
) -> Iterator[Check]:
    """One network file on one engine: its arithmetic, its answers with every number of threads."""
    name = f"{entry.file} on {engine.name}"
    known = expected.files.get(entry.file)
    if known is None:
        yield Check(name, note="no answers of it are known", run=False)
        return
    # Each input once: with one number of threads the first, with the other the second.
    threads = THREADS if engine.device == "cpu" else THREADS[:1]
    asked = [(count, [row]) for row, count in enumerate(threads)]
    if len(threads) == 1:
        asked = [(threads[0], list(range(len(inputs))))]
    answers: list[np.ndarray] = []
    for count, rows in asked:
        many = f", {count} thread{'' if count == 1 else 's'}" if engine.device == "cpu" else ""
        try:
            backend, _ = choose(
                bundle,
                entry.role,
                engine.name,
                engine.name,
                to=entry.target,
                precision=FileChoice(entry),
                threads=count,
            )
        except BackendError as error:
            # What only some engines run is no fault of those that do not; a run goes on to the next one.
            optional = entry.precision != "fp32" or (engine.built and not bundle.engines_of(entry))
            yield Check(name, "" if optional else error.message, error.message, run=not optional)
            return
        try:
            if count == threads[0]:
                yield _arithmetic_check(f"arithmetic of {name}", backend.precision, entry.precision)
            found = ask(backend, inputs[rows], expected.voxels, recipe)
        except HzError as error:
            yield Check(f"{name}{many}", error.message)
            continue
        finally:
            backend.close()
        answers += list(found)
        good, words = known.compare(found, rows)
        yield Check(f"{name}{many}", "" if good else words, words)
    if len(answers) > 1 and same_for_everybody(np.stack(answers)):
        yield Check(name, "answers the same for everybody")


def _arithmetic_check(name: str, achieved: str, asked: str) -> Check:
    """Whether an engine computes in what the file is of, or better; in nothing that it slipped in."""
    if not achieved or not set(achieved.split("+")) <= {asked, "fp32"}:
        return Check(name, f"computed in {achieved or 'what it does not say'}; the file is {asked}")
    return Check(name, note=achieved)
