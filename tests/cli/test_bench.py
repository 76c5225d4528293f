"""hz-bench at the command line, and benchmarks/gpu_check.py where most packages are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from help_pages import help_of
from hz_cli.bench import bench
from hz_cli.bench_table import speed_lines, table
from hz_runtime.bundle.store import write_bundle
from small_scans import write_scans
from tiny import tiny_files, tiny_manifest

# What the machine with the GPU may lack: a script that needs one of these would not start there.
ABSENT = ("nibabel", "isal", "click", "safetensors", "nilearn", "tqdm")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scans(tmp_path / "scans", 2)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "says"), [((), "speed"), (("speed",), "--checkpoint"), (("parity",), "--rejudge")]
)
def test_help_imports_nothing_heavy(command: tuple[str, ...], says: str) -> None:
    shown, imported = help_of("bench", *command)
    assert says in shown
    assert not imported


@pytest.mark.parametrize("text", ["mean", "mean=-1", "mean=nan", "psnr=3", "years95=inf"])
def test_a_malformed_tolerance_is_a_usage_error(text: str) -> None:
    done = run("parity", "--tolerance", text)
    assert done.exit_code == 2
    assert "is none of mean=X, p999=X, years=X, relative=X, years95=X, probability=X" in done.output


def test_every_threshold_of_a_tolerance_can_be_given() -> None:
    from hz_cli.options import TOLERANCES, TOLERANCES_HELP
    from hz_export.differences import KEYS

    assert set(TOLERANCES) == set(KEYS)
    assert all(f"{key}=X" in TOLERANCES_HELP for key in KEYS)


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,,4", "4096"])
def test_malformed_batches_are_a_usage_error(text: str) -> None:
    done = run("speed", "--batch", text)
    assert done.exit_code == 2
    assert "is not a list such as 1,4,16" in done.output


def test_speed_prints_a_table_and_writes_json(tiny_bundle: Path, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = folder / "speed.json"
    done = run(
        "speed", tiny_bundle, "--only", "onnxruntime-cpu", "--batch", "2,1", "--repeat", 2, "--warmup", 1,
        "--threads", 1, "--scans", folder / "scans", "--json", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    head = next(line for line in lines if line.startswith("engine"))
    assert head.split() == [
        "engine",
        "batch",
        "what",
        "ms",
        "p95",
        "volumes/s",
        "GFLOP/s",
        "of",
        "peak",
        "x",
        "base",
    ]
    assert next(line.split()[2] for line in lines if line.startswith("onnxruntime-cpu fp32")) == "2"
    assert any(line.startswith("left out: torch: no --checkpoint") for line in lines)
    result = json.loads(out.read_text())
    assert result["benchmark"] == "hz-bench speed"
    assert list(result["contenders"][0]["batches"]) == ["2", "1"]
    assert result["machine"]["packages"]["numpy"]
    assert str(folder) not in out.read_text()


def test_json_on_standard_output_is_nothing_but_json(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = ("--only", "onnxruntime-cpu", "--batch", 1, "--repeat", 1, "--warmup", 0, "--threads", 1)
    done = run("speed", tiny_bundle, *options, "--json", "-")
    assert json.loads(done.stdout)["bundle"]["name"] == "tiny"
    assert "onnxruntime-cpu fp32" in done.stderr


@pytest.fixture(scope="module")
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.hz, float32 and float16, two channels wide, and the checkpoint it was made of."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    request.getfixturevalue("exported_once")
    from hz_export.assemble import export_bundle
    from hz_export.export_options import ExportOptions
    from small_checkpoints import write_harmonizer

    folder = tmp_path_factory.mktemp("small")
    path = write_harmonizer(folder)
    export_bundle([path], folder / "small.hz", ExportOptions(precisions=("fp16",), check_parity=False))
    return folder


def test_speed_of_the_network_itself_in_torch(small: Path, tmp_path: Path) -> None:
    """A checkpoint brings PyTorch into the race; its eager float32 is what others are compared with."""
    options = ("--batch", 1, "--repeat", 2, "--warmup", 1, "--threads", 1, "--only", "eager", "--only", "cpu")
    command = ("speed", small / "small.hz", *options, "--json", "-", "--checkpoint")
    done = run(*command, small / "harmonizer.safetensors")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    found = {candidate["name"]: candidate["batches"]["1"] for candidate in result["contenders"]}
    assert {"torch eager fp32", "torch eager fp32 channels_last_3d", "onnxruntime-cpu fp32"} <= set(found)
    assert result["baseline"]["cpu"] == "torch eager fp32"
    row = found["torch eager fp32"]["model"]
    assert row["flops_per_s"] == pytest.approx(
        result["model"]["conv_flops"] / row["median_ms"] * 1e3, rel=1e-3
    )
    assert any("torch eager fp16" in item["name"] for item in result["left_out"]) or result["machine"]["gpu"]

    from small_checkpoints import write_harmonizer

    refused = run(*command, write_harmonizer(tmp_path, network={"width": 2, "again": 1}, target="bergen"))
    assert refused.exit_code == 2


def test_parity_with_the_checkpoint(small: Path, folder: Path) -> None:
    command = ("parity", small / "small.hz", "--checkpoint", small / "harmonizer.safetensors", "--threads", 1)
    done = run(*command, "--scans", folder / "scans", "--backend", "onnxruntime-cpu")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("harmonizer reference: torch")


def test_parity_and_judging_it_again(tiny_bundle: Path, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = folder / "evidence.json"
    command = (
        "parity",
        tiny_bundle,
        "--scans",
        folder / "scans",
        "--backend",
        "onnxruntime-cpu",
        "--threads",
        1,
    )
    done = run(*command, "--json", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "within tolerance"
    assert "harmonizer.fp16.onnx" in done.stdout
    assert str(folder) not in out.read_text()

    again = run("parity", tiny_bundle, "--rejudge", out)
    assert again.exit_code == 0, again.output
    strict = run("parity", tiny_bundle, "--rejudge", out, "--tolerance", "mean=0", "--tolerance", "years95=0")
    assert strict.exit_code == 1
    assert "past: harmonizer.fp16.onnx on onnxruntime" in strict.stderr
    assert run(*command, "--tolerance", "mean=0").exit_code == 1


def test_evidence_is_not_taken_for_another_bundle(tiny_bundle: Path, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = folder / "evidence.json"
    run("parity", tiny_bundle, "--scans", folder / "scans", "--backend", "onnxruntime-cpu", "--json", out)
    files = tiny_files()
    files["age.onnx"] = files["age.fp16.onnx"]
    write_bundle(folder / "changed.hz", tiny_manifest(), files)
    done = run("parity", folder / "changed.hz", "--rejudge", out)
    assert done.exit_code == 4
    assert "the evidence for age.onnx is of other bytes" in done.output


@pytest.mark.parametrize("text", ["no json", "[]", "{}"])
def test_what_is_no_evidence_is_a_usage_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    done = run("parity", "--rejudge", path)
    assert done.exit_code == 2
    assert "e.json is not" in done.output or "not evidence" in done.output


def test_the_manifest_of_a_bundle_is_evidence_too(root: Path) -> None:
    done = run("parity", "--rejudge", root / "runtime/hz_runtime/models/reference.hz/bundle.json")
    assert done.exit_code == 0, done.output
    assert "harmonizer.onnx" in done.stdout


def test_tables_line_up() -> None:
    assert list(table([("a", "bb"), ("ccc", "1")])) == ["a    bb", "ccc   1"]


def test_a_failed_engine_is_a_row() -> None:
    lines = speed_lines(
        {
            "bundle": {"name": "b"}, "model": {"role": "age"}, "machine": {"cpu": "c", "gpu": None},
            "threads": 1, "peak": {}, "baseline": {}, "left_out": [],
            "contenders": [{"name": "x fp32", "batches": {"16": {"model": {"error": "MemoryError"}}}}],
        }
    )  # fmt: skip
    assert any("x fp32" in line and "failed: MemoryError" in line for line in lines)


def gpu_check(root: Path, tmp_path: Path, *arguments: object, code: int = 0) -> dict:
    """Its document, from an interpreter (and its children) that cannot import what is ABSENT."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text("raise ImportError('absent in this test')\n")
    script = root / "benchmarks" / "gpu_check.py"
    own = {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *(str(a) for a in arguments)],
        env={**os.environ, **own}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def test_gpu_check_without_a_gpu_says_so(root: Path, tmp_path: Path) -> None:
    document = gpu_check(root, tmp_path)
    assert document["cuda"] is False
    assert "no NVIDIA GPU" in document["note"]
    assert document["sections"] == {}
    assert document["machine"]["gpu"] is None


