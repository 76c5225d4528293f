"""Coverage-guided fuzzing of the parsers, with bounds on time and memory: what `make fuzz` runs.

    python tests/attacks/fuzz.py              every target in turn, each in a process of its own
    python tests/attacks/fuzz.py nifti        one target, or several

$FUZZ_RUNS and $FUZZ_SECONDS bound each target (1000000, 3600). An input that takes over 20 s or 512 MB is a
find, as is whatever a target raises; it is kept beside the corpus, in build/fuzz/TARGET. What was run is
printed as JSON, a target a line on the way. It needs atheris.

Bytes are changed as libFuzzer does it, and every other time behind what hides them from it: a value of
JSON, the content of a gzip stream.

A target writes the files that it reads into memory (/dev/shm), where there is such a place: on a disk they
cost more than the parsing.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACES = [ROOT / name for name in ("runtime", "cli", "tests")]
MEMORY_MB, TIMEOUT_S = 512, 20
# Each with the bytes of its longest input: twice what a sound file needs, as longer ones only cost time.
TARGETS = {"manifest": 4096, "nifti": 1536, "account": 2048, "participants": 512, "arrival": 4096}
VALUES = (
    None, True, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308, "", "1", "a", "../a", "\ud800", "x" * 300,
    [], {}, [None], [0, 1], [64, 64, 64], {"a": 1},
)  # fmt: skip


def fuzz(name: str, work: Path) -> None:
    """Fuzz one target in the folder `work` until its bounds; does not return."""
    import atheris

    sys.path[:0] = map(str, PLACES)
    with atheris.instrument_imports(include=["hz_runtime", "hz_cli"]):
        import parsers_under_attack as parsers
    kept = ROOT / "build" / "fuzz" / name
    for folder in (kept / "seeds", kept / "corpus"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(parsers.seeds(name, work)):
        assert len(data) <= TARGETS[name], "it would be cut"
        (kept / "seeds" / str(number)).write_bytes(data)
    target = parsers.TARGETS[name]
    bounds = [
        f"-runs={os.environ.get('FUZZ_RUNS', '1000000')}",
        f"-max_total_time={os.environ.get('FUZZ_SECONDS', '3600')}",
        f"-rss_limit_mb={MEMORY_MB}", f"-timeout={TIMEOUT_S}", f"-max_len={TARGETS[name]}",
        f"-artifact_prefix={kept}/", "-print_final_stats=1", "-reload=0",
    ]  # fmt: skip
    gc.freeze()  # what is imported stays, and need not be looked at again

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        drawn = random.Random(seed)
        if drawn.random() < 0.5:
            return _deeper(data, drawn, lambda inner: atheris.Mutate(inner, longest))[:longest]
        return bytes(atheris.Mutate(data, longest))

    atheris.Setup(
        ["fuzz", *bounds, str(kept / "corpus"), str(kept / "seeds")],
        lambda data: target(data, work),
        custom_mutator=mutated,
    )
    atheris.Fuzz()


def _deeper(data: bytes, drawn: random.Random, mutate: Callable[[bytes], bytes]) -> bytes:
    """Bytes with a value of their JSON, or what their gzip stream holds, changed; others as they are."""
    if data[:2] == b"\x1f\x8b":
        with suppress(EOFError, OSError, zlib.error):
            return gzip.compress(mutate(gzip.decompress(data)), 1, mtime=0)
    text, two, behind = data.partition(b"\0")
    lines = text.split(b"\n")
    at = drawn.randrange(len(lines))
    try:
        whole = {"": json.loads(lines[at])}
    except (ValueError, RecursionError):
        return mutate(data)
    _spoil(whole, drawn)
    lines[at] = json.dumps(whole.get("")).encode()
    return b"\n".join(lines) + two + behind


def _spoil(inside: Any, drawn: random.Random) -> None:
    """Replace a value, somewhere in there, or take it out."""
    key = drawn.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    if isinstance(inside[key], dict | list) and inside[key] and drawn.random() < 0.8:
        _spoil(inside[key], drawn)
    elif drawn.random() < 0.2:
        del inside[key]
    else:
        inside[key] = drawn.choice(VALUES)


def fuzzed(name: str) -> dict[str, Any]:
    """Fuzz one target in a process of its own; what it came to."""
    memory = Path("/dev/shm")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hz-fuzz-", dir=memory if memory.is_dir() else None) as work:
        done = subprocess.run(
            [sys.executable, __file__, name],
            env={**os.environ, "TMPDIR": work, "HZ_FUZZ_IN": work},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    peak = re.search(r"stat::peak_rss_mb: +(\d+)", done.stderr)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return {
        "executions": int(runs[1]) if runs else None,
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mb": int(peak[1]) if peak else None,
        "finds": int(done.returncode != 0),
    }


def fuzz_all(names: list[str]) -> int:
    """Fuzz some targets, and print how it went; 1 where there was a find."""
    sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "export")]
    from hz_export.machine import describe_machine

    machine = describe_machine()
    machine["packages"].update({name: version(name) for name in ("atheris", "pydicom")})
    targets = {}
    for name in names:
        targets[name] = fuzzed(name)
        print(f"{name}: {targets[name]}", file=sys.stderr, flush=True)
    bounds = {"memory_mb": MEMORY_MB, "seconds_of_an_input": TIMEOUT_S}
    print(json.dumps({"machine": machine, "bounds": bounds, "targets": targets}, indent=2))
    return int(any(found["finds"] for found in targets.values()))


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(TARGETS):
        sys.exit(f"no target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if place := os.environ.get("HZ_FUZZ_IN"):
        fuzz(sys.argv[1], Path(place))
    else:
        sys.exit(fuzz_all(sys.argv[1:] or list(TARGETS)))
