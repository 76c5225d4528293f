"""Transfer: the table's numbers, computed again from the stored predictions; leaks; what raises first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")
pytest.importorskip("matplotlib", reason="studies draw figures")

from hz_runtime.errors import UsageError
from hz_runtime.model_space.foreground import block_means
from hz_train.cohort import Cohort, Scan
from hz_train.datasets import ModelInputs
from hz_train.studies import transfer as transfer_module
from hz_train.studies.baselines import Blocks, ComBat
from hz_train.studies.presets import Leak, StudySettings, study_preset
from hz_train.studies.result import Row, StudyResult
from hz_train.studies.transfer import MEAN_AGE, check, transfer
from hz_train.studies.views import OTHERS


def inputs(n: int = 12, ages: bool = True) -> ModelInputs:
    """Three sites of 16^3 volumes whose upper half darkens with age; rome and bonn have their own gain."""
    scans, grids = [], []
    for k, (site, gain) in enumerate([("oslo", 1.0), ("rome", 0.8), ("bonn", 0.6)]):
        rng = np.random.default_rng(k)
        for i in range(n):
            age = 20.0 + 5 * i + k
            volume = 0.5 + 0.05 * rng.random((16, 16, 16))
            volume[:, :, 8:] += 0.4 - 0.004 * age
            shown = age if ages else None
            scans.append(Scan(Path(f"{site}{i}.nii"), f"{site}{i}", site, shown, "n/a", "control"))
            grids.append((gain * volume).astype(np.float32))
    return ModelInputs(
        tuple(scans), np.stack(grids), ({},) * len(scans), tuple(s.subject + "#" for s in scans)
    )


def settings(out: Path, **changes: object) -> StudySettings:
    given = {
        "reference": "oslo",
        "preset": study_preset("quick", "volume"),
        "table": Path("folder/participants.tsv"),
        "out": out,
        "seeds": (0, 1),
    }
    return StudySettings(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_module, "methods", lambda *_: [Blocks(), ComBat()])
        return transfer(inputs(), settings(tmp_path_factory.mktemp("transfer")))


def row(result: StudyResult, method: str, site: str, seed: int | None) -> Row:
    (found,) = [r for r in result.tables[0].rows if r.method == method and r.site == site and r.seed == seed]
    return found


def test_numbers_are_those_of_the_predictions(result: StudyResult) -> None:
    for method in (Blocks.name, ComBat.name, MEAN_AGE):
        for seed in (0, 1):
            for site, sites in ((OTHERS, {"rome", "bonn"}), ("bonn", {"bonn"}), ("oslo", {"oslo"})):
                those = [
                    p for p in result.predictions if (p.method, p.seed) == (method, seed) and p.site in sites
                ]
                gap = np.array([p.predicted - p.truth for p in those])
                found = row(result, method, site, seed)
                assert found.n == len(those)
                assert found.metrics["mae"].value == pytest.approx(np.abs(gap).mean())
                assert found.metrics["mse"].value == pytest.approx((gap**2).mean())
                low, high = found.metrics["mae"].ci95 or (0, 0)
                assert low <= np.abs(gap).mean() <= high
                if method != MEAN_AGE:
                    r = np.corrcoef([p.truth for p in those], [p.predicted for p in those])[0, 1]
                    assert found.metrics["r"].value == pytest.approx(r)
        values = [row(result, method, "rome", seed).metrics["mae"].value for seed in (0, 1)]
        both = row(result, method, "rome", None).metrics["mae"]
        assert both.value == pytest.approx(np.mean(values))
        assert both.range == (min(values), max(values))


def test_a_method_that_undoes_the_site_is_seen_to_help(result: StudyResult) -> None:
    raw = row(result, Blocks.name, OTHERS, None).metrics["mae"].value
    combat = row(result, ComBat.name, OTHERS, None).metrics
    assert raw > 25
    assert combat["mae"].value < 6
    assert combat["change"].value == pytest.approx(combat["mae"].value - raw)
    # The reference site's own held-out scans: what the predictor can do at all, the same for both.
    home = row(result, Blocks.name, "oslo", None).metrics["mae"].value
    assert home < 3
    assert row(result, ComBat.name, "oslo", None).metrics["mae"].value == pytest.approx(home, abs=1e-3)


def test_the_mean_age_is_of_the_reference_sites_training_scans(result: StudyResult) -> None:
    scored = {p.subject for p in result.predictions if p.seed == 0}
    left = [s.age for s in inputs().scans if s.site == "oslo" and s.subject not in scored]
    said = {p.predicted for p in result.predictions if p.seed == 0 and p.method == MEAN_AGE}
    assert list(said) == [pytest.approx(np.mean(left))]


def test_scored_subjects_trained_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[str]] = []

    class Watched(Blocks):
        def fit(self, training: ModelInputs, reference: str) -> None:
            fitted.append({s.subject for s in training.scans})

    monkeypatch.setattr(transfer_module, "methods", lambda *_: [Watched()])
    result = transfer(inputs(), settings(tmp_path))
    for seed, seen in enumerate(fitted):
        assert not seen & {p.subject for p in result.predictions if p.seed == seed}
    assert "was seen by nothing that was fitted" in result.remarks[0]


def test_a_method_that_saw_a_scored_scan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky(Blocks):
        def fit(self, training: ModelInputs, reference: str) -> None:
            self.seen = frozenset(s.subject for s in inputs().scans)

    monkeypatch.setattr(transfer_module, "methods", lambda *_: [Leaky()])
    with pytest.raises(Leak):
        transfer(inputs(), settings(tmp_path))


def test_the_predictor_reads_what_the_method_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Undo(Blocks):
        """Knows the gains."""

        name = "undo"

        def apply(self, volumes: np.ndarray, sites: Sequence[str]) -> np.ndarray:
            gains = {"oslo": 1.0, "rome": 0.8, "bonn": 0.6}
            scale = np.array([1 / gains[s] for s in sites], np.float32)
            return block_means(volumes * scale[:, None, None, None])

    monkeypatch.setattr(transfer_module, "methods", lambda *_: [Blocks(), Undo()])
    result = transfer(inputs(), settings(tmp_path, seeds=(3,)))
    assert row(result, "undo", OTHERS, 3).metrics["mae"].value < 5
    assert row(result, Blocks.name, OTHERS, 3).metrics["mae"].value > 25


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scan of the cohort has an age"):
        check(Cohort(inputs(ages=False).scans), settings(tmp_path))
    with pytest.raises(UsageError, match="needs at least 4"):
        check(Cohort(inputs(3).scans), settings(tmp_path))
