"""Checkpoints of the slice-wise system to a bundle that runs them as their networks do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402

from hz_cli.bench_table import speed_lines  # noqa: E402
from hz_export.assemble import export_bundle  # noqa: E402
from hz_export.bench import Plan  # noqa: E402
from hz_export.bundle_parity import ParityOptions, measure_bundle, verdict  # noqa: E402
from hz_export.differences import Tolerance, checks, measured  # noqa: E402
from hz_export.engine import EngineOptions, build_engine  # noqa: E402
from hz_export.export_options import ExportOptions  # noqa: E402
from hz_export.graph_precision import achieved, to_reduced  # noqa: E402
from hz_export.networks import read_network  # noqa: E402
from hz_export.speed import SpeedOptions, measure_speed  # noqa: E402
from hz_export.to_onnx import OUTPUTS, read_checkpoint  # noqa: E402
from hz_runtime.batch.run import run_batch  # noqa: E402
from hz_runtime.bundle.store import Bundle, load_bundle  # noqa: E402
from hz_runtime.errors import HzError, UsageError  # noqa: E402
from hz_runtime.inference.open import NetworkOptions, open_networks  # noqa: E402
from hz_runtime.io.volume import read_volume  # noqa: E402
from hz_runtime.model_space.recipe import Recipe, to_model_space  # noqa: E402
from small_checkpoints import write_age, write_harmonizer  # noqa: E402
from small_scans import write_scans  # noqa: E402
from small_slice_checkpoints import MIDDLE, write_slice_harmonizer, write_slice_predictor  # noqa: E402

ON_CPU = NetworkOptions(backend="onnxruntime-cpu")
PREDICTORS = ("age", "diagnosis")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export of all three networks, fp32 and fp16; parity on two synthetic heads."""
    folder = tmp_path_factory.mktemp("slices")
    write_scans(folder / "scans", 2)
    paths = [write_slice_harmonizer(folder), *(write_slice_predictor(folder, task) for task in PREDICTORS)]
    options = ExportOptions(precisions=("fp16",), scans=(folder / "scans",), name="Canonical")
    said: list[str] = []
    export_bundle(paths, folder / "canonical.hz", options, said.append)
    (folder / "said.txt").write_text("\n".join(said))
    return folder


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder / "canonical.hz")


def grid_of(folder: Path) -> np.ndarray:
    recipe = Recipe(intensity="percentile")
    return to_model_space(read_volume(folder / "scans/sub-01_T1w.nii.gz"), recipe).grid


def slice_by_slice(network: torch.nn.Module, volume: np.ndarray) -> np.ndarray:
    """The network's answers to every slice alone, in torch."""
    with torch.no_grad():
        return np.stack(
            [
                network(torch.from_numpy(np.ascontiguousarray(volume[:, :, k]))[None, None]).numpy()[0]
                for k in range(volume.shape[2])
            ]
        )


def test_bundle_holds_the_three_networks(bundle: Bundle) -> None:
    found = [(e.role, e.precision, e.inputs[0].shape, e.outputs[0].name, e.labels) for e in bundle.models]
    shape = ("N", 1, 64, 64)
    assert found == [
        (role, precision, shape, OUTPUTS[role], ("control", "patient") if role == "diagnosis" else ())
        for role in ("harmonizer", "age", "diagnosis")
        for precision in ("fp32", "fp16")
    ]
    recipe = Recipe.from_dict(dict(bundle.recipe))
    assert recipe == Recipe(intensity="percentile", middle_slices=MIDDLE)


def test_bundle_runs_as_its_networks_do(bundle: Bundle, folder: Path) -> None:
    grid = grid_of(folder)
    made = slice_by_slice(read_checkpoint(folder / "canonical.safetensors").network, grid)
    empty = np.ptp(grid, axis=(0, 1)) == 0  # the runtime leaves those as they are
    assert 5 < empty.sum() < 40
    expected = np.where(empty, grid, np.moveaxis(made[:, 0], 0, 2))
    networks = open_networks(bundle, ON_CPU)
    found = networks.harmonizer(grid)
    assert np.abs(expected - grid).mean() > 0.01  # it does something
    np.testing.assert_allclose(found, expected, atol=2e-5)
    first = (64 - MIDDLE) // 2
    for task, predictor in (("age", networks.age_predictor), ("diagnosis", networks.diagnosis_predictor)):
        network = read_checkpoint(folder / f"slice-{task}.safetensors").network
        each = slice_by_slice(network, expected)[first : first + MIDDLE]
        answer = predictor(found)
        (number,) = answer.raw if task == "age" else answer  # type: ignore[union-attr]
        assert number == pytest.approx(float(np.median(each)), abs=1e-3)
        assert np.ptp(each) > 1e-3  # slices differ, so that their median says something


