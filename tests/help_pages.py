"""A command's --help in a fresh interpreter: what it prints, and which heavy packages that imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("runtime", "calibration", "train", "export", "cli")
HEAVY = (
    "torch", "onnx", "onnxruntime", "openvino", "numpy", "scipy", "nibabel", "nilearn", "tqdm", "rich",
    "hz_train", "hz_calibration", "hz_export",
)  # fmt: skip
_CODE = """
import importlib, json, sys
module, heavy, *arguments = sys.argv[1:]
sys.argv = [module, *arguments, "--help"]
try:
    importlib.import_module(module).main()
finally:
    print(json.dumps(sorted(set(heavy.split()) & set(sys.modules))))
"""


def help_of(command: str, *arguments: str) -> tuple[str, list[str]]:
    """(what `hz-COMMAND ARGUMENTS... --help` prints, packages of HEAVY that it imported)."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, f"hz_cli.{command}", " ".join(HEAVY), *arguments],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown, _, imported = done.stdout.rstrip("\n").rpartition("\n")
    return shown, json.loads(imported)
