"""deepbet's published weights as a bundle: found in its wheel, proven, rebuilt, exported, compared.

The weights are another group's, under the MIT licence, and no part of hz. They are converted where they are
used, from the one wheel that was tested: its two files are known by their sha256, which is also what makes
unpickling them safe. The package itself is not imported, and what it depends on is not needed.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from hz_export.graph_precision import require
from hz_export.linknet import LinkNet3d
from hz_export.parity import torch_reference
from hz_export.to_onnx import specs, to_onnx
from hz_runtime.backends.base import describe
from hz_runtime.backends.registry import open_backend
from hz_runtime.bundle.manifest import SCHEMA
from hz_runtime.bundle.store import Bundle, write_bundle
from hz_runtime.errors import HzError, UsageError
from hz_runtime.io.atomic import sha256_bytes
from hz_runtime.preparation import network_mask
from hz_runtime.preparation.template import Template, mni152

F32 = NDArray[np.float32]

PACKAGE, VERSION = "deepbet", "1.0.2"
WHEEL = f"{PACKAGE}-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "1999e2ea00ec48f6233b95b96f3901a962d3f70431c63aeb985e8a49a198473c"
LICENCE = f"{PACKAGE}-{VERSION}.dist-info/LICENSE"
HOLDER = "Copyright (c) 2023 Medical Machine Learning Lab - University of Münster"
PAPER = (
    "Fisch et al. 2024, deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks"
)
SOURCE = "https://github.com/wwu-mmll/deepbet"
REMEDY = f"pip download --no-deps {PACKAGE}=={VERSION}  and then  hz-export brain-mask --wheel {WHEEL}"
LARGEST_DIFFERENCE = 0.05  # in probability, at any voxel: 0.003 on real heads, 0.02 on the template
NOISE = 0.02  # of the brightest, in what the comparison is made on
LEAST_DICE = 0.9999  # of the voxels above one half


@dataclass(frozen=True)
class Stage:
    """One of the two networks.

    name : of its ONNX file.  file, sha256 : TorchScript in the wheel.  grid : (D, H, W) of its input.
    """

    name: str
    file: str
    sha256: str
    grid: tuple[int, int, int]


STAGES = (
    Stage(
        "brain_finder",
        "data/models/bbox_model.pt",
        "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
        (128, 128, 128),
    ),
    Stage(
        "brain_outliner",
        "data/models/model.pt",
        "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
        (256, 256, 256),
    ),
)


def export_brain_mask(
    out: Path,
    wheel: Path | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Publish deepbet's two networks as the bundle `out`, role "brain-mask".

    wheel : deepbet's; None: the installed package's files, else the wheel, fetched by pip.
    Raises UsageError where the weights are not there or not the tested ones, HzError where a graph strays
    from its TorchScript, BackendError where onnxruntime is not installed.
    """
    if out.exists() and not overwrite:  # said before minutes of work
        raise UsageError(f"{out.name} exists.", "Use another name, or overwrite it on purpose (--overwrite).")
    files = weights(wheel, say)
    template = mni152()
    models, contents = [], {}
    for stage in STAGES:
        entry, data = _converted(stage, files[stage.file], template)
        worst = entry["parity"]["measured"][0]["largest"]
        say(
            f"{entry['file']}: {len(data) / 1e6:.1f} MB; at most {worst:.1e} from {stage.file} in probability"
        )
        models.append(entry)
        contents[entry["file"]] = data
    contents[f"LICENSE-{PACKAGE}.txt"] = files[LICENCE]
    contents["MODEL_CARD.md"] = _card(models).encode()
    manifest = {
        "schema": SCHEMA,
        "name": f"{PACKAGE} {VERSION} brain mask",
        "models": models,
        "recipe": _recipe(),
        "licence": f"MIT; {HOLDER}",
        "intended_use": "Research: which voxels of an adult's T1-weighted head are brain.",
    }
    return write_bundle(out, manifest, contents, overwrite=overwrite)


def weights(wheel: Path | None, say: Callable[[str], None] = lambda _: None) -> dict[str, bytes]:
    """The wheel's files that are needed, by name, each proven; see `export_brain_mask`."""
    names = [LICENCE, *(stage.file for stage in STAGES)]
    if wheel is not None:
        files = _unzipped(wheel, names)
    elif (found := _installed(names)) is not None:
        files = found
    else:
        say(f"{PACKAGE} {VERSION} is not installed here: fetching its wheel (10 MB) with pip")
        with tempfile.TemporaryDirectory(prefix="hz-brain-mask-") as folder:
            files = _unzipped(_fetched(Path(folder)), names)
    for stage in STAGES:
        if sha256_bytes(files[stage.file]) != stage.sha256:
            raise UsageError(f"{stage.file} is not that of {PACKAGE} {VERSION} (sha256 differs).", REMEDY)
    return files


def _unzipped(wheel: Path, names: list[str]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(name) for name in names}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{wheel.name} is not the wheel of {PACKAGE} {VERSION} ({error}).", REMEDY) from None


