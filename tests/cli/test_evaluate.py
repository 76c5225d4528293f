"""hz-evaluate at the command line: quick help, refusals in one line, and whole studies on tiny cohorts."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hz_cli.evaluate import main
from small_cohort import write_cohort

HELP = """
import json, sys
sys.argv = ["hz-evaluate", "--help"]
from hz_cli.evaluate import main
try:
    main()
finally:
    heavy = {"torch", "onnx", "numpy", "nibabel", "matplotlib", "sklearn", "scipy", "hz_train", "hz_runtime"}
    print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_help_imports_nothing_heavy() -> None:
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(str(root / room) for room in ("cli", "runtime", "train"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HELP],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *text, heavy = done.stdout.strip().splitlines()
    assert json.loads(heavy) == []
    assert all(
        study in "\n".join(text) for study in ("pooled", "transfer", "diagnosis", "appearance", "audit")
    )


@pytest.mark.parametrize("option, value", [("--seeds", "0,x"), ("--seeds", "1,1"), ("--labels", "patient")])
def test_values_that_make_no_sense(option: str, value: str, tmp_path: Path) -> None:
    done = evaluate("transfer", "--cohort", "t.tsv", "--reference", "oslo", "--out", tmp_path, option, value)
    assert done.exit_code == 2
    assert option in done.output


class TestRefusals:
    """Each before a network is trained, in one line, exit 2."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("torch", reason="studies train networks")

    def refused(self, table: Path, study: str, *more: object, reference: str = "oslo") -> str:
        out = table.parent / "out"
        done = evaluate(
            study, "--cohort", table, "--reference", reference, "--out", out, "--preset", "quick", *more
        )
        assert done.exit_code == 2
        assert "Traceback" not in done.output
        assert not out.exists()
        return done.output

    def test_no_ages(self, tmp_path: Path) -> None:
        table = write_cohort(tmp_path, {"oslo": 4, "rome": 4}, ages=False)
        assert "no scan of the cohort has an age" in self.refused(table, "transfer")
        assert "no scan of the cohort has an age" in self.refused(table, "pooled")

    def test_one_site_only_or_another_reference(self, tmp_path: Path) -> None:
        table = write_cohort(tmp_path, {"oslo": 4})
        assert "no second site" in self.refused(table, "transfer")
        assert "'paris' has no scans; the cohort has oslo" in self.refused(table, "pooled", reference="paris")

    def test_too_few_subjects(self, tmp_path: Path) -> None:
        table = write_cohort(tmp_path, {"oslo": 4, "rome": 2})
        assert "rome has 2 subjects" in self.refused(table, "transfer")
        assert "rome has 2 subjects" in self.refused(table, "transfer", "--controls-only")

    def test_three_labels(self, tmp_path: Path) -> None:
        table = write_cohort(tmp_path, {"oslo": 6, "rome": 6}, groups=("control", "patient", "carrier"))
        said = self.refused(table, "diagnosis")
        assert "carrier" in said and "--labels" in said

    def test_a_checkpoint_that_is_no_harmonizer(self, tmp_path: Path) -> None:
        from small_checkpoints import write_age

        table = write_cohort(tmp_path, {"oslo": 4, "rome": 4})
        said = self.refused(table, "transfer", "--harmonizer", write_age(tmp_path / "ck"))
        assert "not a harmonizer" in said
        assert "--unseen" in self.refused(table, "transfer", "--unseen")


@pytest.mark.parametrize("system, name", [("volume", "3D"), ("slice", "slice")])
def test_a_quick_transfer_from_table_to_report(system: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="studies train networks")
    pytest.importorskip("matplotlib", reason="studies draw figures")
    table = write_cohort(tmp_path / "cohort", {"oslo": 8, "rome": 5})
    out = tmp_path / "out"
    asked = ("transfer", "--cohort", table, "--reference", "oslo", "--out", out, "--preset", "quick")
    done = evaluate(*asked, "--system", system, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"report: {out / 'transfer.html'}" in done.output
    stored = json.loads((out / "transfer.json").read_text())
    assert stored["settings"]["system"] == system
    assert str(tmp_path) not in (out / "transfer.json").read_text() + (out / "transfer.html").read_text()
    with open(out / "transfer_predictions.tsv", newline="") as stream:
        said = list(csv.DictReader(stream, delimiter="\t"))
    rows = stored["tables"][0]["rows"]
    methods = {r["method"] for r in rows}
    assert {"raw", "z-score", "Nyul", f"{name} CycleGAN, many to one"} <= methods
    for row in rows:
        those = [p for p in said if p["method"] == row["method"] and p["site"] == row["site"]]
        error = np.mean([abs(float(p["predicted"]) - float(p["truth"])) for p in those])
        assert row["metrics"]["mae"]["value"] == pytest.approx(error)
    # Started again, it finds its networks and says the same.
    before = (out / "transfer.tsv").read_bytes()
    assert evaluate(*asked, "--system", system, "--device", "cpu").exit_code == 0
    assert (out / "transfer.tsv").read_bytes() == before


def test_a_quick_diagnosis_with_pairs_and_two_seeds(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="studies train networks")
    pytest.importorskip("matplotlib", reason="studies draw figures")
    table = write_cohort(tmp_path / "cohort", {"oslo": 8, "rome": 8}, groups=("control", "patient"))
    out = tmp_path / "out"
    asked = ("diagnosis", "--cohort", table, "--reference", "oslo", "--out", out, "--preset", "quick")
    done = evaluate(*asked, "--form", "pairs", "--seeds", "0,1", "--predictor-epochs", "1", "--device", "cpu")
    assert done.exit_code == 0, done.output
    stored = json.loads((out / "diagnosis.json").read_text())
    assert stored["settings"]["changes"] == {"preset": "quick", "controls_only": False, "predictor_epochs": 1}
    rows = stored["tables"][0]["rows"]
    assert {(r["columns"]["trained on"], r["site"]) for r in rows} == {("oslo", "rome"), ("rome", "oslo")}
    assert {r["seed"] for r in rows} == {None, 0, 1}


def test_a_checkpoint_in_place_of_training(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="studies train networks")
    pytest.importorskip("matplotlib", reason="studies draw figures")
    from hz_runtime.model_space.recipe import Recipe
    from small_checkpoints import write_harmonizer

    table = write_cohort(tmp_path / "cohort", {"oslo": 6, "rome": 5})
    path = write_harmonizer(tmp_path / "ck", recipe=Recipe(grid_shape=(32, 32, 32)).to_dict())
    asked = ("transfer", "--cohort", table, "--reference", "oslo", "--preset", "quick", "--harmonizer", path)
    done = evaluate(*asked, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert "3D CycleGAN, harmonizer.safetensors" in {r["method"] for r in stored["tables"][0]["rows"]}
    assert "was trained before this study" in stored["remarks"][0]
    assert stored["settings"]["preset"]["harmonizer"] is None
    # Subjects that it was trained on are left out on demand, and no more of them used than asked for.
    seen = sha256((table.parent / "oslo-00.nii.gz").read_bytes()).hexdigest()
    write_harmonizer(path.parent, recipe=Recipe(grid_shape=(32, 32, 32)).to_dict(), training_scans=[seen])
    assert evaluate(*asked, "--out", tmp_path / "out3", "--unseen", "--subjects", "4").exit_code == 0
    stored = json.loads((tmp_path / "out3" / "transfer.json").read_text())
    assert stored["settings"]["changes"] == {
        "preset": "quick", "controls_only": False, "unseen": True, "subjects": 4
    }  # fmt: skip
    assert (stored["cohort"]["n_subjects"], stored["cohort"]["age_range"]) == (8, [20.0, 68.0])
    # What would train another one is refused, not taken down in the report and ignored.
    done = evaluate(*asked, "--out", tmp_path / "out2", "--grid", "64", "--epochs", "3")
    assert done.exit_code == 2
    assert "--grid, --epochs" in done.output and not (tmp_path / "out2").exists()


def test_what_a_harmonizer_writes(tmp_path: Path) -> None:
    for package in ("torch", "matplotlib", "niimath", "sklearn"):
        pytest.importorskip(package, reason="written volumes are judged beside N4")
    from hz_runtime.model_space.recipe import Recipe
    from small_checkpoints import write_harmonizer

    cohort = write_cohort(tmp_path / "cohort", {"oslo": 4, "rome": 1})
    path = write_harmonizer(tmp_path / "ck", recipe=Recipe(grid_shape=(32, 32, 32)).to_dict())
    out = tmp_path / "out"
    asked = ("appearance", "--cohort", cohort, "--reference", "oslo", "--preset", "quick", "--out", out)
    done = evaluate(*asked, "--harmonizer", path, "--written-only", "--held-out", "0.5", "--device", "cpu")
    assert done.exit_code == 0, done.output
    stored = json.loads((out / "appearance.json").read_text())
    first = stored["tables"][0]
    assert first["name"] == "native_written" and stored["settings"]["changes"]["written_only"]
    assert "3D CycleGAN, harmonizer.safetensors" in {row["method"] for row in first["rows"]}
    assert str(tmp_path) not in (out / "appearance.json").read_text() + (out / "appearance.html").read_text()


def test_written_only_is_of_two_studies_and_a_harmonizer(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="studies train networks")
    cohort = write_cohort(tmp_path, {"oslo": 4, "rome": 4})
    asked = ("--cohort", cohort, "--reference", "oslo", "--out", tmp_path / "out", "--written-only")
    for study in ("appearance", "transfer"):
        done = evaluate(study, *asked)
        assert done.exit_code == 2 and "--written-only: of appearance and audit" in done.output


def test_the_ensemble_reads_ages_of_volumes_alone(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="studies train networks")
    cohort = write_cohort(tmp_path, {"oslo": 4, "rome": 4})
    asked = ("--cohort", cohort, "--reference", "oslo", "--out", tmp_path / "out", "--predictor", "ensemble")
    for study, more in (("diagnosis", ()), ("transfer", ("--system", "slice"))):
        done = evaluate(study, *asked, *more)
        assert done.exit_code == 2 and "--predictor ensemble: of pooled and transfer" in done.output


def test_a_shorter_training_keeps_the_schedules_shape() -> None:
    from hz_cli.evaluate import _changed
    from hz_train.studies.presets import study_preset

    paper = _changed(study_preset("paper", "volume"), None, {"epochs": 20, "predictor_epochs": 40})
    assert paper.harmonizer.schedule.milestones == (7, 15)  # Komandur 2023: 35 and 75 of 100
    assert [paper.harmonizer.schedule.rate(e) for e in (6, 7, 15)] == pytest.approx([1e-4, 1e-5, 1e-6])
    assert paper.predictor.milestones == (20, 30)
    restored = _changed(study_preset("reference", "volume"), None, {"epochs": 75}).harmonizer
    assert (restored.settings.coarse, restored.settings.warmup) == (60, 14)  # 120 and 28 of 150
