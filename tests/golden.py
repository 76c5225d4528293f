"""Hashes of what hz-run writes, for tests that hold a change of the code's shape to an unchanged result.

Hashes hold for one processor and one set of packages only: engines pick their arithmetic by both. So each set
of hashes in golden.json stands under the `machine_key` that it was made on, and tests skip on any other.

    python tests/golden.py     make the hashes of this machine anew, after a change that is meant to be seen
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HASHES = Path(__file__).with_name("golden.json")
SCANS = ROOT.parent / "shared" / "scans"
REAL = (
    "skullstripped/ds002748_sub-54_T1w_brain.nii.gz",
    "skullstripped/niimath_T1_0.8mm_brain.nii.gz",
    "skullstripped/oasis_1000_brain.nii.gz",
    "skullstripped/oasis_1119_brain.nii.gz",
    "skullstripped/visualqc_id001_brainmask.mgz",
    "real_cohort_2mm/ds002748_sub-01_T1w.nii.gz",
    "real_cohort_2mm/ds002748_sub-02_T1w.nii.gz",
    "skullstripped/ds002748_sub-63_T1w_brain.nii.gz",
    "skullstripped/oasis_1023_brain.nii.gz",
    "nasty/*.nii.gz",
)
BUNDLE = "runtime/hz_runtime/models/reference.hz"
# Of run.json: when it ran, how long it took, and on what.
VOLATILE = ("started", "seconds", "versions", "timings")


def machine_key() -> str:
    """The processor's vector instructions and the packages that results hang on, as one hash."""
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        flags = " ".join(
            sorted(f for f in told.split() if f.startswith(("avx", "sse", "amx", "fma", "neon")))
        )
    packages = [f"{name} {version(name)}" for name in ("numpy", "onnxruntime", "isal", "niimath")]
    text = "|".join([platform.machine(), flags, platform.python_version(), *packages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashes_of(folder: Path) -> dict[str, str]:
    """{name: sha256} of a results folder's files but for its log and pages; run.json without VOLATILE."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".html", ".log") or path.name.startswith("."):
            continue
        data = path.read_bytes()
        if path.name == "run.json":
            run = {k: v for k, v in json.loads(data).items() if k not in VOLATILE}
            for scan in run["scans"]:
                scan.pop("seconds")
            data = json.dumps(run, indent=1).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def run_hz(out: Path, *arguments: str, root: Path = ROOT) -> dict[str, str]:
    """Hashes of what hz-run writes into `out`, on one thread of onnxruntime."""
    rooms = os.pathsep.join(str(root / room) for room in ("runtime", "cli"))
    command = [sys.executable, "-m", "hz_cli.run", *arguments, "--out", str(out), "--plain", "--quiet"]
    command += ["--require", "onnxruntime-cpu", "--threads", "1"]
    command += ["--model", str(root / BUNDLE)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": rooms}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    return hashes_of(out)


def demo_hashes(work: Path, root: Path = ROOT) -> dict[str, str]:
    """The demo's three scans, simulated by code."""
    from hz_cli.demo_scans import mni152_head, write_scans

    scans = write_scans(work / "scans", mni152_head())
    return run_hz(work / "out", *map(str, scans), root=root)


def real_hashes(work: Path, root: Path = ROOT) -> dict[str, str]:
    """Ten real scans and the malformed ones, in both spaces."""
    return run_hz(work / "out", *(str(SCANS / name) for name in REAL), "--space", "both", root=root)


def head_hashes(work: Path, root: Path = ROOT) -> dict[str, str]:
    """One whole head of 2 mm, by way of the template."""
    head = SCANS / "wholehead" / "IXI013-HH-1212_T1_2mm.nii.gz"
    return run_hz(work / "out", str(head), "--prepare", "--brain-mask", "template", root=root)


KINDS = {"demo": demo_hashes, "real": real_hashes, "head": head_hashes}


def main(root: Path = ROOT) -> None:
    known = json.loads(HASHES.read_text()) if HASHES.is_file() else {}
    made = {}
    for kind, make in KINDS.items():
        with tempfile.TemporaryDirectory() as work:
            made[kind] = make(Path(work), root)
    known[machine_key()] = made
    HASHES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / room) for room in ("runtime", "cli")]
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
