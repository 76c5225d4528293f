"""What it costs to start: CPU seconds of every command's `--help` and of `import hz_runtime`.

    python benchmarks/startup.py [--repeat N]

CPU time (user and system) of a fresh interpreter, median over the repeats, so that a busy machine does
not spoil it; Python's own start is listed to compare. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [str(ROOT / room) for room in ("runtime", "calibration", "train", "export", "cli")]
IMPORT_LIMIT, HELP_LIMIT = 0.2, 0.3  # seconds


def commands() -> dict[str, list[str]]:
    """Arguments for Python by what they are called; the commands are those that pyproject.toml installs."""
    found = {"python -c pass": ["-c", "pass"], "import hz_runtime": ["-c", "import hz_runtime"]}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, place in sorted(scripts.items()):
        module, _, function = place.partition(":")
        code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
        found[f"{name} --help"] = ["-c", code, "--help"]
    return found


def limits() -> dict[str, float]:
    """Seconds that are allowed, by the same names; Python's own start has none."""
    helps = {name: HELP_LIMIT for name in commands() if name.endswith("--help")}
    return {"import hz_runtime": IMPORT_LIMIT, **helps}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one fresh interpreter; raises where it fails."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOMS)}
    process = subprocess.Popen([sys.executable, *arguments], env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    machine = describe_machine()
    seconds = {}
    for name, arguments in commands().items():
        cpu_seconds(arguments)  # compiles .pyc files and warms the disk cache
        seconds[name] = round(statistics.median(cpu_seconds(arguments) for _ in range(repeat)), 4)
    met = {name: seconds[name] < limit for name, limit in limits().items()}
    result = {"cpu_seconds": seconds, "limits": limits(), "met": met, "repeat": repeat, "machine": machine}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
