"""SFCN and BrainAgeNeXt from weights on disk and a brain on disk to an age, held to the authors' own steps.

The steps are written out here with torch's functions alone, with no module of hz's: of examples.ipynb,
sfcn.py and dp_utils.py of UKBiobank_deep_pretrain, and of BrainAge_estimation.py of BrainAgeNeXt with the
blocks of MedNeXt (blocks.py, MedNextV1.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from small_published import random_tensors, write_state_dict

torch = pytest.importorskip("torch")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("onnxscript")

from torch.nn import functional  # noqa: E402

from hz_cli.bench import bench  # noqa: E402
from hz_export.export_options import ExportOptions  # noqa: E402
from hz_export.imported import brainagenext, iguane, sfcn  # noqa: E402
from hz_export.imported.brainagenext import Block  # noqa: E402
from hz_export.imported.importing import import_network  # noqa: E402
from hz_export.imported.published import Published  # noqa: E402
from hz_export.imported.table import IMPORTABLE  # noqa: E402
from hz_export.imported.weight_file import WeightFile  # noqa: E402
from hz_runtime.backends.fallback import choose  # noqa: E402
from hz_runtime.bundle.store import Bundle  # noqa: E402
from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.inference.predictors import AgePredictor, Ages  # noqa: E402
from hz_runtime.io.volume import read_volume  # noqa: E402
from hz_runtime.model_space.recipe import Recipe, to_model_space  # noqa: E402
from hz_runtime.model_space.resample import resample  # noqa: E402
from hz_runtime.preparation.template import mni152_volume  # noqa: E402

Tensors = Mapping[str, NDArray[Any]]
FAST = ExportOptions(engines=("onnxruntime",))
# FSL's field of view and a window of it, on voxels of 4 mm: the same code, a 64th of the arithmetic.
COARSE = {
    "template_shape": (46, 55, 46),
    "template_spacing_mm": 4.0,
    "grid_shape": (32, 32, 32),
    "crop_first": (7, 12, 7),
}


def sfcn_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, without DataParallel's prefix."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = 1
    for k, width in enumerate((32, 64, 128, 256, 256, 64)):
        kernel = (1, 1, 1) if k == 5 else (3, 3, 3)
        shapes[f"feature_extractor.conv_{k}.0.weight"] = (width, before, *kernel)
        for part in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            shapes[f"feature_extractor.conv_{k}.{part}"] = (width,)
        shapes[f"feature_extractor.conv_{k}.1.num_batches_tracked"] = ()
        before = width
    return {**shapes, "classifier.conv_6.weight": (40, 64, 1, 1, 1), "classifier.conv_6.bias": (40,)}


def mednext_shapes(width: int, expansions: tuple[int, ...], blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder of MedNeXt with the authors' regression behind it."""
    deepest = len(expansions) - 1
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (width, 1, 1, 1, 1),
        "stem.bias": (width,),
        "dummy_tensor": (1,),
    }

    def block(name: str, before: int, after: int, expansion: int) -> None:
        inner = expansion * before
        shapes[f"{name}.conv1.weight"] = (before, 1, 3, 3, 3)
        shapes[f"{name}.conv2.weight"] = (inner, before, 1, 1, 1)
        shapes[f"{name}.conv3.weight"] = (after, inner, 1, 1, 1)
        shapes[f"{name}.norm.weight"] = (before,)
        for part, size in (("conv1", before), ("norm", before), ("conv2", inner), ("conv3", after)):
            shapes[f"{name}.{part}.bias"] = (size,)

    for level, expansion in enumerate(expansions):
        channels = width * 2**level
        if level:
            block(f"down_{level - 1}", channels // 2, channels, expansion)
            shapes[f"down_{level - 1}.res_conv.weight"] = (channels, channels // 2, 1, 1, 1)
            shapes[f"down_{level - 1}.res_conv.bias"] = (channels,)
        for k in range(blocks):
            stage = "bottleneck" if level == deepest else f"enc_block_{level}"
            block(f"{stage}.{k}", channels, channels, expansion)
    last = {"0.weight": (64, width * 2**deepest), "0.bias": (64,), "3.weight": (1, 64), "3.bias": (1,)}
    return {f"mednextv1.{k}": v for k, v in shapes.items()} | {
        f"regression_fc.{k}": v for k, v in last.items()
    }


NARROW = {"width": 3, "expansions": (2, 3), "blocks": 1}
SFCN_TENSORS = random_tensors(sfcn_shapes())
SFCN_TENSORS["classifier.conv_6.weight"] *= 0.15  # a distribution, not one age
MEDNEXT_TENSORS = [random_tensors(mednext_shapes(3, (2, 3), 1), seed) for seed in (1, 2, 3)]
SMALL_SFCN = replace(sfcn.NETWORK, recipe=replace(sfcn.NETWORK.recipe, **COARSE))
SMALL_NEXT = replace(
    brainagenext.NETWORK,
    files=brainagenext.NETWORK.files[:3],
    build=partial(brainagenext.build, **NARROW),
    recipe=replace(brainagenext.NETWORK.recipe, **COARSE),
)


def brain_file(path: Path, recipe: Recipe) -> Path:
    """The template's brain on the recipe's own field, as a registration leaves one: no voxel moves."""
    brain = mni152_volume()
    data = resample(brain.data, brain.affine, recipe.template_shape, recipe.field_affine)
    data[data < 0.05 * data.max()] = 0
    nibabel.save(nibabel.Nifti1Image(data * 900, recipe.field_affine), path)
    return path


def sfcn_age(path: Path, tensors: Tensors) -> tuple[float, float]:
    """(age, SD) by examples.ipynb."""
    data = np.asarray(nibabel.load(path).dataobj, np.float64)
    data = data / data.mean()
    x = torch.from_numpy(data[7:39, 12:44, 7:39].astype(np.float32))[None, None]
    t = {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}
    for k in range(6):
        at = f"feature_extractor.conv_{k}"
        x = functional.conv3d(x, t[f"{at}.0.weight"], t[f"{at}.0.bias"], padding=1 if k < 5 else 0)
        mean, var, weight, bias = (
            t[f"{at}.1.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, var, weight, bias)
        x = functional.relu(functional.max_pool3d(x, 2, stride=2) if k < 5 else x)
    x = functional.avg_pool3d(x, x.shape[2:])
    x = functional.conv3d(x, t["classifier.conv_6.weight"], t["classifier.conv_6.bias"])
    shares = np.exp(functional.log_softmax(x, dim=1).numpy().reshape(-1).astype(np.float64))
    centres = 42 + 0.5 + np.arange(40)
    age = float(shares @ centres)
    return age, float(np.sqrt(shares @ (centres - age) ** 2))


def mednext_age(x: Any, tensors: Tensors) -> float:
    """One network of BrainAge_estimation.py.  x : (1, 1, D, H, W)."""
    t = {name: torch.from_numpy(values) for name, values in tensors.items()}

    def block(x: Any, at: str, stride: int = 1) -> Any:
        def conv(x: Any, part: str, **how: Any) -> Any:
            return functional.conv3d(x, t[f"{at}.{part}.weight"], t[f"{at}.{part}.bias"], **how)

        made = conv(x, "conv1", stride=stride, padding=1, groups=x.shape[1])
        made = functional.group_norm(made, x.shape[1], t[f"{at}.norm.weight"], t[f"{at}.norm.bias"], 1e-5)
        made = conv(functional.gelu(conv(made, "conv2")), "conv3")
        return made + (x if stride == 1 else conv(x, "res_conv", stride=2))

    x = functional.conv3d(x, t["mednextv1.stem.weight"], t["mednextv1.stem.bias"])
    x = block(x, "mednextv1.enc_block_0.0")
    x = block(block(x, "mednextv1.down_0", 2), "mednextv1.bottleneck.0")
    x = functional.adaptive_avg_pool3d(x, 1).flatten(1)
    x = functional.relu(functional.linear(x, t["regression_fc.0.weight"], t["regression_fc.0.bias"]))
    return float(functional.linear(x, t["regression_fc.3.weight"], t["regression_fc.3.bias"]))


def centred(data: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """CropForegroundd, SpatialPadd and CenterSpatialCropd of MONAI, one after another."""
    inside = np.argwhere(data > 0)
    low, high = inside.min(0), inside.max(0) + 1
    data = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    for axis, length in enumerate(data.shape):
        if length < size:
            before = (size - length) // 2
            pad = [(0, 0)] * 3
            pad[axis] = (before, size - length - before)
            data = np.pad(data, pad)
        elif length > size:
            first = length // 2 - size // 2
            data = np.take(data, range(first, first + size), axis)
    return data


def age_of(bundle: Bundle, path: Path) -> Ages:
    recipe = Recipe.from_dict(dict(bundle.recipe))
    prepared = to_model_space(read_volume(path), recipe)
    backend, _ = choose(bundle, "age", require="onnxruntime-cpu")
    try:
        return AgePredictor(backend, None, recipe, distribution=bundle.age_distribution)(prepared.grid)
    finally:
        backend.close()


@pytest.fixture(scope="module")
def sfcn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("sfcn")
    parallel = {f"module.{name}": values for name, values in SFCN_TENSORS.items()}
    weights = write_state_dict(
        folder / "run_20190719_00_epoch_best_mae.p", parallel, _use_new_zipfile_serialization=False
    )
    return import_network(SMALL_SFCN, [weights], folder / "sfcn.hz", FAST)


def test_sfcn_from_file_to_age_and_spread(sfcn_bundle: Bundle, tmp_path: Path) -> None:
    path = brain_file(tmp_path / "brain.nii.gz", SMALL_SFCN.recipe)
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("L", "A", "S")  # as FSL stores its template
    age, spread = sfcn_age(path, SFCN_TENSORS)
    found = age_of(sfcn_bundle, path)
    assert found.raw[0] == pytest.approx(age, abs=1e-4 * 40)
    assert found.spreads is not None and found.spreads[0] == pytest.approx(spread, abs=1e-4 * 40)
    data = np.asarray(nibabel.load(path).dataobj, np.float64)
    seen = (data / data.mean())[7:39, 12:44, 7:39]
    prepared = to_model_space(read_volume(path), SMALL_SFCN.recipe).grid * np.float32(sfcn.TOP)
    np.testing.assert_allclose(prepared, seen, atol=1e-4 * seen.max())  # voxel by voxel
    for factor in (0.01, 1e4):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(data * factor, image.affine), tmp_path / "scaled.nii")
        assert age_of(sfcn_bundle, tmp_path / "scaled.nii").raw[0] == pytest.approx(age, abs=1e-4 * 40)
    assert found.interval is None and 3 < spread < 20
    mirrored = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(mirrored.dataobj)[::-1], mirrored.affine), tmp_path / "m.nii")
    assert abs(sfcn_age(tmp_path / "m.nii", SFCN_TENSORS)[0] - age) > 0.02  # which side is left does matter


def test_brainagenext_from_file_to_age_and_the_median_of_several(tmp_path: Path) -> None:
    """One network by way of its graph; several, which only repeat it, in torch."""
    alone = replace(SMALL_NEXT, files=SMALL_NEXT.files[:1])
    write_state_dict(tmp_path / alone.files[0], MEDNEXT_TENSORS[0])
    said: list[str] = []
    bundle = import_network(alone, [tmp_path], tmp_path / "next.hz", FAST, say=said.append)
    assert any("in its place but mednextv1.dummy_tensor, which has no part in answers" in s for s in said)
    path = brain_file(tmp_path / "brain.nii.gz", alone.recipe)
    data = centred(np.asarray(nibabel.load(path).dataobj, np.float64), 32)
    inside = data > 0
    data = (data - data[inside].mean()) / data[inside].std(ddof=1)  # torch's std, as torchio takes it
    x = torch.from_numpy(data.astype(np.float32))[None, None]
    prepared = torch.from_numpy(to_model_space(read_volume(path), alone.recipe).grid)[None, None]
    units = brainagenext.Standardized()(prepared)
    np.testing.assert_allclose(units.numpy(), x.numpy(), atol=1e-4 * float(x.max()))
    ages = [mednext_age(x, tensors) for tensors in MEDNEXT_TENSORS]
    spread = np.ptp(ages)
    assert age_of(bundle, path).raw[0] == pytest.approx(ages[0], abs=1e-4 * spread) and spread > 0.1
    files = [WeightFile(name, "", t) for name, t in zip("abc", MEDNEXT_TENSORS, strict=True)]
    several = SMALL_NEXT.combine([SMALL_NEXT.build(file) for file in files]).eval()
    with torch.no_grad():
        assert float(several(prepared)) == pytest.approx(np.median(ages), abs=1e-4 * spread)
    tensors = MEDNEXT_TENSORS[0].values()  # but for dummy_tensor, which has no part in any answer
    assert bundle.models[0].parameters == sum(values.size for values in tensors) - 1
    assert bundle.cohort["age_range"] == [5.0, 95.0] and bundle.age_distribution is None


def test_the_published_shapes_are_those_of_the_networks() -> None:
    """At full width: every tensor finds its place, and slabs change no more than rounding does."""
    shapes = mednext_shapes(32, (2, 3, 4, 4, 4), 2)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    built = brainagenext.build(WeightFile("BrainAge_1.pth", "", zeros))
    assert sum(p.numel() for p in built.parameters()) == sum(np.prod(s) for s in shapes.values()) - 1
    network = sfcn.build(WeightFile("sfcn.p", "", SFCN_TENSORS))
    x = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(1)) / 5
    plain, ours = sfcn.Age(network).eval(), sfcn.Age(sfcn.in_slabs(network)).eval()
    block = brainagenext.Block(4, 8, 2, stride=2).eval()
    grid = torch.rand(1, 4, 40, 8, 8)
    with torch.no_grad():
        assert float(plain(x)) == pytest.approx(float(ours(x)), abs=1e-4)
        whole = block(grid)
        brainagenext.LARGE, kept = 64, brainagenext.LARGE
        try:
            slabs = brainagenext.in_slabs(block)
            assert slabs.slabs and torch.allclose(slabs(grid), whole, atol=1e-6)
            assert not block.slabs and torch.equal(block(grid), whole)
        finally:
            brainagenext.LARGE = kept


@pytest.mark.parametrize("name", ["iguane", "sfcn", "brainagenext"])
def test_what_is_timed_beside_a_bundle_has_no_slabs(name: str) -> None:
    """In the bundle they save memory, at the price of arithmetic that no author's network does."""
    published = IMPORTABLE[name]
    made: dict[str, Any] = {
        "iguane": iguane.Generator((2, 3)), "sfcn": sfcn.SFCN((2, 2)), "brainagenext": Block(2, 2, 2)
    }  # fmt: skip

    def slabs(network: Any) -> list[Any]:
        found = [{**vars(part)} for part in network.modules()]
        return [part[key] for part in found for key in ("slab", "slabs") if key in part]

    assert published.plain is not None
    network = made[name].eval()
    plain, ours = slabs(published.plain([network])), slabs(published.combine([network]))
    assert plain and not any(plain) and ours and all(ours)


@pytest.mark.parametrize(
    ("network", "tensors"),
    [(SMALL_SFCN, SFCN_TENSORS), (SMALL_NEXT, MEDNEXT_TENSORS[0])],
    ids=["sfcn", "next"],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(network: Published, tensors: Tensors) -> None:
    name = next(name for name in tensors if name.endswith(("conv_2.0.weight", "conv3.weight")))
    others = {
        f"lacks {name}": {k: v for k, v in tensors.items() if k != name},
        "holds mednextv1.out_4.weight, which the network has no place for": {
            **tensors, "mednextv1.out_4.weight": np.zeros(2, np.float32)
        },
        f"holds {name} of ": {**tensors, name: tensors[name][1:]},
    }  # fmt: skip
    for message, held in others.items():
        with pytest.raises(UsageError, match=message):
            network.build(WeightFile("given.pth", "", held))


def test_a_dummy_tensor_of_another_shape_is_refused() -> None:
    wrong = {**MEDNEXT_TENSORS[0], brainagenext.DUMMY: np.zeros((2, 2), np.float32)}
    with pytest.raises(UsageError, match=r"dummy_tensor of \(2, 2\)"):
        SMALL_NEXT.build(WeightFile("given.pth", "", wrong))


def test_speed_beside_the_network_of_the_authors(sfcn_bundle: Bundle, tmp_path: Path) -> None:
    weights = sfcn_bundle.path.with_name("run_20190719_00_epoch_best_mae.p")
    command = [
        "speed",
        str(sfcn_bundle.path),
        "--batch",
        "1",
        "--repeat",
        "1",
        "--warmup",
        "0",
        "--threads",
        "1",
    ]
    command += ["--only", "torch eager fp32", "--only", "onnxruntime-cpu", "--json", "-", "--weights"]
    done = CliRunner().invoke(bench, [*command, str(weights)])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["model"]["role"] == "age" and result["baseline"]["cpu"] == "torch eager fp32"
    assert "onnxruntime-cpu fp32" in {candidate["name"] for candidate in result["contenders"]}
    other = write_state_dict(tmp_path / weights.name, random_tensors(sfcn_shapes(), 9))
    refused = CliRunner().invoke(bench, [*command, str(other)])
    assert refused.exit_code == 2 and "was not imported from this run_20190719_00" in refused.stderr
    assert not any(item["name"] == "tensorflow" for item in result["left_out"])  # its authors run it in torch


def test_the_card_says_what_an_age_is_worth(sfcn_bundle: Bundle) -> None:
    card = (sfcn_bundle.path / "MODEL_CARD.md").read_text()
    assert "The spread of the distribution is the authors' own uncertainty. It is no interval" in card
    assert "hz-calibrate age makes one at a site" in card
    assert "MIT" in card and "UKBiobank_deep_pretrain" in card
    assert sfcn_bundle.raw["age_distribution"]["centres"][::39] == [42.5, 81.5]
    assert {"sfcn", "brainagenext"} <= set(IMPORTABLE)
