"""Runs that begin with raw heads: where results lie, what refused scans leave, how heads go side by side."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hz_runtime.batch.executor import Executor
from hz_runtime.batch.inputs import collect
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.store import Bundle, load_bundle
from hz_runtime.errors import UsageError
from hz_runtime.model_space.morphology import filled
from hz_runtime.model_space.recipe import Recipe
from hz_runtime.model_space.resample import resample
from hz_runtime.preparation import steps
from hz_runtime.preparation.preparer import CHOICES, Preparation, Preparer
from hz_runtime.preparation.registration import similarity
from hz_runtime.preparation.template import mni152
from hz_runtime.results.run_report import RunReport
from small_heads import fruit, made_head, moved, write_head
from small_scans import results
from snapshots import snapshot

pytest.importorskip("niimath")

MOVE = moved((25, -12, 8), (12, -20, 9))
RAMP = np.linspace(0.4, 1.0, 64, dtype=np.float32)  # foot to head


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a head that is turned and shifted, a fruit, and a scan with thick slices."""
    folder = tmp_path_factory.mktemp("raw")
    head, _, affine = made_head(MOVE)
    write_head(folder / "sub-01_T1w.nii.gz", head, affine)
    write_head(folder / "sub-02_T1w.nii.gz", *fruit())
    write_head(folder / "sub-03_T1w.nii.gz", head, np.diag([1.0, 1.0, 4.8, 1.0]))
    return folder


@pytest.fixture(scope="module", autouse=True)
def registered_once() -> Iterator[None]:
    """No scan is registered twice in the runs here, which are about what is done with its pose.

    For the fruit no place is searched for: the gates refuse it where it lies, too.
    """
    known: dict[tuple[bytes, bytes, bool], object] = {}
    real, some = steps.registered, slice(None, None, 1000)
    melon = fruit()[0].ravel()[some]

    def remembered(data, affine, template, threads=1, *, bare=False):
        key = (hashlib.sha256(data.tobytes()).digest(), affine.tobytes(), bare)
        if key not in known and np.corrcoef(data.ravel()[some], melon)[0, 1] > 0.99:
            seen = resample(data, affine, template.mask.shape, template.affine)
            known[key] = np.eye(4), similarity(seen, template), seen
        if key not in known:
            known[key] = real(data, affine, template, threads, bare=bare)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "registered", remembered)
        yield