def _installed(names: list[str]) -> dict[str, bytes] | None:
    """From an installed package of this very version, which is not imported."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    if package.version != VERSION:
        return None
    paths = [Path(str(package.locate_file(name))) for name in names]
    return (
        {n: p.read_bytes() for n, p in zip(names, paths, strict=True)}
        if all(map(Path.is_file, paths))
        else None
    )


def _fetched(folder: Path) -> Path:
    """The wheel, through the package index that pip is set up for, and pip's own check of its sha256."""
    (folder / "wanted.txt").write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", "wanted.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode or not (folder / WHEEL).is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it wrote nothing"]
        raise UsageError(f"pip could not fetch {WHEEL} ({lines[-1][:200]}).", REMEDY)
    return folder / WHEEL


def _converted(stage: Stage, script: bytes, template: Template) -> tuple[dict[str, Any], bytes]:
    """(manifest entry, ONNX bytes) of one network, compared with its TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the wheel holds nothing else
        reference = torch.jit.load(io.BytesIO(script), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    network = LinkNet3d()
    network.load_state_dict(reference.state_dict())
    model: ModelProto = to_onnx(network.eval(), "probability", stage.grid)
    file = f"{stage.name}.onnx"
    achieved = require(model, "fp32", file)
    data = model.SerializeToString(deterministic=True)
    entry = {
        "role": network_mask.ROLE,
        "file": file,
        "sha256": sha256_bytes(data),
        "precision": achieved.precision,
        "achieved": achieved.to_dict(),
        "inputs": specs(model.graph.input),
        "outputs": specs(model.graph.output),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "parity": _evidence(data, reference, stage, template),
        "provenance": {
            "method": network_mask.METHOD,
            "package": f"{PACKAGE} {VERSION}",
            "package_file": stage.file,
            "package_file_sha256": stage.sha256,
            "source": SOURCE,
            "licence": f"MIT; {HOLDER}",
            "paper": PAPER,
            "exporter": f"torch {torch.__version__}",
        },
    }
    return entry, data


def _evidence(data: bytes, reference: Any, stage: Stage, template: Template) -> dict[str, Any]:
    """How far the graph strays from the TorchScript, in the engine that runs it."""
    grid = _noisy(network_mask.nearest(template.data, stage.grid))
    with torch.no_grad():
        expected = reference(torch.from_numpy(grid)[None, None])[0, 1].numpy()
    backend = open_backend(network_mask.ENGINE, data, device="cpu", where=stage.name)
    try:
        (found,) = backend.run(grid[None, None]).values()
        apart = _apart(found[0, 0], expected)
        row = {"backend": describe(backend), **apart}
    finally:
        backend.close()
    if not (apart["largest"] <= LARGEST_DIFFERENCE and apart["dice"] >= LEAST_DICE):  # NaN is neither
        raise HzError(
            f"{stage.name} strays from {stage.file}: {apart['largest']:.2g} in probability, Dice "
            f"{apart['dice']:.5f} (allowed: {LARGEST_DIFFERENCE:g}, {LEAST_DICE:g}).",
            "Nothing was written. Report this with your torch and onnxruntime versions:  pip list",
        )
    return {
        "sha256": sha256_bytes(data),
        "reference": f"{stage.file}, {torch_reference()}",
        "volumes": {"n": 1, "sha256": [template.sha256], "source": f"the {template.name} brain in noisy air"},
        "tolerance": {"largest": LARGEST_DIFFERENCE, "dice": LEAST_DICE},
        "measured": [row],
    }


def _noisy(brain: F32) -> F32:
    """A brain in air with Rician noise, normalised for the networks.

    In exactly constant air whole channels have no spread, and an instance norm of one magnifies rounding a
    thousandfold; no scanner makes such air.
    """
    noise = np.random.default_rng(0).normal(0, NOISE, (2, *brain.shape)).astype(np.float32)
    return network_mask.normalised(np.hypot(brain + noise[0], noise[1]), 0.0, 1.0)


def _apart(found: F32, expected: F32) -> dict[str, float]:
    """Largest difference in probability, and the Dice overlap of what is above one half."""
    one, other = found > network_mask.PROBABLE, expected > network_mask.PROBABLE
    total = int(one.sum()) + int(other.sum())
    dice = 2 * int((one & other).sum()) / total if total else 1.0
    return {"largest": float(np.abs(found - expected).max()), "dice": dice}


def _recipe() -> dict[str, Any]:
    """What the networks are fed, for people: `network_mask` is what does it."""
    return {
        "method": network_mask.METHOD,
        "orientation": "RAS",
        "resampling": "nearest",
        "quantiles": list(network_mask.QUANTILES),
        "mean": network_mask.MEAN,
        "deviation": network_mask.DEVIATION,
        "margin": network_mask.MARGIN,
        "probability": network_mask.PROBABLE,
    }


def _card(models: list[dict[str, Any]]) -> str:
    rows = [
        f"| {m['file']} | {m['provenance']['package_file']} | {r['backend']['name']} | {r['largest']:.1e} "
        f"| {r['dice']:.6f} |"
        for m in models
        for r in m["parity"]["measured"]
    ]
    return "\n".join(
        [
            f"# Brain mask: {PACKAGE} {VERSION}",
            "",
            f"The two networks of {PACKAGE} ({SOURCE}): {PAPER}.",
            f"{HOLDER}; MIT licence, kept in LICENSE-{PACKAGE}.txt. The weights are unchanged; hz "
            "converted them to ONNX on this machine from the wheel that ships them.",
            "",
            "Research use only. They were made for T1-weighted heads of adults, and find a brain in other "
            "objects too: hz holds every mask against its gates of volume, shape and similarity.",
            "",
            "| file | from | engine | largest difference in probability | Dice |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
