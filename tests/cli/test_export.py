"""hz-export at the command line: quick help, exit codes, errors a user can act on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hz_cli.export import main

HELP = """
import json, sys
sys.argv = ["hz-export", "--help"]
from hz_cli.export import main
try:
    main()
finally:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "numpy", "scipy", "nibabel", "nilearn", "hz_export"}
    print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_help_imports_nothing_heavy(root: Path) -> None:
    rooms = ("runtime", "calibration", "train", "export", "cli")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / room) for room in rooms)}
    done = subprocess.run(
        [sys.executable, "-c", HELP], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--half-weights / --full-weights" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["mean", "mean=", "mean=-1", "mean=nan", "psnr=3", "years=inf"])
def test_a_malformed_tolerance_is_a_usage_error(text: str) -> None:
    done = export("c.safetensors", "--out", "x.hz", "--tolerance", text)
    assert done.exit_code == 2
    assert "is not mean=X, p999=X or years=X" in done.output


def test_out_is_asked_for() -> None:
    assert export("c.safetensors").exit_code == 2


def test_a_missing_checkpoint_is_one_message(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    done = export(tmp_path / "absent.safetensors", "--out", tmp_path / "x.hz")
    assert done.exit_code == 2
    assert "absent.safetensors is not a complete checkpoint" in done.output
    assert "Traceback" not in done.output


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    done = export("c.safetensors", "--out", tmp_path / "x.hz")
    assert done.exit_code == 2
    assert "needs torch" in done.output
    assert "hz-mri[export]" in done.output


def test_from_checkpoint_to_bundle(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from hz_runtime.bundle import load_bundle
    from small_checkpoints import write_harmonizer
    from small_scans import write_scans

    (tmp_path / "scans").mkdir()
    write_scans(tmp_path / "scans", 1)
    path = write_harmonizer(tmp_path)
    command = ("--fp16", path, "--out", tmp_path / "site.hz", "--scans", tmp_path / "scans")
    refused = export(*command, "--tolerance", "p999=0", "--tolerance", "mean=0")
    assert refused.exit_code == 1
    assert "Not published" in refused.output
    assert not (tmp_path / "site.hz").exists()

    done = export(*command)
    assert done.exit_code == 0, done.output
    assert [e.precision for e in load_bundle(tmp_path / "site.hz").models] == ["fp32", "fp16"]
    assert done.output.splitlines()[-1].startswith("next:  hz-run")

    again = export(*command)
    assert again.exit_code == 2
    assert "site.hz exists" in again.output


@pytest.mark.parametrize("text", ["1,4", "4,1,16", "0,1,2", "a,b,c", "1,2,3,4"])
def test_malformed_batches_are_a_usage_error(text: str) -> None:
    done = export("c.safetensors", "--out", "x.hz", "--batches", text)
    assert done.exit_code == 2
    assert "is not MIN,BEST,MAX" in done.output


def test_tensorrt_that_is_not_here_is_exit_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from hz_export import engine_target
    from small_checkpoints import write_age

    monkeypatch.setattr(engine_target, "find_spec", lambda name: None)
    done = export("--fp16", "--engine", "tensorrt", write_age(tmp_path), "--out", tmp_path / "x.hz")
    assert done.exit_code == 5
    assert "TensorRT (tensorrt) is not installed" in done.output
    assert "hz-mri[tensorrt]" in done.output


def test_an_engine_for_workstations_needs_no_gpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX:  pip install 'hz-mri[rtx]'")
    from hz_runtime.bundle import load_bundle
    from small_checkpoints import write_age

    command = ("--fp16", "--bf16", "--engine", "rtx", "--batches", "1,1,2", "--no-parity")
    done = export(*command, write_age(tmp_path), "--out", tmp_path / "x.hz")
    assert done.exit_code == 0, done.output
    engines = load_bundle(tmp_path / "x.hz").engines
    assert [(e.record.precision, e.record.profile.most) for e in engines] == [("fp16", 2), ("bf16", 2)]
    unknown = export(
        "--engine", "rtx", "--capability", "9.0", tmp_path / "age.safetensors", "--out", tmp_path / "y.hz"
    )
    assert unknown.exit_code == 5
    assert "does not build for compute capability 9.0" in unknown.output


def test_int8_without_a_plan_says_how_to_make_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from small_checkpoints import write_age

    done = export("--int8", write_age(tmp_path), "--out", tmp_path / "x.hz", "--no-parity")
    assert done.exit_code == 2
    assert "none for: age" in done.output
    assert "hz-calibrate" in done.output