@pytest.fixture(scope="module")
def done(raw: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """(output folder, report) of a run over `raw` whose network darkens the feet of the template's world."""
    out = tmp_path_factory.mktemp("out")
    for name in ("sub-02_desc-harmonized_T1w.nii.gz", "sub-02_desc-harmonized_T1w.json"):
        (out / name).write_bytes(b"of an earlier run")
    options = RunOptions(preparation=Preparation(), space="both", dtype="float32", threads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hz_runtime.inference.predictors.Harmonizer.__call__", lambda _, grids: grids * RAMP)
        # The head has no receive field, and what N4 finds in it would be taken for the network's work.
        patch.setattr("hz_runtime.preparation.steps.corrected", lambda data, _: data)
        report = run_batch([raw], bundle, out, options)
    return out, report


def test_native_results_lie_where_the_head_does(done: tuple[Path, RunReport], raw: Path) -> None:
    """What the network does at a height of the template happens at that height of the head as it lay."""
    out, report = done
    assert report.scans[0].status != "failed", report.scans[0].reason
    scan = nibabel.load(raw / "sub-01_T1w.nii.gz")
    made = nibabel.load(out / "sub-01_desc-harmonized_T1w.nii.gz")
    assert made.shape == scan.shape
    assert np.allclose(made.affine, scan.affine)
    head, brain, affine = made_head(MOVE)
    inside = made.get_fdata() > 0
    assert np.array_equal(inside, filled(inside))  # no holes where the scan is dark
    assert 2 * (inside & brain).sum() / (inside.sum() + brain.sum()) > 0.95
    upright = np.linalg.inv(MOVE) @ affine  # voxel -> the template's world, by construction
    index = np.argwhere(inside & brain & (head > 300))
    height = index @ upright[2, :3] + upright[2, 3]
    grid = np.linalg.inv(Recipe().grid_affine)
    expected = np.interp(grid[2, 2] * height + grid[2, 3], np.arange(64), RAMP)
    found = made.get_fdata()[tuple(index.T)] / head[tuple(index.T)]
    found *= np.median(expected / found)  # the intensity range that the recipe took
    assert np.median(np.abs(found / expected - 1)) < 0.02  # the head's noise alone gives 0.01 to 0.02
    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_model_results_lie_in_the_templates_world(done: tuple[Path, RunReport]) -> None:
    out, _ = done
    name = "sub-01_space-MNI152_res-64_desc-harmonized_T1w"
    made = nibabel.load(out / f"{name}.nii.gz")
    assert np.allclose(made.affine, Recipe().grid_affine)
    assert int(made.header["sform_code"]) == 4
    template = mni152()
    at = np.argwhere(made.get_fdata() > 0.1) @ made.affine[:3, :3].T + made.affine[:3, 3]
    assert np.linalg.norm(at.mean(axis=0) - template.centre_mm) < 3
    sidecar = json.loads((out / f"{name}.json").read_text())
    assert "template coordinates" in sidecar["SpatialReference"]
    preparation = sidecar["Preparation"]
    assert (preparation["brain_mask"], preparation["dof"]) == ("template", 6)
    assert (
        np.abs(np.array(preparation["transform"]["matrix"]) @ MOVE - np.eye(4))[:3].max() < 3
    )  # mm; 0.05 of turn
    assert all(gate["passed"] for gate in preparation["gates"])


def test_what_is_refused_has_gates_and_no_result(done: tuple[Path, RunReport]) -> None:
    out, report = done
    assert report.exit_code == 3
    run = json.loads((out / "run.json").read_text())
    assert run["options"]["prepare"] == {"dof": 6, "brain_mask": "auto"}
    good, melon, thick = run["scans"]
    assert {"similarity", "brain volume", "capture"} <= {g["gate"] for g in good["gates"] if g["passed"]}
    assert set(good["seconds"]) >= {"prepare", "prepare.registration", "prepare.n4"}
    assert {g["gate"] for g in melon["gates"] if not g["passed"]} & {"similarity", "contrast"}
    for scan, gate in ((melon, None), (thick, "slice thickness")):
        failed = [g["gate"] for g in scan["gates"] if not g["passed"]]
        assert scan["status"] == "failed" and failed
        assert gate is None or failed == [gate]
        assert scan["reason"].startswith(f"refused by the gate {failed[0]}")
        assert scan["age_raw"] is None and not scan["outputs"]
        assert not list(out.glob(f"{scan['name']}*"))  # nor what an earlier run had left
        assert not (out / "figures" / f"{scan['name']}.json").exists()


@pytest.fixture
def copied(done: tuple[Path, RunReport], tmp_path: Path) -> Path:
    """The output folder of `done`, for a run that may change it."""
    return Path(shutil.copytree(done[0], tmp_path / "out"))


def test_the_same_run_again_does_nothing(
    done: tuple[Path, RunReport], copied: Path, raw: Path, bundle: Bundle
) -> None:
    out, report = copied, done[1]
    before = results(out)
    options = RunOptions(preparation=Preparation(), space="both", dtype="float32", threads=1)
    again = run_batch([raw / "sub-01_T1w.nii.gz"], bundle, out, options).scans[0]
    assert (again.status, again.gates) == ("skipped", report.scans[0].gates)
    after = results(out)
    assert {n: b for n, b in after.items() if n != "predictions.tsv"} == {
        n: b for n, b in before.items() if n != "predictions.tsv"
    }


def test_the_same_run_over_all_again_writes_nothing(copied: Path, raw: Path, bundle: Bundle) -> None:
    """What the gates refused is refused again."""
    options = RunOptions(preparation=Preparation(), space="both", dtype="float32", threads=1)
    before = snapshot(copied)
    assert run_batch([raw], bundle, copied, options).unchanged and snapshot(copied) == before


@pytest.mark.parametrize("choices", [Preparation(dof=12), Preparation(brain_mask="none"), None])
def test_other_choices_are_other_results(
    done: tuple[Path, RunReport],
    raw: Path,
    bundle: Bundle,
    choices: Preparation | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TakenUp(Exception):
        pass

    def taken_up(*_: object) -> None:
        raise TakenUp

    monkeypatch.setattr("hz_runtime.batch.stages.Stages.prepare", taken_up)
    options = RunOptions(preparation=choices, space="both", dtype="float32", threads=1, report=False)
    for source in done[0].glob("sub-01*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (scan,) = run_batch([raw / "sub-01_T1w.nii.gz"], bundle, tmp_path, options).scans
    assert scan.status == "failed" and "TakenUp" in scan.reason


def test_heads_are_prepared_side_by_side(
    raw: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other: one at a time, neither would go on."""
    together = threading.Barrier(2, timeout=60)

    def meet(*_: object) -> None:
        together.wait()
        raise RuntimeError("met")

    monkeypatch.setattr("hz_runtime.preparation.preparer.Preparer.__call__", meet)
    given = [raw / "sub-01_T1w.nii.gz", raw / "sub-02_T1w.nii.gz"]
    options = RunOptions(preparation=Preparation(), threads=2, report=False)
    report = run_batch(given, bundle, tmp_path / "out", options)
    assert ["met" in scan.reason for scan in report.scans] == [True, True]


def test_stripped_scans_are_prepared_as_before() -> None:
    def workers(heads: bool, threads: int) -> int:
        return Executor(threads, 1, heads, None, threading.Event())._workers["prepare"]

    assert [workers(False, n) for n in (1, 2, 8, 64)] == [1, 1, 2, 4]
    assert [workers(True, n) for n in (1, 2, 8, 64)] == [1, 2, 8, 16]


def test_choices_are_checked(tmp_path: Path, raw: Path, bundle: Bundle) -> None:
    mask = tmp_path / "mask.nii.gz"
    write_head(mask, *fruit())
    with pytest.raises(UsageError, match="mask of one scan, and 3 were given"):
        run_batch([raw], bundle, tmp_path / "out", RunOptions(preparation=Preparation.asked(6, str(mask))))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"best: neither auto, none, template, network nor a file"):
        Preparation.asked(6, "best")
    with pytest.raises(UsageError, match="dof 9 is neither"):
        Preparation.asked(9, "auto")
    with pytest.raises(UsageError, match="age is for a single scan"):
        run_batch([raw], bundle, tmp_path / "out", RunOptions(ages=KnownAges(only=40.0)))
    assert KnownAges(only=40.0).of(collect([mask], tmp_path / "out").scans[0]) == 40.0


def test_a_mask_is_known_by_its_content(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    write_head(mask, *fruit(0))
    before = Preparer(Preparation.asked(6, str(mask))).identity
    assert str(tmp_path) not in json.dumps(before)
    write_head(mask, *fruit(1))
    assert Preparer(Preparation.asked(6, str(mask))).identity != before


def test_a_network_is_part_of_what_made_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for where the choice leaves it open or names it, and never for another one."""

    class Network:
        sha256 = ("1" * 64, "2" * 64)

    asked: list[tuple[object, bool]] = []

    def find(named: object, *_: object, needed: bool, **__: object) -> Network:
        asked.append((named, needed))
        return Network()

    monkeypatch.setattr("hz_runtime.preparation.network_mask.find_mask_network", find)
    identities = {mask: Preparer.opened(Preparation.asked(6, mask)).identity for mask in CHOICES}
    assert asked == [(None, False), (None, True)]  # auto, network
    assert identities["auto"]["network"] == list(Network.sha256)
    assert identities["network"] == identities["auto"]  # one that is used so or so gives the same
    assert "network" not in identities["template"] and "network" not in identities["none"]
    folder = Path(__file__).parent
    assert Preparer.opened(Preparation.asked(6, str(folder))).identity == identities["auto"]
    assert asked[-1] == (folder, False)
