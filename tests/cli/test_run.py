"""hz-run as a user meets it: exit codes, what it prints, signals, and what it imports."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from help_pages import help_of
from hz_cli import render
from small_scans import write_scan, write_scans

ROOT = Path(__file__).resolve().parents[2]
ROOMS = [str(ROOT / room) for room in ("runtime", "cli")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*ROOMS, os.environ.get("PYTHONPATH", "")])}


def command(source: Path, out: Path, model: Path) -> list[str]:
    return [sys.executable, "-m", "hz_cli.run", str(source), "--out", str(out), "--model", str(model)]


@pytest.fixture
def hz_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the command in this process, in an empty folder, signals left as they were."""
    from hz_cli import run

    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("hz_cli.batch.signal.signal", lambda *_: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *args: CliRunner().invoke(run.main, [str(a) for a in args])


def test_a_good_run_ends_with_where_to_look(hz_run, model: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "in", 2)
    done = hz_run(tmp_path / "in", "--model", model)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("[1/2] sub-0")
    assert "  ok  age " in lines[0]
    assert lines[-1].startswith("2 scans: 2 ok in ")
    assert lines[-1].endswith("see report.html in hz-out")
    assert Path("hz-out/run.json").is_file()
    again = hz_run(tmp_path / "in", "--model", model, "--quiet")
    assert again.exit_code == 0
    assert again.stdout.startswith("2 scans: 2 skipped")
    assert not again.stderr


def test_a_precision_that_is_asked_for_runs_and_is_no_earlier_result(
    hz_run, model: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    asked = ("--model", model, "--no-report", "--quiet", "--precision", "fp16")
    assert hz_run(scan, *asked[:4]).exit_code == 0
    done = hz_run(scan, *asked)
    assert done.stdout.startswith("1 scan: 1 ok"), done.output
    run = json.loads(Path("hz-out/run.json").read_text())
    assert any("runs harmonizer.fp16.onnx (fp16)" in step for step in run["backend"]["ladder"])
    assert run["options"]["precision"] == "fp16"
    assert hz_run(scan, *asked).stdout.startswith("1 scan: 1 skipped")
    none = hz_run(scan, *asked[:5], "int8")
    assert none.exit_code == 2 and "tiny.hz holds no int8 file" in none.stderr


def test_some_failed_is_exit_3(hz_run, model: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "in", 1)
    (tmp_path / "in/bad.nii").write_bytes(b"no scan")
    done = hz_run(tmp_path / "in", "--model", model, "--no-report", "--quiet")
    assert done.exit_code == 3
    assert "bad.nii  failed  " in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout.count("\n") == 1
    assert "see predictions.tsv and run.json" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing-here.nii.gz"], "no scan found"),
        (["*.nii.gz"], "no scan found"),
        ([], "Missing argument"),
        (["a.nii.gz", "--space", "mars"], "mars"),
        (["a.nii.gz", "--threads", "0"], "threads"),
        (["a.nii.gz", "--to", "nowhere"], "nowhere"),
        (["a.nii.gz", "b.nii.gz", "--age", "30"], "--age is for a single scan"),
        (["a.nii.gz", "--age", "nan"], "nan is not within 0 to 120 years"),
        (["a.nii.gz", "--participants", "none.tsv"], "none.tsv"),
        (["a.nii.gz", "--out", "a.nii.gz"], "cannot write into"),
    ],
)
def test_usage_is_exit_2_and_does_nothing(hz_run, model: Path, arguments: list[str], says: str) -> None:
    if "nothing" not in str(arguments) and "*" not in str(arguments):
        write_scans(Path("."), 1)
        os.replace("sub-01_T1w.nii.gz", "a.nii.gz")
        write_scan(Path("b.nii.gz"))
    done = hz_run(*arguments, "--model", model)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert not Path("hz-out/run.json").exists()


def test_a_refused_bundle_is_exit_4(hz_run, model: Path, tmp_path: Path) -> None:
    import shutil

    scan = write_scan(tmp_path / "a.nii.gz")
    bad = shutil.copytree(model, tmp_path / "bad.hz")
    with open(bad / "age.onnx", "ab") as file:
        file.write(b"x")
    done = hz_run(scan, "--model", bad)
    assert done.exit_code == 4
    assert "age.onnx" in done.stderr
    assert done.stderr.startswith("error: ")
    assert hz_run(scan, "--model", tmp_path / "none.hz").exit_code == 4


