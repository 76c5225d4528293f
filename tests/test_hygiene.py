"""What must not slip into the repository, and the shape of its files."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 450
CODE = (".py", ".js", ".css", ".sh")
# Written in pieces, so that this file passes its own test.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:"
    + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers", "op" + "t"))
    + r")/[\w.]"
    r"|[A-Z]:\\\\?Us" + r"ers"
)
SKIPPED = (".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; a plain walk where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        paths = list(ROOT.rglob("*"))
    inside = [p for p in paths if not any(part.startswith(SKIPPED) for part in p.relative_to(ROOT).parts)]
    return sorted(p for p in inside if p.is_file())


def texts() -> list[tuple[Path, str]]:
    """(path relative to the repository, text) of every text file."""
    found = []
    for path in repository_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192] and len(data) < 2**20:
            found.append((path.relative_to(ROOT), data.decode("utf-8")))
    return found


def test_the_texts_are_the_repositorys() -> None:
    """The tests below look at nothing else: were the listing empty, all of them would pass."""
    found = {str(path) for path, _ in texts()}
    assert {"pyproject.toml", "README.md", ".ci/run", "tests/test_hygiene.py"} <= found
    assert {"runtime/hz_runtime/__init__.py", "cli/hz_cli/run.py"} <= found
    assert not [path for path in found if path.endswith((".png", ".onnx", ".pyc"))]


def test_no_machine_paths() -> None:
    wrong = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not wrong


@pytest.mark.parametrize("line", ["cat /ho" + "me/jo/x.nii", "D = '/wo" + "rk/main'", "'/ro" + "ot/.cache'"])
def test_the_pattern_finds_machine_paths(line: str) -> None:
    assert MACHINE_PATHS.search(line)


@pytest.mark.parametrize(
    "line", ["./wo" + "rk/x", "a/home/x", "https://x.org/ho" + "me/", "/usr/bin/env", "opt/x"]
)
def test_the_pattern_leaves_other_paths(line: str) -> None:
    assert not MACHINE_PATHS.search(line)


def test_files_are_short_enough_to_read() -> None:
    long = {str(p): n for p, t in texts() if p.suffix in CODE and (n := t.count("\n")) > LONGEST}
    assert not long


def test_text_ends_with_one_newline_and_has_no_tabs_in_python() -> None:
    for path, text in texts():
        if path.suffix in (".py", ".md", ".toml", ".yaml"):
            assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path
            assert path.suffix != ".py" or "\t" not in text, path


def never_run(path: Path, text: str) -> list[str]:
    """Tests of a file that pytest passes over: its name hides them, or a later test takes their name."""
    tests = re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)
    if not path.name.startswith("test_"):
        return tests
    return [name for name, times in Counter(tests).items() if times > 1]


def test_every_test_runs() -> None:
    tests = {p: text for p, text in texts() if p.parts[0] == "tests" and p.suffix == ".py"}
    assert Path("tests/test_hygiene.py") in tests
    assert not {str(p): names for p, text in tests.items() if (names := never_run(p, text))}


@pytest.mark.parametrize(
    ("name", "text", "passed_over"),
    [
        ("test_x.py", "def test_a():\n    pass\n\n\ndef test_b():\n    pass\n", []),
        ("test_x.py", "def test_a():\n    pass\n\n\ndef test_a():\n    pass\n", ["test_a"]),
        ("tests_x.py", "import y\n\n\ndef test_a():\n    pass\n", ["test_a"]),
        ("small_x.py", "def write():\n    test_a = 1\n", []),
    ],
)
def test_tests_that_never_run_are_found(name: str, text: str, passed_over: list[str]) -> None:
    assert never_run(Path("tests") / name, text) == passed_over


def test_the_base_install_has_no_heavy_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=~! ]", d)[0].lower() for d in project["dependencies"]}
    assert names == {"click", "isal", "nibabel", "numpy", "tqdm"}
    assert not {"torch", "onnx", "onnxruntime"} & names


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra, names in project["optional-dependencies"].items():
        # These need a GPU to be tested, so nothing vouches for a pin.
        wanted += names if extra not in ("gpu", "tensorrt") else []
    normal = re.compile(r"[-_.]+")
    pinned = {
        normal.sub("-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert {normal.sub("-", re.split(r"[\[<>=~! ]", d)[0]).lower() for d in wanted} <= pinned
