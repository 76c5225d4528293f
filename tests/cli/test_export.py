"""hz-export at the command line: quick help, exit codes, errors a user can act on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from help_pages import help_of
from hz_cli.export import main


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_help_imports_nothing_heavy() -> None:
    shown, imported = help_of("export")
    assert "--half-weights / --full-weights" in shown
    assert not imported


@pytest.mark.parametrize("text", ["mean", "mean=", "mean=-1", "mean=nan", "psnr=3", "years=inf"])
def test_a_malformed_tolerance_is_a_usage_error(text: str) -> None:
    done = export("c.safetensors", "--out", "x.hz", "--tolerance", text)
    assert done.exit_code == 2
    assert "is none of mean=X, p999=X, years=X, relative=X, years95=X, probability=X" in done.output


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


@pytest.mark.usefixtures("exported_once")
def test_from_checkpoint_to_bundle(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from hz_runtime.bundle.store import load_bundle
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


@pytest.mark.usefixtures("exported_once")
def test_an_engine_for_workstations_needs_no_gpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX:  pip install 'hz-mri[rtx]'")
    from hz_runtime.bundle.store import load_bundle
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
    assert "follows a precision plan, and there is none" in done.output
    assert "hz-calibrate" in done.output


@pytest.mark.usefixtures("exported_once")
def test_int8_from_a_checkpoint_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hz-calibrate, hz-export --int8, hz-run --precision int8: each command as a user types it."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from hz_cli import batch, calibrate, run
    from hz_runtime.backends.registry import installed
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.io.volume import read_volume
    from small_checkpoints import write_harmonizer
    from small_scans import write_scans

    scans, plan, bundle = tmp_path / "scans", tmp_path / "plan.json", tmp_path / "site.hz"
    first, _, last = write_scans(scans, 3)
    checkpoint = write_harmonizer(tmp_path, statistics={})
    made = CliRunner().invoke(
        calibrate.main, [str(a) for a in (checkpoint, first, "-o", plan, "--no-half", "--method", "minmax")]
    )
    assert made.exit_code == 0, made.output
    assert "14 of 16 convolutions in int8" in made.output

    options = ("--int8", "--plan", plan, "--scans", scans, "--localize")
    done = export(*options, checkpoint, "--out", bundle)
    assert done.exit_code == 0, done.output
    assert "2 of 3 scans given by --scans, 1 left out that the precision plan was made on" in done.output
    assert "localize: nothing to explain" in done.output
    entry = load_bundle(bundle).model("harmonizer", precision="int8")
    assert entry.parity["volumes"]["n"] == 2

    monkeypatch.setattr(batch.signal, "signal", lambda *_: None)
    found = {}
    for engine, _ in installed():
        for precision in ("fp32", "int8"):
            out = tmp_path / f"{engine}-{precision}"
            what = ("--require", engine, "--precision", precision, "--space", "model", "--dtype", "float32")
            arguments = (last, "--model", bundle, "--out", out, *what, "--no-report", "--quiet")
            ran = CliRunner().invoke(run.main, [str(a) for a in arguments])
            assert ran.exit_code == 0, ran.output
            achieved = json.loads((out / "run.json").read_text())["backend"]["precision"]
            # onnxruntime has no int8 convolution of volumes: it computes in float32 what is held as int8
            assert achieved == ("int8+fp32" if (engine, precision) == ("openvino", "int8") else "fp32")
            (volume,) = out.glob("*_T1w.nii.gz")
            found[engine, precision] = read_volume(volume).data
    for engine, _ in installed():
        gap = np.abs(found[engine, "int8"] - found[engine, "fp32"])[found[engine, "fp32"] > 0.02]
        assert 0 < gap.mean() < 0.02 * found[engine, "fp32"].mean()

    absent = CliRunner().invoke(run.main, [str(a) for a in (last, "--model", bundle, "--precision", "fp16")])
    assert absent.exit_code == 2
    assert "site.hz holds no fp16 file" in absent.output


def test_localize_has_nothing_to_explain_without_parity(tmp_path: Path) -> None:
    done = export("c.safetensors", "--out", tmp_path / "x.hz", "--no-parity", "--localize")
    assert done.exit_code == 2
    assert "leave --no-parity out" in done.output


def test_the_brain_mask_is_an_export_of_its_own() -> None:
    shown, imported = help_of("export", "brain-mask")
    assert "deepbet" in shown and "--wheel" in shown and "CHECKPOINT" not in shown
    assert not imported
    assert "export brain-mask " in help_of("export")[0]


def test_a_wheel_that_is_none_is_one_message(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    (tmp_path / "other.whl").write_bytes(b"no archive")
    done = export("brain-mask", "--wheel", tmp_path / "other.whl", "--out", tmp_path / "masks.hz")
    assert done.exit_code == 2
    assert "other.whl is not the wheel of deepbet" in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "masks.hz").exists()
