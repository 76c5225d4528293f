"""`make release`: distributions, lock files, bills of materials; `make audit`: known advisories.

    python release/make.py build       sdist and wheel, twice, from two places: the same bytes
    python release/make.py locks       release/locks/EXTRA.txt anew: every version, every hash
    python release/make.py boms        dist/*.cdx.json: an SBOM of each lock file, an ML-BOM of the bundle
    python release/make.py check       what is installed in this environment is in its SBOM
    python release/make.py audit       advisories of every locked package; one that is not audited fails

It runs in an environment with the extra `release` and says what failed. It publishes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS, DIST = ROOT / "release" / "locks", ROOT / "dist"
# What an environment has before anything is installed into it, and hz itself.
OWN = {"hz-mri", "pip", "setuptools", "wheel"}
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


class Failed(Exception):
    """A step whose result must not be released."""


def run(*command: object, **environment: str) -> None:
    """Run a program in the repository. Raises Failed."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise Failed(f"{Path(str(command[0])).name} {command[1]} ended with exit code {done.returncode}")


def extras() -> list[str]:
    """The extras that somebody installs to run hz, and those for working on it."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        return sorted(tomllib.load(file)["project"]["optional-dependencies"])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(lock: str) -> dict[str, str]:
    """name -> version of every package of a lock file's text."""
    return {canonical(name): version for name, version in _PINNED.findall(lock)}


def build() -> None:
    """Two builds of the committed tree, in folders of different names, at the time of its commit."""
    time = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    made = []
    with tempfile.TemporaryDirectory(prefix="hz-release-") as place:
        for name in ("one", "a-second-one"):
            tree = Path(place) / name
            tree.mkdir()
            archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
            run(
                sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree,
                SOURCE_DATE_EPOCH=time,
            )  # fmt: skip
            made.append({path.name: path.read_bytes() for path in sorted((tree / "dist").iterdir())})
    same_builds(*made)
    DIST.mkdir(exist_ok=True)
    for name, data in made[0].items():
        (DIST / name).write_bytes(data)
        print(f"{hashlib.sha256(data).hexdigest()}  {name}")


def same_builds(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> None:
    """Raise Failed where two builds differ, naming the files."""
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    if differing or not one:
        raise Failed(f"two builds differ: {', '.join(differing) or 'nothing was built'}")


def locks() -> None:
    """Every extra's packages with the versions of constraints.txt, for all platforms, with their hashes."""
    LOCKS.mkdir(exist_ok=True)
    for extra in extras():
        run(
            "uv", "pip", "compile", "pyproject.toml", "--quiet", "--extra", extra, "--universal",
            "--python-version", "3.11", "--constraint", "constraints.txt", "--generate-hashes", "--no-header",
            "--no-annotate", "--output-file", LOCKS / f"{extra}.txt",
        )  # fmt: skip
        print(f"{extra}: {len(pinned((LOCKS / f'{extra}.txt').read_text()))} packages")


def boms() -> None:
    """Strictly validated: CycloneDX 1.6."""
    DIST.mkdir(exist_ok=True)
    for extra in extras():
        out, lock = DIST / f"hz-{extra}.cdx.json", LOCKS / f"{extra}.txt"
        run(
            sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", lock,
            "--pyproject", "pyproject.toml", "--spec-version", "1.6", "--output-format", "JSON",
            "--output-reproducible", "--no-validate", "--output-file", out,
        )  # fmt: skip
        validated(out.read_text())  # its own validation lets unknown keys pass
        unlisted(pinned(lock.read_text()), json.loads(out.read_bytes()))
        print(out.name)
    out = DIST / "reference.hz.cdx.json"
    run(sys.executable, "-m", "hz_cli.bundle", "bom", "--out", out)
    validated(out.read_text())


def validated(bom: str) -> None:
    """Raise Failed where a text is no CycloneDX 1.6, unknown keys counted as errors."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom):
        raise Failed(f"no CycloneDX 1.6: {' '.join(str(fault).split())[:500]}")


def unlisted(installed: Mapping[str, str], bom: Mapping[str, Any]) -> None:
    """Raise Failed for a package, name -> version, that an SBOM does not list so."""
    listed = {(canonical(part["name"]), str(part.get("version"))) for part in bom["components"]}
    missing = sorted(f"{n} {v}" for n, v in installed.items() if n not in OWN and (n, v) not in listed)
    if missing:
        raise Failed(f"not in the bill of materials: {', '.join(missing)}")


def check(names: Iterable[str]) -> None:
    """Hold this environment to the SBOM of the extras that were installed into it."""
    parts = [json.loads((DIST / f"hz-{name}.cdx.json").read_bytes())["components"] for name in names]
    installed = {canonical(str(one.metadata["Name"])): one.version for one in distributions()}
    unlisted(installed, {"components": [component for part in parts for component in part]})
    print(f"{len(installed)} packages, all of them listed")


def audit() -> None:
    """pip-audit over every lock file; --strict: a package that could not be audited is a failure."""
    failed = []
    for extra in extras():
        try:
            run(
                sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--require-hashes",
                "--requirement", LOCKS / f"{extra}.txt",
            )  # fmt: skip
        except Failed:
            failed.append(extra)
    if failed:
        raise Failed(f"advisories, or packages that could not be audited: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=("build", "locks", "boms", "check", "audit"))
    parser.add_argument("extras", nargs="*", help="check: those installed here, e.g. cpu prep")
    given = parser.parse_args()
    steps = {"build": build, "locks": locks, "boms": boms, "audit": audit}
    try:
        steps[given.step]() if given.step in steps else check(given.extras or ("cpu",))
    except Failed as failure:
        sys.exit(f"release: {failure}")


if __name__ == "__main__":
    main()
