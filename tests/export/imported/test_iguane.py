"""IGUANe from a Keras file on disk to a harmonized volume, held to the authors' own steps, written out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from small_published import iguane_layers, write_keras

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("h5py")
nibabel = pytest.importorskip("nibabel")

from torch.nn import functional  # noqa: E402

from hz_export.export_options import ExportOptions  # noqa: E402
from hz_export.imported.iguane import LEVELS, NETWORK, build, in_slabs  # noqa: E402
from hz_export.imported.importing import import_network  # noqa: E402
from hz_export.imported.keras_file import read_keras  # noqa: E402
from hz_export.speed import SpeedOptions, _network  # noqa: E402
from hz_runtime.bundle.store import Bundle, load_bundle  # noqa: E402
from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.inference.open import open_networks  # noqa: E402
from hz_runtime.io.volume import read_volume  # noqa: E402
from hz_runtime.model_space.recipe import Recipe, to_model_space  # noqa: E402
from hz_runtime.model_space.resample import resample  # noqa: E402
from hz_runtime.preparation.template import mni152_volume  # noqa: E402

F32 = NDArray[np.float32]
NARROW = (2, 3, 4)  # as deep as it takes for every kind of step to be there
LAYERS = iguane_layers(NARROW)
# FSL's field of view and IGUANe's window of it, on voxels of 4 mm: the same code, a 64th of the arithmetic.
COARSE = replace(
    NETWORK.recipe,
    template_shape=(46, 55, 46),
    template_spacing_mm=4.0,
    grid_shape=(32, 48, 32),
    crop_first=(7, 3, 5),
)
SMALL = replace(NETWORK, build=partial(build, levels=NARROW), recipe=COARSE)


def generator(x: F32, layers_of_file: Any = LAYERS) -> F32:
    """The generator of harmonization/model_architectures.py, layer by layer, without a slab or a module.

    x : (D, H, W). Its own InstanceNormalization: (x - mean) / (mean absolute deviation + 0.001), of the ReLU.
    """
    layers = iter([[torch.from_numpy(values) for _, values in tensors] for _, tensors in layers_of_file])
    depth = (len(layers_of_file) - 2) // 4

    def normed(x: Any, scale: Any, offset: Any) -> Any:
        apart = x - x.mean((2, 3, 4), keepdim=True)
        spread = apart.abs().mean((2, 3, 4), keepdim=True)
        return apart / (spread + 1e-3) * scale[:, None, None, None] + offset[:, None, None, None]

    def conv(x: Any, stride: int = 1) -> Any:
        kernel, bias, scale, offset = next(layers)
        # "same" of TensorFlow: of an even size, one row of zeros before and after, for both kinds of kernels
        made = functional.conv3d(functional.pad(x, (1,) * 6), kernel.permute(4, 3, 0, 1, 2), bias, stride)
        return normed(functional.relu(made), scale, offset)

    def up(x: Any) -> Any:
        kernel, bias, scale, offset = next(layers)
        made = functional.conv_transpose3d(x, kernel.permute(4, 3, 0, 1, 2), bias, 2)[..., 1:-1, 1:-1, 1:-1]
        return normed(functional.relu(made), scale, offset)

    kept, given = [], torch.from_numpy(x)[None, None]
    made = given
    for _ in range(depth):
        kept.append(conv(made))
        made = conv(kept[-1], 2)
    made = conv(made)
    for skip in reversed(kept):
        made = conv(torch.cat([up(made), skip], 1))
    kernel, bias = next(layers)
    last = functional.conv3d(torch.cat([made, given], 1), kernel.permute(4, 3, 0, 1, 2), bias)
    answer: F32 = (torch.tanh(last) + given)[0, 0].numpy()
    return answer


def test_the_published_widths_in_slabs_are_the_network_as_a_whole(tmp_path: Path) -> None:
    layers = iguane_layers(LEVELS)
    network = build(read_keras(write_keras(tmp_path / "iguane_weights.h5", layers)))
    assert [len(layers), sum(v.size for _, ts in layers for _, v in ts)] == [18, 6_532_098]
    x = np.random.default_rng(1).uniform(-0.5, 0.5, (48, 16, 16)).astype(np.float32)  # three slabs
    given = torch.from_numpy(x)[None, None]
    with torch.no_grad():
        whole, slabs = (made(given)[0, 0].numpy() for made in (network, in_slabs(network)))
    expected = generator(x, layers)
    for found in (whole, slabs):
        assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("iguane")
    weights = write_keras(folder / "iguane_weights.h5", LAYERS)
    return import_network(SMALL, [weights], folder / "iguane.hz", ExportOptions(check_parity=False))


def test_from_file_to_volume_as_the_authors_go(bundle: Bundle) -> None:
    prepared = to_model_space(mni152_volume(), COARSE)
    medians = prepared.grid * np.float32(4)
    brain = medians > 0
    answer = generator(np.where(brain, medians - 1, 0).astype(np.float32))
    expected = np.where(brain, np.maximum(answer + 1, 0), 0) / 4  # of (data + 1) * 500, 2000 is 1
    with open_networks(bundle) as networks:
        assert networks.harmonizer is not None
        found = networks.harmonizer(prepared.grid)
    assert np.abs(found - np.clip(expected, 0, 1)).max() <= 1e-4
    assert np.abs(expected - prepared.grid)[brain].mean() > 1e-3  # and it does something


def authors_volume(path: Path) -> tuple[F32, F32]:
    """(what the network reads, what is saved) of a brain's file, each (32, 48, 32): median_norm.py,
    pipeline.py and inference.py with nibabel and numpy alone."""
    data = nibabel.load(path).get_fdata()
    data = data / np.median(data[data > 0]) * 500
    window = []
    for axis, (size, usual) in enumerate(zip((32, 48, 32), (7, 3, 5), strict=True)):  # indices_crop
        filled = np.flatnonzero(data.any(axis=tuple(k for k in range(3) if k != axis)))
        before, after, spare = filled[0], data.shape[axis] - 1 - filled[-1], data.shape[axis] - size
        assert before + after >= spare  # else the authors take a larger grid
        first = before if before < usual else spare - after if after < spare - usual else usual
        window.append(slice(first, first + size))
    x = data[tuple(window)] / 500 - 1
    mask = x > -1
    x[~mask] = 0
    made = (generator(x.astype(np.float32)) + 1) * 500
    made[~mask] = 0
    return x.astype(np.float32), np.maximum(made, 0)


def test_from_a_brain_on_disk_as_the_authors_prepare_it(bundle: Bundle, tmp_path: Path) -> None:
    brain = mni152_volume()
    small = np.diag([0.75, 0.75, 0.75, 1.0])  # so that it fits into the window, as brains do at 1 mm
    small[:3, 3] = 0.25 * np.array(COARSE.centre_mm)
    data = resample(brain.data, small @ brain.affine, COARSE.template_shape, COARSE.field_affine)
    data[data < 0.05 * data.max()] = 0
    path = tmp_path / "brain.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data * 730, COARSE.field_affine), path)
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("L", "A", "S")  # as FSL stores its template
    seen, expected = authors_volume(path)
    prepared = to_model_space(read_volume(path), COARSE)
    np.testing.assert_allclose(np.where(prepared.grid > 0, prepared.grid * 4 - 1, 0), seen, atol=1e-4)
    with open_networks(bundle) as networks:
        assert networks.harmonizer is not None
        found = networks.harmonizer(prepared.grid)
    np.testing.assert_allclose(found, np.clip(expected / 2000, 0, 1), atol=1e-4)


def test_every_tensor_of_the_file_is_used(bundle: Bundle, tmp_path: Path) -> None:
    assert load_bundle(bundle.path).models[0].parameters == sum(v.size for _, ts in LAYERS for _, v in ts)
    broken: dict[str, list[tuple[str, list[tuple[str, F32]]]]] = {
        "lacks sequential_3/conv3d_3/bias|lacks sequential_3/bias": [
            (n, [t for t in ts if t[0] != "conv3d_3/bias"]) for n, ts in LAYERS
        ],
        "holds sequential_5/surplus": [
            (n, [*ts, ("surplus", np.zeros(1, np.float32))] if n == "sequential_5" else ts)
            for n, ts in LAYERS
        ],
        r"sequential_2/conv3d_2/kernel of \(3, 3, 3, 2, 9\)": [
            (n, [(t, np.zeros((3, 3, 3, 2, 9), np.float32) if t == "conv3d_2/kernel" else v) for t, v in ts])
            for n, ts in LAYERS
        ],
        "has 9 layers": [layer for layer in LAYERS if layer[0] != "sequential_7"],
    }
    for message, layers in broken.items():
        weights = write_keras(tmp_path / "other.h5", layers)
        with pytest.raises(UsageError, match=message):
            import_network(SMALL, [weights], tmp_path / "never.hz", ExportOptions())
    assert not (tmp_path / "never.hz").exists()


def test_what_the_bundle_says_of_its_origin(bundle: Bundle) -> None:
    about = bundle.raw["published"]["harmonizer"]
    assert about["licence"] == "Apache-2.0" and not about["non_commercial"]
    assert "Apache-2.0" in bundle.licence and bundle.statistics == {} and bundle.age_bias is None
    card = bundle.read_listed("MODEL_CARD.md").decode()
    assert "https://github.com/RocaVincent/iguane_harmonization" in card
    assert "random weights" in card  # what could not be tried is said
    assert about["files"][0]["sha256"] in card


def test_timing_says_that_tensorflow_never_runs(bundle: Bundle) -> None:
    left_out: list[dict[str, str]] = []
    assert _network(bundle, SpeedOptions(), left_out) is None
    assert left_out == [
        {"name": "tensorflow", "why": "hz never runs it; torch stands in (--weights)"},
        {"name": "torch", "why": "no --weights was given"},
    ]


def test_licences_that_forbid_commerce_are_accepted_or_nothing_happens(tmp_path: Path) -> None:
    bought = replace(SMALL, licence="CC-BY-NC-4.0", non_commercial=True)
    weights = write_keras(tmp_path / "iguane_weights.h5", LAYERS)
    with pytest.raises(UsageError, match=r"CC-BY-NC-4\.0, no commercial use"):
        import_network(bought, [weights], tmp_path / "a.hz", ExportOptions())
    assert not (tmp_path / "a.hz").exists()


def test_the_recipe_is_stored_and_read_back() -> None:
    stored = json.loads(json.dumps(NETWORK.recipe.to_dict()))
    assert Recipe.from_dict(stored) == NETWORK.recipe
