"""The README's example runs as it stands, and says the truth about commands and exit codes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example() -> str:
    """The one Python block of the README."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return code


def test_the_example_runs(
    head, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    data, affine = head()
    flipped = affine.copy()
    flipped[0] *= -1  # LAS, as many scanners store it
    nib.save(nib.Nifti1Image(data, flipped), tmp_path / "sub-01_T1w.nii.gz")
    monkeypatch.setenv("HZ_BUNDLE", str(tiny_bundle))
    monkeypatch.chdir(tmp_path)
    exec(compile(example(), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    made = nib.load(tmp_path / "sub-01_harmonized.nii.gz")
    assert re.match(r"age \d+\.\d years; look at: ", printed)
    assert made.shape == data.shape
    np.testing.assert_array_equal(made.affine, flipped)
    after = np.asarray(made.dataobj)
    assert not after[data == 0].any()
    # The tiny harmonizer is 0.8 x + 0.1 of the min-max scaled scan; exact away from the edges.
    inner = data > 85
    low, high = 0.0, float(data.max())
    expected = 0.8 * (data[inner] - low) / (high - low) + 0.1
    assert np.corrcoef(after[inner], expected)[0, 1] > 0.9


def test_the_example_has_about_ten_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 10


def test_every_command_named_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(re.findall(r"^\| `(hz-\w+)", README, re.MULTILINE)) == set(scripts)


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = README.split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(extras)


def test_exit_codes_are_those_of_the_errors() -> None:
    from hz_runtime import errors

    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.HzError)
    }
    line = re.search(r"^Exit codes: (.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert line
    assert codes <= {int(code) for code in re.findall(r"(?:^|;\s)(\d+) ", line[1].replace("\n", " "))}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert "LICENSE" in targets
    for target in targets:
        if target != "docs/before-after.png":  # made by the demo; absent in a fresh sdist
            assert (ROOT / target).exists(), target
