"""hz-train canonical, slice-age and diagnosis: from a table of scans to checkpoints, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from click.testing import CliRunner, Result  # noqa: E402

from hz_cli.train import train  # noqa: E402
from hz_runtime.errors import UsageError  # noqa: E402
from hz_runtime.inference.slice_wise import SliceHarmonizer, SlicePredictor  # noqa: E402
from hz_runtime.io.volume import read_volume  # noqa: E402
from hz_runtime.model_space.outliers import measured, score  # noqa: E402
from hz_runtime.model_space.recipe import Recipe, to_model_space  # noqa: E402
from hz_train.checkpoint import load_checkpoint, without_prefix  # noqa: E402
from hz_train.cohort import Cohort, read_participants  # noqa: E402
from hz_train.slice_cyclegan import SliceGenerator  # noqa: E402
from hz_train.slice_predictor_training import Question  # noqa: E402
from hz_train.slice_resnet import SliceResNet  # noqa: E402
from small_cohort import write_cohort  # noqa: E402

QUICK = ["--preset", "quick", "--device", "cpu", "--epochs", "1", "--picture-every", "1"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small lose by sharing their work out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(folder, {"oslo": 10, "rome": 4, "bonn": 4}, groups=("control", "patient"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(train, [str(a) for a in arguments], catch_exceptions=True)


def done(result: Result) -> Result:
    if result.exception:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def harmonizer(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("canonical")
    sites = ["--source", "rome,bonn", "--target", "oslo"]
    options = ["--width", 2, "--blocks", 1, "--slices", 6, "--seed", 5]
    said = done(call("canonical", "--cohort", cohort, "--out", out, *QUICK, *sites, *options))
    assert "hz-export" in said.output
    return out / "harmonizer.safetensors"


def test_canonical_writes_a_many_to_one_checkpoint(harmonizer: Path) -> None:
    tensors, meta = load_checkpoint(harmonizer)
    assert meta["kind"] == "slice_cyclegan"
    assert meta["network"] == {"width": 2, "blocks": 1}
    assert (meta["sources"], meta["target"], meta["conditional"]) == (["rome", "bonn"], "oslo", True)
    recipe = Recipe.from_dict(meta["recipe"])
    assert (recipe.grid_shape, recipe.middle_slices, recipe.intensity) == ((32, 32, 32), 6, "percentile")
    assert meta["seed"] == 5
    assert tensors["reverse.layers.1.weight"].shape[1] == 3
    assert set(meta["metrics"]) == {
        "restoration_error_before",
        "restoration_error_after",
        "target_grey_white_change",
        "travelling_head_before",
        "travelling_head_after",
    }
    for name in ("sources", "statistics", "cohort", "split", "schedule", "settings", "licence"):
        assert name in meta
    SliceGenerator(**meta["network"]).load_state_dict(without_prefix("generator", tensors))
    out = harmonizer.parent
    assert (out / "epoch-001.png").read_bytes().startswith(b"\x89PNG")
    with open(out / "log.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert {"adversarial_target", "cycle_source", "identity_target"} <= set(row)


def test_slice_age_behind_the_harmonizer(cohort: Path, harmonizer: Path, tmp_path: Path) -> None:
    """The held-out predictions once more, by other code: the runtime's, on the checkpoint's weights."""
    given = ["--sites", "oslo", "--harmonizer", harmonizer, "--all-groups", "--width", 2]
    done(call("slice-age", "--cohort", cohort, "--out", tmp_path, *QUICK, *given))
    tensors, meta = load_checkpoint(tmp_path / "age.safetensors")
    assert (meta["kind"], meta["task"], meta["labels"]) == ("slice_resnet", "age", [])
    assert meta["network"] == {"width": 2, "shape": [32, 32], "classify": False}
    assert meta["recipe"] == load_checkpoint(harmonizer)[1]["recipe"]  # nothing else was asked for
    assert meta["harmonizer"] == load_checkpoint(harmonizer)[1]["sha256"]
    assert {"mae_years", "pearson_r"} <= set(meta["metrics"])

    predictor = SliceResNet(**meta["network"]).eval()
    predictor.load_state_dict(without_prefix("predictor", tensors))
    generator = SliceGenerator(width=2, blocks=1).eval()
    generator.load_state_dict(without_prefix("generator", load_checkpoint(harmonizer)[0]))

    def runner(network):
        def run(batch: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(batch)).numpy()

        return run

    with open(cohort, newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["site"] == "oslo"]
    held = meta["held_out_predictions"]
    recipe = Recipe.from_dict(meta["recipe"])
    assert len(held["age"]) == len(set(held["subjects"])) == 2  # 15 % of ten
    (fold,) = held["folds"]
    assert sorted(held["subjects"]) == fold["subjects"] and len(fold["trained_on"]) == 8
    assert set(fold["subjects"]).isdisjoint(fold["trained_on"]) and "sub-" not in str(held)
    for age, raw in zip(held["age"], held["raw"], strict=True):
        (row,) = (r for r in rows if float(r["age"]) == pytest.approx(age, abs=0.01))
        volume = to_model_space(read_volume(cohort.parent / row["file"]), recipe).grid[None]
        harmonized = SliceHarmonizer(runner(generator))(volume)
        assert float(SlicePredictor(runner(predictor), 6)(harmonized)[0]) == pytest.approx(raw, abs=1e-2)


def test_diagnosis_finds_the_labels_and_folds(cohort: Path, tmp_path: Path) -> None:
    given = ["--folds", 2, "--width", 2, "--slices", 4]
    done(call("diagnosis", "--cohort", cohort, "--out", tmp_path, *QUICK, *given))
    tensors, meta = load_checkpoint(tmp_path / "diagnosis.safetensors")
    assert (meta["task"], meta["labels"]) == ("diagnosis", ["control", "patient"])
    assert meta["network"]["classify"] is True
    held = meta["held_out_predictions"]
    assert sorted(held["positive"]) == [0] * 9 + [1] * 9  # everyone once
    assert all(0 <= p <= 1 for p in held["probability"])
    assert sorted(held["subjects"]) == sorted(name for fold in held["folds"] for name in fold["subjects"])
    for fold in held["folds"]:
        assert set(fold["subjects"]).isdisjoint(fold["trained_on"])
        assert len(fold["subjects"]) + len(fold["trained_on"]) == 18
    auc = meta["metrics"]["auc"]
    assert 0 <= auc["ci95"][0] <= auc["value"] <= auc["ci95"][1] <= 1
    assert "predictor.head.1.weight" in tensors
    json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_labels_are_named_where_there_are_more(tmp_path: Path) -> None:
    table = write_cohort(tmp_path / "c", {"oslo": 12}, groups=("control", "a", "b"))
    common = ["diagnosis", "--cohort", table, "--out", tmp_path / "out", *QUICK, "--width", 2]
    said = call(*common)
    assert isinstance(said.exception, UsageError)
    assert "3 values here: control, a, b" in str(said.exception)
    assert "--labels" in said.exception.remedy
    done(call(*common, "--labels", "b,a", "--held-out", 0.3, "--validation", 0))
    meta = load_checkpoint(tmp_path / "out" / "diagnosis.safetensors")[1]
    assert meta["labels"] == ["b", "a"]
    assert meta["cohort"]["training"]["n_scans"] == 6  # three of four of each
    assert call(*common, "--labels", "a").exit_code == 2
    missing = call(*common, "--labels", "a,x")
    assert "0 subjects are of group 'x'" in str(missing.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["canonical", "--source", "rome", "--target", "oslo", "--grid", "30,32,32"], "30 x 32"),
        (["canonical", "--source", "oslo", "--target", "oslo"], "oslo is both source and target"),
        (["canonical", "--source", "rome", "--target", "oslo", "--coarse", "1"], "cannot be halved"),
        (["slice-age", "--grid", "28,28,28"], "28 x 28 are too small"),
        (["slice-age", "--slices", "40"], "32 slices, not 40"),
        (["slice-age", "--sites", "nowhere"], "'nowhere' has no scans"),
        (["diagnosis", "--folds", "1"], "cannot be held out in 1 folds"),
        (["slice-age", "--all-groups", "--folds", "40"], "18 subjects cannot be held out in 40 folds"),
    ],
)
def test_what_cannot_be_done_is_refused(cohort: Path, tmp_path: Path, arguments, message: str) -> None:
    said = call(*arguments, "--cohort", cohort, "--out", tmp_path, *QUICK)
    assert isinstance(said.exception, UsageError)
    assert message in str(said.exception)
    assert said.exception.remedy
    assert not list(tmp_path.iterdir())


def test_a_table_that_was_corrected_is_not_resumed(cohort: Path, harmonizer: Path, tmp_path: Path) -> None:
    """Another age, another site: the run in the folder learned something else."""
    common = ["slice-age", "--out", tmp_path / "age", *QUICK, "--width", 2, "--all-groups", "--sites", "oslo"]
    done(call(*common, "--cohort", cohort))
    rows = cohort.read_text().splitlines()
    # Beside the first table, whose file names are relative.
    older = cohort.with_name("older.tsv")
    older.write_text("\n".join([rows[0], *(r.replace("\t20.0\t", "\t29.0\t") for r in rows[1:])]) + "\n")
    said = call(*common, "--cohort", older)
    assert "holds a run with other settings (" in str(said.exception)

    swapped = cohort.with_name("swapped.tsv")
    names = {"rome": "bonn", "bonn": "rome"}
    cells = [row.split("\t") for row in rows[1:]]
    lines = ["\t".join([*c[:2], names.get(c[2], c[2]), *c[3:]]) for c in cells]
    swapped.write_text("\n".join([rows[0], *lines]) + "\n")
    options = ["--width", 2, "--blocks", 1, "--slices", 6, "--seed", 5]
    sites = ["--source", "rome,bonn", "--target", "oslo"]
    common = ["canonical", "--out", harmonizer.parent, *QUICK, *sites, *options]
    said = call(*common, "--cohort", swapped)
    assert "holds a run with other settings (scans)" in str(said.exception)


def test_the_reference_for_outliers_is_of_whole_scans(cohort: Path, tmp_path: Path) -> None:
    """hz-run compares whole prepared volumes with it, not the middle slices that the network reads."""
    given = ["--width", 2, "--slices", 4, "--all-groups", "--folds", 2]  # with folds everybody trains
    done(call("slice-age", "--cohort", cohort, "--out", tmp_path, *QUICK, *given))
    meta = load_checkpoint(tmp_path / "age.safetensors")[1]
    assert meta["reference"]["n"] == meta["cohort"]["training"]["n_scans"]
    recipe = Recipe.from_dict(meta["recipe"])
    with open(cohort, newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream, delimiter="\t")]
    prepared = [to_model_space(read_volume(cohort.parent / file), recipe) for file in files]
    centres = [measured(p.features, p.grid)["centre_z"] for p in prepared]
    assert meta["reference"]["measures"]["centre_z"]["median"] == pytest.approx(np.median(centres), abs=1e-6)
    scores = [score(p.features, p.grid, meta["reference"]).z["correlation"] for p in prepared]
    assert abs(np.median(scores)) < 1


def test_who_fell_ill_between_two_scans_is_on_one_side(cohort: Path) -> None:
    scans = read_participants(cohort).at(["oslo"]).scans
    both = [replace(s, subject=f"sub-{n // 2}") for n, s in enumerate(scans)]  # control, then patient
    question = Question("diagnosis", lambda s: float(s.group == "patient"), ("control", "patient"))
    everyone = Cohort((*both, *(replace(s, path=s.path.with_name(f"{s.path.name}x")) for s in scans)))
    parts = question.strata(everyone)
    assert sum(len(part.scans) for part in parts) == len(everyone.scans)
    assert not set(parts[0].subjects) & set(parts[1].subjects)
    assert {s.subject for s in both} <= set(parts[1].subjects)


@pytest.mark.parametrize("grid", ["64", "64,64", "a,b,c", "64,64,0", "64,64,-4"])
def test_a_grid_is_three_sizes(cohort: Path, tmp_path: Path, grid: str) -> None:
    said = call("slice-age", "--cohort", cohort, "--out", tmp_path, "--grid", grid)
    assert said.exit_code == 2
    assert "is not three sizes" in said.output


def test_a_harmonizer_of_another_grid_is_refused(cohort: Path, harmonizer: Path, tmp_path: Path) -> None:
    common = ["slice-age", "--cohort", cohort, "--out", tmp_path, *QUICK, "--harmonizer", harmonizer]
    said = call(*common, "--grid", "36,36,36", "--all-groups")
    assert "is not a harmonizer of this recipe" in str(said.exception)