def test_parity_is_of_volumes_in_the_units_of_each_role(bundle: Bundle) -> None:
    units = {"harmonizer": "brain", "age": "years", "diagnosis": "probability"}
    assert {entry.role for entry in bundle.models} == set(units)
    for entry in bundle.models:
        assert entry.parity["sha256"] == entry.sha256
        assert entry.parity["measured"]
        for row in entry.parity["measured"]:
            assert units[entry.role] in row
            assert len(row["per_volume"]) == 2
            assert row.get("seams", {"overall": 1})["overall"] > 0
            assert ("seams" in row) == (entry.role == "harmonizer")


def test_parity_is_measured_again_from_the_bundle(bundle: Bundle, folder: Path) -> None:
    checkpoints = tuple(folder / name for name in ("canonical.safetensors", "slice-diagnosis.safetensors"))
    options = ParityOptions(checkpoints, (folder / "scans",), ("onnxruntime-cpu", "openvino"))
    found = measure_bundle(bundle, options)
    assert [model["role"] for model in found["models"]] == [e.role for e in bundle.models]
    assert not verdict(found)
    references = {model["role"]: model["parity"]["reference"] for model in found["models"]}
    assert references["diagnosis"].startswith("torch")
    assert references["age"].startswith("the bundle's own age.onnx")


def test_a_probability_past_its_tolerance_is_refused() -> None:
    ones = np.full(3, 0.5, np.float32)
    row = measured(
        ones + np.array([0, 0.02, 0], np.float32), ones, np.ones((3, 1, 1, 1), bool), unit="probability"
    )
    limit = Tolerance(1, 1, 1, probability=0.01)
    (past,) = (check for check in checks(row, limit) if check.past)
    assert past.key == "probability"
    assert past.value == pytest.approx(0.02, abs=1e-6)
    lost = measured(np.array([np.nan], np.float32), ones[:1], np.ones((1, 1, 1, 1), bool), unit="probability")
    assert [c.key for c in checks(lost, limit) if c.past] == ["nonfinite"]