def test_gpu_check_runs_its_sections_without_readers_and_commands(
    root: Path, small: Path, tmp_path: Path
) -> None:
    """On the CPU, two channels wide: the sections, their isolation, and the document."""
    out = tmp_path / "out.json"
    document = gpu_check(root, tmp_path, "--dry", "--bundle", small / "small.hz", "--out", out)
    assert document == json.loads(out.read_text())
    sections = document["sections"]
    assert sections["subject"]["ok"], sections["subject"]
    assert document["weights"] == "the bundle's own, read back from its ONNX file"
    assert document["volumes"]["simulated"] is True
    names = [candidate["name"] for candidate in document["contenders"]]
    assert names[0] == "torch eager fp32"
    for candidate in document["contenders"]:
        assert candidate["parity"]["1"]["past"] == [], candidate["name"]
        assert candidate["batches"]["1"]["model"]["median_ms"] > 0
    native = document["native_resolution"]
    assert native["shape"] == [182, 218, 182]
    assert native["device_against_cpu"]["max"] < 1e-3  # torch's pooling and interpolation beside hz's own
    assert document["complete"] is True
    assert document["met"] == {}  # no float16 was run, so nothing is claimed
    tried = {name: section for name, section in sections.items() if name.startswith("try ")}
    assert set(tried) == {"try onnxruntime", "try tensorrt", "try tensorrt_rtx"}
    assert tried["try tensorrt"]["error"]  # not installed, or no GPU to build on


def test_gpu_check_names_volumes_that_it_cannot_use(root: Path, tmp_path: Path) -> None:
    (tmp_path / "v.npz").write_bytes(b"no array")
    document = gpu_check(root, tmp_path, "--dry", "--volumes", tmp_path / "v.npz", code=1)
    assert document["sections"]["subject"]["ok"] is False
    assert document["sections"]["subject"]["error"]


def test_gpu_check_keeps_what_a_killed_run_had_found(root: Path, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(root / "benchmarks" / "gpu_check.py"), "--dry", "--out", str(out)]
    with subprocess.Popen(
        [*command, "--bundle", str(small / "small.hz")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while not out.exists() and running.poll() is None:
            time.sleep(0.05)
        running.kill()
    document = json.loads(out.read_text())
    assert document["complete"] is False
    assert document["sections"]["subject"]["ok"]


def test_train_step_finds_hz_where_it_is_not_installed(root: Path) -> None:
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    script = str(root / "benchmarks" / "train_step.py")
    done = subprocess.run([sys.executable, script, "--help"], env=own, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