def test_a_required_engine_that_is_not_there_is_exit_5(
    hz_run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from hz_runtime.backends import fallback

    monkeypatch.setattr(fallback, "missing", lambda *_: ("taken away by this test", "Put it back."))
    done = hz_run(write_scan(tmp_path / "a.nii.gz"), "--model", model, "--require", "openvino")
    assert done.exit_code == 5
    assert done.stderr == (
        "error: Required backend openvino: OpenVINO CPU: not available (taken away by this test). "
        "Put it back (or leave --require out)\n"
    )


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_without_a_driver_is_one_line_and_no_crash(model: Path, tmp_path: Path, engine: str) -> None:
    """In a process of its own: TensorRT touched without a driver crashes when the interpreter ends."""
    from hz_runtime.backends import cuda_driver

    if cuda_driver.has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    scan = write_scan(tmp_path / "a.nii.gz")
    started = time.monotonic()
    done = subprocess.run(
        [*command(scan, tmp_path / "out", model), "--require", engine],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - started < 20  # alone it takes 0.4 s; a busy machine is no failure
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA driver is installed" in done.stderr
    assert "nvidia-smi" in done.stderr
    assert not (tmp_path / "out/run.json").exists()


def test_a_backend_that_is_not_to_be_had_is_announced(hz_run, model: Path, tmp_path: Path) -> None:
    from hz_runtime.backends import cuda_driver

    if cuda_driver.has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    done = hz_run(write_scan(tmp_path / "a.nii.gz"), "--model", model, "--backend", "tensorrt", "--no-build")
    assert done.exit_code == 0, done.output
    assert "harmonizer: TensorRT: not available (no NVIDIA driver is installed)" in done.stderr
    run = json.loads(Path("hz-out/run.json").read_text())
    assert run["backend"]["notes"] == []
    assert run["options"]["build"] is False


def test_the_builder_builds_for_the_gpu_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hz-run's lazy build, for real, where TensorRT for RTX is installed: it needs no GPU, torch or onnx."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed here")
    from hz_cli.run import _builder
    from hz_runtime.backends.built_engines import BuildRequest
    from hz_runtime.errors import BackendError

    monkeypatch.setenv("HZ_ENGINES", str(tmp_path))
    data = tiny.harmonizer_onnx("fp16")
    wanted = BuildRequest(data, "harmonizer.fp16.onnx", "harmonizer", "fp16", "tensorrt_rtx", "8.9")
    record, engine = _builder(quiet=True)(wanted)
    assert (record.capability, record.flavour, record.bytes) == (("8.9",), "tensorrt_rtx", len(engine))
    assert _builder(quiet=True)(wanted)[0] == record  # the second time it is kept
    assert list(tmp_path.glob("*.engine"))
    with pytest.raises(BackendError, match=r"9\.0"):  # an H100: not one of its GPUs
        _builder(quiet=True)(BuildRequest(data, "h.onnx", "harmonizer", "fp16", "tensorrt_rtx", "9.0"))


def test_a_fault_of_hz_is_exit_1_without_traceback(
    hz_run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by a test")

    from hz_runtime.batch import run

    monkeypatch.setattr(run, "run_batch", fault)
    monkeypatch.delenv("HZ_DEBUG", raising=False)
    done = hz_run(write_scan(tmp_path / "a.nii.gz"), "--model", model)
    assert done.exit_code == 1
    assert "internal error: ZeroDivisionError: by a test" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("code", "ends"), [(errno.EACCES, 2), (errno.ENOTDIR, 2), (errno.ENOSPC, 2), (errno.EIO, 1)]
)
def test_a_folder_that_cannot_be_made_is_no_fault_of_hz(
    code: int, ends: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any command: hz-train and hz-evaluate make their folders as they go."""
    monkeypatch.delenv("HZ_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended, render.ending_on_errors():
        raise OSError(code, os.strerror(code), "/doe/out")
    said = capsys.readouterr().err
    assert ended.value.code == ends
    if ends == 2:
        assert said.startswith(f"error: out: {os.strerror(code)}.\n  Check ") and "doe" not in said


def test_a_known_age_of_one_scan(hz_run, model: Path, tmp_path: Path) -> None:
    done = hz_run(write_scan(tmp_path / "a.nii.gz"), "--model", model, "--age", "40")
    assert done.exit_code == 0
    (scan,) = json.loads(Path("hz-out/run.json").read_text())["scans"]
    assert scan["age"] == 40.0
    assert scan["brain_pad"] == pytest.approx(scan["age_corrected"] - 40.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    write_scans(tmp_path / "in", 30)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(tmp_path / "in", out, model),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and not list(out.glob("*.json")):
            time.sleep(0.002)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout.splitlines()[-1].startswith("interrupted; 30 scans: ")
    assert "Traceback" not in stderr
    run = json.loads((out / "run.json").read_text())
    assert run["interrupted"]
    assert run["counts"]["failed"] == 0
    assert run["counts"]["ok"] >= 1
    assert len((out / "predictions.tsv").read_text().splitlines()) == 31
    assert (out / "report.html").is_file()
    assert not list(out.rglob("*.tmp"))
    for scan in run["scans"]:
        assert all((out / name).is_file() for name in scan["outputs"])


def test_a_signal_and_a_reader_that_is_gone(model: Path, tmp_path: Path) -> None:
    """As `hz-run ... 2>&1 | tee log`, whose tee the same Ctrl-C ends."""
    write_scans(tmp_path / "in", 30)
    out = tmp_path / "out"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        command(tmp_path / "in", out, model), env=environment(), stdout=writer, stderr=writer
    )
    os.close(writer)
    try:
        while process.poll() is None and not list(out.glob("*.json")):
            time.sleep(0.002)
        os.close(reader)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
    assert json.loads((out / "run.json").read_text())["counts"]["failed"] == 0


@pytest.mark.parametrize("sink", ["/dev/full", "latin-1"])
def test_an_output_that_cannot_be_written_does_not_stop_the_run(
    model: Path, tmp_path: Path, sink: str
) -> None:
    write_scan(tmp_path / "in/sub-\u00c5\u4e2d_T1w.nii.gz", 1)
    write_scan(tmp_path / "in/sub-b_T1w.nii.gz", 2)
    env = environment() if sink == "/dev/full" else {**environment(), "PYTHONIOENCODING": sink}
    with open(sink if sink == "/dev/full" else tmp_path / "said", "wb") as stream:
        given = command(tmp_path / "in", tmp_path / "out", model)
        assert subprocess.run(given, env=env, stdout=stream, timeout=120).returncode == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["counts"]["ok"] == 2
    if sink == "latin-1":
        said = (tmp_path / "said").read_text("latin-1")
        assert "sub-\u00c5\\u4e2d" in said
        assert "2 scans: 2 ok" in said.splitlines()[-1]


def test_a_closed_pipe_does_not_stop_the_run(model: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "in", 3)
    process = subprocess.Popen(
        command(tmp_path / "in", tmp_path / "out", model),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0, stderr
    assert "Traceback" not in stderr
    assert "Exception" not in stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["counts"]["ok"] == 3


def test_help_imports_nothing_heavy() -> None:
    shown, imported = help_of("run")
    assert not imported
    for option in (
        "--out",
        "--model",
        "--to",
        "--space",
        "--backend",
        "--require",
        "--no-build",
        "--cuda-graphs",
    ):
        assert option in shown
    assert "Exit codes" in shown


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    import io

    from hz_cli.render import Progress
    from hz_runtime.batch.executor import Event
    from hz_runtime.results.scan_result import ScanResult

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    progress = Progress(stderr=screen)
    progress(Event("start", "an engine", total=2))
    for n in (1, 2):
        progress(Event("scan", result=ScanResult(f"s{n}.nii", f"s{n}", "ok"), done=n, total=2))
    progress.close()
    shown = screen.getvalue()
    assert "2/2" in shown
    assert "scan" in shown
    assert "<" in shown


def test_progress_for_programs(hz_run, model: Path, tmp_path: Path) -> None:
    """Every line of stdout is a JSON object, whatever files are called, and the last says how it ended."""
    write_scan(tmp_path / "in" / os.fsdecode(b"sub-\xff_T1w.nii.gz"), 1)
    write_scan(tmp_path / "in" / "sub-\u00c5\u2028_T1w.nii.gz", 2)
    (tmp_path / "in" / "bad.nii").write_bytes(b"no scan")
    done = hz_run(tmp_path / "in", "--model", model, "--progress", "json", "--out", tmp_path / "out")
    assert done.exit_code == 3, done.output

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    events = [json.loads(line, parse_constant=refuse) for line in done.stdout.splitlines()]
    assert done.stdout.isascii() and "\\udc" not in done.stdout
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1], kinds.count("scan")) == ("start", "end", 3)
    scans = [event for event in events if event["event"] == "scan"]
    assert {event["status"] for event in scans} == {"ok", "failed"}
    assert all((event["age"] is None) == (event["status"] == "failed") for event in scans)
    assert events[0]["total"] == 3 and events[-1]["exit_code"] == 3 and events[-1]["counts"]["failed"] == 1


def test_info_of_a_bundle(hz_run, model: Path, tmp_path: Path) -> None:
    """What it says of itself, and what would run it: from the manifest alone."""
    shown = hz_run("--info", model)
    assert shown.exit_code == 0 and "tiny.hz: tiny" in shown.output and "18 to 80 years" in shown.output
    told = json.loads(hz_run("--json", "--model", model, "--info").stdout)
    assert told["sites"] == ["site-a", "site-b"] and told["ages"] == [18.0, 80.0] and told["people"] == 20
    assert told["harmonizes_to"] == ["site-b"] and told["networks"] == ["age", "harmonizer"]
    assert {(file["role"], file["precision"]) for file in told["files"]} == {
        (role, precision) for role in ("age", "harmonizer") for precision in ("fp32", "fp16")
    }
    engines = {engine["name"]: engine for engine in told["engines"]}
    assert engines["onnxruntime-cpu"]["runs"] and engines["onnxruntime-cpu"]["precision"] == "fp32"
    assert all(engine["problem"] and engine["remedy"] for engine in engines.values() if not engine["runs"])
    (model / "age.onnx").rename(tmp_path / "age.onnx")  # no file but the manifest is looked at
    try:
        assert json.loads(hz_run("--info", "--json", model).stdout) == told
    finally:
        (tmp_path / "age.onnx").rename(model / "age.onnx")
    assert hz_run("--info", tmp_path).exit_code == 4


def test_info_loads_nothing_heavy() -> None:
    code = (
        "import sys; from hz_cli import info\n"
        "info.info(['--json'], standalone_mode=False)\n"
        "heavy = {'numpy', 'onnxruntime', 'openvino', 'nibabel', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == "[]"
