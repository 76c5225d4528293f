"""Coverage-guided fuzzing of the parsers, with bounds on time and memory: what `make fuzz` runs.

    python tests/attacks/fuzz.py              every target in turn, each in a process of its own
    python tests/attacks/fuzz.py nifti        one target; further words are options of libFuzzer

$FUZZ_RUNS and $FUZZ_SECONDS bound each target (1000000, 3600). An input that takes over 20 s or 512 MB is a
find, as is whatever a target raises; it is kept beside the corpus, in build/fuzz/TARGET. It needs atheris.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = [ROOT / name for name in ("runtime", "cli", "tests")]
MEMORY_MB, TIMEOUT_S, LONGEST = 512, 20, 8192  # LONGEST: bytes of an input
TARGETS = ("nifti", "manifest", "participants", "arrival", "account")


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target until its bounds; does not return."""
    import atheris

    sys.path[:0] = map(str, PLACES)
    with atheris.instrument_imports(include=["hz_runtime", "hz_cli"]):
        import parsers_under_attack as parsers
    kept = ROOT / "build" / "fuzz" / name
    (kept / "seeds").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(parsers.seeds(name, Path(folder))):
            (kept / "seeds" / str(number)).write_bytes(data)
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    target = parsers.TARGETS[name]
    bounds = [
        f"-runs={os.environ.get('FUZZ_RUNS', '1000000')}",
        f"-max_total_time={os.environ.get('FUZZ_SECONDS', '3600')}",
        f"-rss_limit_mb={MEMORY_MB}", f"-timeout={TIMEOUT_S}", f"-max_len={LONGEST}",
        f"-artifact_prefix={kept}/", "-print_final_stats=1", "-close_fd_mask=0",
    ]  # fmt: skip
    corpus = kept / "corpus"
    corpus.mkdir(exist_ok=True)
    atheris.Setup(
        ["fuzz", *bounds, *options, str(corpus), str(kept / "seeds")], lambda data: target(data, work)
    )
    atheris.Fuzz()


def fuzz_all() -> int:
    """Fuzz every target, and say how often each was run; 1 where there was a find."""
    found = 0
    for name in TARGETS:
        done = subprocess.run(
            [sys.executable, __file__, name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
        peak = re.search(r"stat::peak_rss_mb: +(\d+)", done.stderr)
        print(
            f"{name}: {runs[1] if runs else 'unknown'} executions, {peak[1] if peak else 'unknown'} MB, "
            f"{'no find' if done.returncode == 0 else 'a find; see build/fuzz/' + name}",
            flush=True,
        )
        if done.returncode:
            found = 1
            print(done.stderr[-3000:], file=sys.stderr)
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fuzz(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(fuzz_all())