def test_export_refuses_what_strays(folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(
        scans=(folder / "scans",), engines=("onnxruntime",), precisions=("fp16",), tolerance={"mean": 1e-12}
    )
    with pytest.raises(HzError, match="mean difference in the brain"):
        export_bundle([folder / "canonical.safetensors"], tmp_path / "x.hz", options)
    assert not (tmp_path / "x.hz").exists()


def test_card_cites_the_paper_and_cautions(bundle: Bundle) -> None:
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "## Harmonizer: the slice CycleGAN generator of Bashyam et al. 2020" in card
    assert "## Diagnosis: the slice ResNet of Bashyam et al. 2020" in card
    assert "Medical image harmonization using deep learning based canonical mapping" in card
    assert "Komandur" not in card
    assert "how probable patient is rather than control" in card
    assert "it diagnoses nobody" in card
    assert card.count("Seams: neighbouring harmonized slices differ") == 1
    assert f"| middle_slices | {MIDDLE} |" in card
    assert "| auc | 0.7125 | 0.6 to 0.8 | 40 | held out |" in card


def test_the_exported_bundle_runs(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    report = run_batch([folder / "scans"], bundle, tmp_path / "out")
    assert report.exit_code == 0
    for scan in report.scans:
        assert scan.prediction.age_raw is not None
        assert 0 < (scan.prediction.diagnosis_probability or 0) < 1


@pytest.mark.parametrize("role", ["harmonizer", "diagnosis"])
def test_speed_is_of_slices(bundle: Bundle, role: str) -> None:
    plan = Plan(repeats=1, warmup=0, least=1, pause=0)
    options = SpeedOptions(role=role, batches=(2,), plan=plan, only=("onnxruntime-cpu",), threads=1)
    result = measure_speed(bundle, options)
    assert result["model"]["reads"] == "slices"
    assert result["model"]["grid"] == [64, 64]
    (candidate,) = result["contenders"]
    assert candidate["batches"]["2"]["model"]["median_ms"] > 0
    assert any("slices/s" in line for line in speed_lines(result))


def test_checkpoints_that_do_not_belong_together(tmp_path: Path) -> None:
    quick = ExportOptions(check_parity=False)
    slices, volumes = write_slice_harmonizer(tmp_path), write_harmonizer(tmp_path)
    age = write_slice_predictor(tmp_path)
    with pytest.raises(UsageError, match=r"prepare scans differently \(intensity\)"):
        export_bundle([volumes, age], tmp_path / "a.hz", quick)
    other = Recipe(intensity="percentile", middle_slices=MIDDLE + 2).to_dict()
    diagnosis = write_slice_predictor(tmp_path, "diagnosis", recipe=other)
    with pytest.raises(UsageError, match=r"different numbers of middle slices .*24 and .*26"):
        export_bundle([slices, age, diagnosis], tmp_path / "b.hz", quick)
    with pytest.raises(UsageError, match="holds a network of slices"):
        export_bundle([slices], tmp_path / "i.hz", ExportOptions(precisions=("int8",), check_parity=False))
    stranger = write_slice_predictor(tmp_path, "diagnosis", harmonizer="f" * 64)
    with pytest.raises(UsageError, match="trained behind harmonizer ffff"):
        export_bundle([slices, stranger], tmp_path / "c.hz", quick)


def test_a_volume_wise_age_network_goes_with_a_slice_wise_harmonizer(tmp_path: Path) -> None:
    """Each network says how it reads scans; a recipe of volumes has no middle slices."""
    recipe = Recipe(intensity="percentile").to_dict()
    slices = write_slice_harmonizer(tmp_path)
    sha256 = read_checkpoint(slices).sha256
    age = write_age(tmp_path, recipe=recipe, harmonizer=sha256)
    write_scans(tmp_path / "scans", 1)
    options = ExportOptions(scans=(tmp_path / "scans",), engines=("onnxruntime",))
    bundle = export_bundle([slices, age], tmp_path / "mixed.hz", options)
    assert bundle.recipe == recipe
    assert [len(e.inputs[0].shape) for e in bundle.models] == [4, 5]
    assert run_batch([tmp_path / "scans"], bundle, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "sex"}, "predicts 'sex'"),
        ({"labels": ["patient"]}, "does not name two labels"),
        ({"labels": None}, "does not name two labels"),
        ({"labels": ["a", "a"]}, "does not name two labels"),
        ({"recipe": Recipe().to_dict()}, "does not say how many"),
        ({"network": {"width": 3, "shape": [64, 64], "classify": True}}, "does not fit its network"),
    ],
)
def test_diagnosis_checkpoints_that_say_too_little(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_checkpoint(write_slice_predictor(tmp_path, "diagnosis", **changes))


def test_calibration_says_that_it_is_of_volumes(tmp_path: Path, bundle: Bundle) -> None:
    for path in (write_slice_harmonizer(tmp_path), bundle.path):
        with pytest.raises(UsageError, match="networks of whole volumes"):
            read_network(path)


@pytest.mark.parametrize("word", ["fp16", "bf16"])
def test_padding_between_convolutions_is_reduced_too(bundle: Bundle, word: str) -> None:
    """Zhu's reflection pads stand before every block's convs: in float32 each would cost two casts."""
    reduced = achieved(to_reduced(onnx.load_from_string(bundle.read(bundle.model("harmonizer"))), word))
    assert reduced.precision == word
    assert reduced.faults == ()
    assert set(reduced.operations["Pad"]) == {word}
    assert set(reduced.operations["InstanceNormalization"]) == {"fp32"}


@pytest.mark.parametrize("role", ["harmonizer", *PREDICTORS])
@pytest.mark.parametrize("word", ["fp16", "bf16"])
def test_tensorrt_builds_what_was_asked_for(bundle: Bundle, role: str, word: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = to_reduced(onnx.load_from_string(bundle.read(bundle.model(role))), word)
    options = EngineOptions(flavour="tensorrt_rtx", name=role)
    record, data = build_engine(model.SerializeToString(), role, word, options)
    assert record.precision == word
    assert len(data) == record.bytes
