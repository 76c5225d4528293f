"""DeepBrainNet from a Keras file to the age of a scan, held to plain numpy.

The published file cannot be had here. The model below has the layers of Keras's Inception-ResNet-v2 (strides
with either padding, norms without scale, branches, pools, the scaled residual) and a head of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from small_published import write_keras

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("h5py")

from hz_export.export_options import ExportOptions  # noqa: E402
from hz_export.imported.deepbrainnet import NETWORK, build  # noqa: E402
from hz_export.imported.importing import described, import_network  # noqa: E402
from hz_export.imported.keras_file import read_here  # noqa: E402
from hz_export.imported.weight_file import WeightFile  # noqa: E402
from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.inference.open import NetworkOptions, open_networks  # noqa: E402
from hz_runtime.inference.slice_wise import middle  # noqa: E402
from hz_runtime.model_space.recipe import to_model_space  # noqa: E402
from hz_runtime.preparation.template import mni152_volume  # noqa: E402

F = NDArray[np.float64]
SIDE = 20
EPSILON = 1e-3


def row(kind: str, name: str, reads: list[str], **config: Any) -> dict[str, Any]:
    nodes = [[[read, 0, 0, {}] for read in reads]] if reads else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def conv(
    name: str, read: str, filters: int, size: int, strides: int = 1, padding: str = "same", **more: Any
) -> Any:
    how = {"filters": filters, "kernel_size": [size, size], "strides": [strides, strides], "padding": padding}
    return row("Conv2D", name, [read], **{**how, "use_bias": False, "activation": "linear", **more})


BASE = [
    row("InputLayer", "input_1", [], batch_input_shape=[None, SIDE, SIDE, 3]),
    conv("conv2d_1", "input_1", 4, 3, 2, "valid"),
    row("BatchNormalization", "batch_normalization_1", ["conv2d_1"], axis=[3], epsilon=EPSILON, scale=False),
    row("Activation", "activation_1", ["batch_normalization_1"], activation="relu"),
    row("MaxPooling2D", "max_pooling2d_1", ["activation_1"], pool_size=[3, 3], strides=[2, 2],
        padding="same"),
    row("AveragePooling2D", "average_pooling2d_1", ["max_pooling2d_1"], pool_size=[3, 3], strides=[1, 1],
        padding="same"),
    conv("conv2d_2", "max_pooling2d_1", 3, 1, activation="relu", use_bias=True),
    row("Concatenate", "mixed_5b", ["average_pooling2d_1", "conv2d_2"], axis=3),
    conv("block35_1_conv", "mixed_5b", 7, 1, use_bias=True),
    row("Lambda", "block35_1", ["mixed_5b", "block35_1_conv"], function=["4wEAAAA=", None, None],
        arguments={"scale": 0.17}),
    row("Activation", "block35_1_ac", ["block35_1"], activation="relu"),
    conv("conv2d_3", "block35_1_ac", 5, 4, 2),
]  # fmt: skip
CONFIG = {
    "class_name": "Sequential",
    "config": {
        "name": "sequential_1",
        "layers": [
            {
                "class_name": "Model",
                "config": {
                    "name": "inception_resnet_v2",
                    "layers": BASE,
                    "input_layers": [["input_1", 0, 0]],
                    "output_layers": [["conv2d_3", 0, 0]],
                },
            },
            row("Flatten", "flatten_1", []),
            row("Dense", "dense_1", [], units=6, activation="relu", use_bias=True),
            row("Dropout", "dropout_1", [], rate=0.5),
            row("Dense", "dense_2", [], units=1, activation="linear", use_bias=True),
        ],
    },
}


def tensors() -> dict[str, dict[str, F]]:
    """By layer of the file, its tensors as Keras lays them out."""
    rng = np.random.default_rng(3)

    def kernel(*shape: int) -> F:
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)

    base = {
        "conv2d_1/kernel": kernel(3, 3, 3, 4),
        "batch_normalization_1/beta": rng.normal(0, 0.2, 4),
        "batch_normalization_1/moving_mean": rng.normal(0, 0.2, 4),
        "batch_normalization_1/moving_variance": rng.uniform(0.5, 1.5, 4),
        "conv2d_2/kernel": kernel(1, 1, 4, 3),
        "conv2d_2/bias": rng.normal(0, 0.1, 3),
        "block35_1_conv/kernel": kernel(1, 1, 7, 7),
        "block35_1_conv/bias": rng.normal(0, 0.1, 7),
        "conv2d_3/kernel": kernel(4, 4, 7, 5),
    }
    return {
        "inception_resnet_v2": base,
        "dense_1": {"dense_1/kernel": kernel(45, 6), "dense_1/bias": rng.normal(0, 0.1, 6)},
        "dense_2": {"dense_2/kernel": 40 * kernel(6, 1), "dense_2/bias": np.array([45.0])},
    }


TENSORS = tensors()


def file_of(path: Path, config: Any = CONFIG, held: dict[str, dict[str, F]] = TENSORS) -> Path:
    layers = [(n, [(t, v.astype(np.float32)) for t, v in ts.items()]) for n, ts in held.items()]
    return write_keras(path, layers, json.dumps(config))


def read(path: Path) -> WeightFile:
    """In this process, which is quicker."""
    return WeightFile(path.name, "", *read_here(path))


def windows(x: F, size: int, stride: int, same: bool, fill: float) -> tuple[F, tuple[int, int]]:
    """(outputs, outputs, size, size, channels) of an (H, W, C) picture, with TensorFlow's padding."""
    total = max((-(-x.shape[0] // stride) - 1) * stride + size - x.shape[0], 0) if same else 0
    pad = (total // 2, total - total // 2)
    x = np.pad(x, (pad, pad, (0, 0)), constant_values=fill)
    count = (x.shape[0] - size) // stride + 1
    at = [slice(k * stride, k * stride + size) for k in range(count)]
    return np.array([[x[i, j] for j in at] for i in at]), pad


def convolved(x: F, kernel: F, stride: int = 1, same: bool = True) -> F:
    return np.einsum("ijabc,abcd->ijd", windows(x, kernel.shape[0], stride, same, 0.0)[0], kernel)


def age_of(picture: F) -> float:
    """The age of an (H, W, 3) picture, in float64, channels last as in Keras."""
    base = {
        name: np.float32(value).astype(np.float64) for ts in TENSORS.values() for name, value in ts.items()
    }
    x = convolved(picture, base["conv2d_1/kernel"], 2, same=False)
    spread = np.sqrt(base["batch_normalization_1/moving_variance"] + EPSILON)
    x = (x - base["batch_normalization_1/moving_mean"]) / spread + base["batch_normalization_1/beta"]
    x = windows(np.maximum(x, 0), 3, 2, True, -np.inf)[0].max((2, 3))
    counted = windows(np.ones_like(x), 3, 1, True, 0.0)[0].sum((2, 3))
    pooled = windows(x, 3, 1, True, 0.0)[0].sum((2, 3)) / counted
    branch = np.maximum(convolved(x, base["conv2d_2/kernel"]) + base["conv2d_2/bias"], 0)
    mixed = np.concatenate([pooled, branch], 2)
    residual = convolved(mixed, base["block35_1_conv/kernel"]) + base["block35_1_conv/bias"]
    x = convolved(np.maximum(mixed + 0.17 * residual, 0), base["conv2d_3/kernel"], 2)
    x = np.maximum(x.reshape(-1) @ base["dense_1/kernel"] + base["dense_1/bias"], 0)
    return float(x @ base["dense_2/kernel"][:, 0] + base["dense_2/bias"][0])


def test_from_file_to_age_as_the_authors_go(tmp_path: Path) -> None:
    # Their 182 x 218 x 182 voxels and slices 45 to 124, on voxels of 4 mm; the steps are the same.
    recipe = replace(
        NETWORK.recipe,
        template_shape=(46, 55, 46),
        template_spacing_mm=4.0,
        grid_shape=(46, 55, 44),
        middle_slices=20,
    )
    weights = file_of(tmp_path / "DBN_model.h5")
    small = replace(NETWORK, recipe=recipe)
    said: list[str] = []
    options = ExportOptions(check_parity=False, precisions=("fp16",))
    bundle = import_network(
        small, [weights], tmp_path / "dbn.hz", options, accept_licence=True, say=said.append
    )
    volume = mni152_volume()
    grid = to_model_space(volume, recipe).grid
    with open_networks(bundle, NetworkOptions(require="onnxruntime-cpu")) as networks:
        assert networks.age_predictor is not None
        found = networks.age_predictor(networks.harmonizer(grid)).raw[0]
    ages = []
    for k in range(12, 32):
        nearest = [
            ((np.arange(SIDE) + 0.5) * n / SIDE).astype(int) for n in grid.shape[:2]
        ]  # Pillow's NEAREST
        picture = grid[:, :, k][np.ix_(*nearest)].astype(np.float64)
        ages.append(age_of(np.repeat(picture[:, :, None], 3, 2)))
    assert np.ptp(ages) > 1  # slices differ, so that it matters which are read
    # A thousandth of a year: float32 near 45 has steps of 4e-6, some layers and weights of 16 years a unit
    # make more of them, and no age means anything so fine.
    assert found == pytest.approx(np.median(ages), abs=1e-3)
    assert bundle.raw["published"]["age"]["licence"] == "NOASSERTION"
    half = next(entry for entry in bundle.models if entry.precision == "fp16")
    session = onnxruntime.InferenceSession(bundle.read(half), providers=["CPUExecutionProvider"])
    slices = np.moveaxis(grid[:, :, 12:32], 2, 0)[:, None].copy()
    (by_half,) = session.run(None, {session.get_inputs()[0].name: slices})
    # float16 has 11 bits, 0.03 years at 45, and rounds in every layer
    assert 0 < np.abs(by_half[:, 0] - ages).max() < 0.5
    # weights that are not the published ones may be somebody's own: they are taken, and it is said
    assert any("warning: DBN_model.h5 is not the file that its authors published" in line for line in said)
    assert any("DBN_model.h5: 13 tensors, every one in its place; sha256" in line for line in said)
    assert bundle.raw["published"]["age"]["files"][0]["sha256_published"] is False
    assert "not the one that the authors publish" in bundle.read_listed("MODEL_CARD.md").decode()


def test_a_network_of_slices_is_not_quantized(tmp_path: Path) -> None:
    weights = [file_of(tmp_path / "DBN_model.h5")]
    with pytest.raises(UsageError, match="holds a network of slices"):
        import_network(
            NETWORK, weights, tmp_path / "a.hz", ExportOptions(precisions=("int8",)), accept_licence=True
        )


def test_the_published_file_is_known() -> None:
    file = WeightFile("DBN_model.h5", NETWORK.sha256[0], {})
    assert described(NETWORK, [file])["files"][0]["sha256_published"] is True
    other = replace(NETWORK, sha256=())
    assert described(other, [file])["files"][0]["sha256_published"] is None


@pytest.mark.parametrize("base", ["flat", "inside"])
def test_vgg16_with_one_hidden_layer(tmp_path: Path, base: str) -> None:
    """The published file has the size of that; narrow here, as Keras builds it by itself or in a model."""
    rng = np.random.default_rng(5)
    rows = [row("InputLayer", "input_1", [], batch_input_shape=[None, None, None, 3])]
    held: dict[str, dict[str, F]] = {}
    read_by, before = "input_1", 3
    for block, (count, width) in enumerate(((2, 4), (2, 5), (3, 6), (3, 7), (3, 7)), 1):
        for number in range(1, count + 1):
            name = f"block{block}_conv{number}"
            rows.append(conv(name, read_by, width, 3, activation="relu", use_bias=True))
            spread = np.sqrt(2 / (9 * before))
            held[name] = {
                f"{name}/kernel": rng.normal(0, spread, (3, 3, before, width)),
                f"{name}/bias": rng.normal(0, 0.1, width),
            }
            read_by, before = name, width
        pool = f"block{block}_pool"
        rows.append(row("MaxPooling2D", pool, [read_by], pool_size=[2, 2], strides=[2, 2], padding="valid"))
        read_by = pool
    head = [
        row("GlobalAveragePooling2D", "global_average_pooling2d_1", [read_by]),
        row("Dense", "dense_1", ["global_average_pooling2d_1"], units=8, activation="relu", use_bias=True),
        row("Dropout", "dropout_1", ["dense_1"], rate=0.5),
        row("Dense", "dense_2", ["dropout_1"], units=1, activation="linear", use_bias=True),
    ]
    for name, shape in (("dense_1", (7, 8)), ("dense_2", (8, 1))):
        held[name] = {f"{name}/kernel": rng.normal(0, 1, shape), f"{name}/bias": rng.normal(0, 1, shape[1])}

    def model(kind: str, layers: list[Any], last: str) -> dict[str, Any]:
        ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [[last, 0, 0]]}
        return {"class_name": kind, "config": {"name": "vgg16", "layers": layers, **ends}}

    if base == "flat":
        config, stored = model("Model", [*rows, *head], "dense_2"), held
    else:
        inside = [model("Model", rows, read_by), *head]
        config = {"class_name": "Sequential", "config": {"name": "sequential_1", "layers": inside}}
        blocks = {t: v for name, ts in held.items() if "block" in name for t, v in ts.items()}
        stored = {"vgg16": blocks, "dense_1": held["dense_1"], "dense_2": held["dense_2"]}
    network = build(read(file_of(tmp_path / "DBN_model.h5", config, stored)))
    assert network.size == (256, 256)  # what Keras's loader makes of pictures where nothing is said
    picture = rng.uniform(0, 1, (64, 64))
    x: F = np.repeat(picture[:, :, None], 3, 2)
    for one in rows[1:]:
        name = one["name"]
        if name in held:
            kernel, bias = (v.astype(np.float32).astype(np.float64) for v in held[name].values())
            x = np.maximum(convolved(x, kernel) + bias, 0)
        else:
            x = windows(x, 2, 2, False, 0.0)[0].max((2, 3))
    (first, second), (third, fourth) = held["dense_1"].values(), held["dense_2"].values()
    expected = np.maximum(x.mean((0, 1)) @ first + second, 0) @ third + fourth
    network.size = (64, 64)
    with torch.no_grad():
        found = network(torch.from_numpy(picture.astype(np.float32))[None, None])
    assert float(found) == pytest.approx(float(expected[0]), abs=1e-4)


def test_the_slices_of_the_paper_are_read() -> None:
    recipe = NETWORK.recipe
    read = middle(recipe.grid_shape[2], recipe.middle_slices)
    assert (read.start, read.stop - 1) == (45, 124) and recipe.crop_first == (0, 0, 0)


def test_weights_without_a_licence_are_not_taken_unasked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without a stated licence"):
        import_network(NETWORK, [file_of(tmp_path / "DBN_model.h5")], tmp_path / "a.hz", ExportOptions())


def test_what_cannot_be_rebuilt_is_refused_by_name(tmp_path: Path) -> None:
    def changed(kind: str, name: str, **config: Any) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(json.dumps(CONFIG))
        for one in made["config"]["layers"][0]["config"]["layers"]:
            if one["config"]["name"] == name:
                one["class_name"] = kind
                one["config"].update(config)
        return made

    path = tmp_path / "DBN_model.h5"
    two: dict[str, Any] = json.loads(json.dumps(CONFIG))
    two["config"]["layers"][-1]["config"]["units"] = 2
    twice = {t: np.concatenate([v, v], -1) for t, v in TENSORS["dense_2"].items()}
    cases = [
        (changed("SeparableConv2D", "conv2d_3"), TENSORS, "conv2d_3, a layer SeparableConv2D"),
        (changed("Lambda", "block35_1", arguments={"script": "x"}), TENSORS, "scale"),
        (changed("Conv2D", "conv2d_3", activation="mish"), TENSORS, "activation mish"),
        (CONFIG, {**TENSORS, "dense_3": {"dense_3/bias": np.ones(1)}}, "holds dense_3/dense_3/bias"),
        (CONFIG, {k: v for k, v in TENSORS.items() if k != "dense_2"}, "lacks dense_2/dense_2/kernel"),
        (changed("Conv2D", "conv2d_3", filters=9), TENSORS, r"holds .*conv2d_3/kernel of \(4, 4, 7, 5\)"),
        ({"class_name": "Theirs"}, TENSORS, "does not describe its network"),
        (two, {**TENSORS, "dense_2": twice}, r"gives \(2,\) for a slice, not one age"),
    ]
    for config, held, reason in cases:
        with pytest.raises(UsageError, match=reason):
            build(read(file_of(path, config, held)))


def many(rows: list[Any]) -> None:
    """None of them much by itself, and each read again at the end of all."""
    pads = [f"padded_{number}" for number in range(40)]
    rows += [row("ZeroPadding2D", pad, ["conv2d_3"], padding=[[0, 0], [0, 700_000]]) for pad in pads]


def added(rows: list[Any]) -> None:
    rows.append(row("ZeroPadding2D", "padded", ["conv2d_3"], padding=[[0, 0], [0, 50_000]]))
    rows.extend(row("Add", f"added_{number}", ["padded"] * 64) for number in range(60))


def edges(rows: list[Any]) -> None:
    """Channels of one pixel, each in a window of 64 x 64 that is mostly padding."""
    read = "conv2d_3"
    for number in range(18):
        rows.append(row("Concatenate", f"double_{number}", [read, read], axis=3))
        read = f"double_{number}"
    for number in range(4):
        how = {"pool_size": [64, 64], "strides": [64, 64], "padding": "same"}
        rows.append(row("MaxPooling2D", f"pool_{number}", [read], **how))
        read = f"pool_{number}"


def test_descriptions_that_ask_for_too_much_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    """Gigabytes in a few letters: filters, windows, slices, doubled channels, layers upon layers."""

    def changed(change: Any) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(json.dumps(CONFIG))
        change(made["config"]["layers"][0]["config"]["layers"])
        return made

    def doubled(rows: list[Any]) -> None:
        read = "conv2d_3"
        for number in range(40):
            rows.append(row("Concatenate", f"double_{number}", [read, read], axis=3))
            read = f"double_{number}"

    def deep() -> dict[str, Any]:
        inner: dict[str, Any] = CONFIG
        for _ in range(300):
            inner = {"class_name": "Sequential", "config": {"name": "s", "layers": [inner]}}
        return inner

    def ending(made: dict[str, Any], last: str) -> dict[str, Any]:
        made["config"]["layers"][0]["config"]["output_layers"] = [[last, 0, 0]]
        return made

    cases = [
        (
            changed(lambda rows: rows[1]["config"].update(filters=10**12)),
            r"conv2d_1/kernel of \(3, 3, 3, 4\)",
        ),
        (changed(lambda rows: rows[1]["config"].update(filters=10**30)), "cannot rebuild"),
        (changed(lambda rows: rows[4]["config"].update(pool_size=[10**6] * 2)), "a window of"),
        (changed(lambda rows: rows[4]["config"].update(strides=[0, 1])), "a window of"),
        (
            changed(lambda rows: rows[0]["config"].update(batch_input_shape=[None, 10**6, 10**6, 3])),
            "slices of",
        ),
        (ending(changed(doubled), "double_39"), "layers that make more than"),
        (ending(changed(many), "padded_39"), "layers that make more than"),
        (ending(changed(added), "added_59"), "layers that make more than"),
        (ending(changed(edges), "pool_3"), "layers that make more than"),
        (
            changed(lambda rows: rows[7].update(inbound_nodes=[[["conv2d_2", 0, 0, {}]] * 65])),
            "reads 65 layers",
        ),
        (changed(lambda rows: rows[6]["config"].update(name="conv2d_1")), "is there twice"),
        (changed(lambda rows: rows[2]["config"].update(epsilon=float("nan"))), "epsilon"),
        (deep(), "cannot rebuild"),
    ]
    for config, reason in cases:
        with pytest.raises(UsageError, match=reason):
            build(read(file_of(tmp_path / "DBN_model.h5", config)))
