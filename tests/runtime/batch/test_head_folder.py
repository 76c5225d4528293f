"""What hz-prepare leaves in its folder when something fails: a disk, a share, memory, the scan itself."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hz_runtime.batch import head_folder
from hz_runtime.batch.head_folder import LOG_NAME, HeadFolder
from hz_runtime.batch.inputs import InputScan
from hz_runtime.batch.log import RunLog
from hz_runtime.batch.prepare_run import PrepareOptions, PrepareReport, prepare_batch
from hz_runtime.errors import GridMismatch, HzError, NoBrain, ScanError, UnreadableScan
from hz_runtime.io.contrast_agent import contrast_flags
from hz_runtime.io.geometry import Geometry
from hz_runtime.io.volume import Volume, read_volume, write_volume
from hz_runtime.preparation import n4, preparer, registration
from hz_runtime.preparation.preparer import Preparation, Preparer
from hz_runtime.results.run_report import NOTHING_WRITTEN
from hz_runtime.results.scan_result import ScanResult
from small_scans import results
from snapshots import snapshot

pytestmark = pytest.mark.made_up_results  # by `Stub`, which has neither gates nor a pose
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
INSIDE = np.indices((10, 10, 10)).sum(axis=0) > 6


@dataclass
class Stub:
    """Stands for a Preparer: "prepares" at once, or raises `fault`. level : what it makes of a scan."""

    level: float = 1.0
    fault: BaseException | None = None
    template = SimpleNamespace(name="MNI152", sha256="0" * 64)
    geometry = Geometry.from_affine((2, 2, 2), np.eye(4))

    @property
    def identity(self) -> dict[str, object]:
        return {"level": self.level}

    def __call__(self, volume: Volume) -> SimpleNamespace:
        if self.fault is not None:
            raise self.fault
        small, mask = np.full((2, 2, 2), self.level, np.float32), volume.data > 0
        return SimpleNamespace(
            template_brain=small, template_mask=small > 0, brain=volume.data, mask=mask, verdicts=(), flags=()
        )


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        head_folder, "preparation_metadata", lambda stub, _: {"transform": {"level": stub.level}}
    )
    monkeypatch.setattr(head_folder, "step_seconds", lambda _: {})


@pytest.fixture
def scan(tmp_path: Path) -> InputScan:
    path = tmp_path / "sub-01_T1w.nii.gz"
    write_volume(path, INSIDE * 900.0, Geometry.from_affine(INSIDE.shape, AFFINE))
    return InputScan(path, path.name, "sub-01")


def prepared(scan: InputScan, out: Path, stub: Stub, overwrite: bool = False) -> ScanResult:
    return HeadFolder(out, stub, RunLog(out / LOG_NAME), overwrite).prepare(scan)  # type: ignore[arg-type]


@pytest.fixture
def done(scan: InputScan, tmp_path: Path) -> Path:
    """An output folder with an earlier result."""
    out = tmp_path / "out"
    out.mkdir()
    assert prepared(scan, out, Stub()).status == "ok"
    assert len(results(out)) == 6
    return out


def caused(error: HzError, cause: BaseException) -> HzError:
    error.__cause__ = cause
    return error


TRANSIENT = {
    "a disk": OSError(errno.ENOSPC, "No space left on device"),
    "a share": caused(UnreadableScan("cannot be read (Input/output error)."), OSError(errno.EIO, "no")),
    "memory": MemoryError(),
    "memory for voxels": caused(UnreadableScan("its voxels do not fit in memory."), MemoryError()),
    "a killed program": HzError("N4 was ended from outside (niimath, signal 9)."),
    "a fault of hz": RuntimeError("a fault of hz"),
}
OF_THE_SCAN = {
    "no brain": NoBrain("no brain was found in this scan."),
    "a damaged stream": caused(UnreadableScan("the gzip stream is damaged."), OSError("Not a gzipped file")),
}


@pytest.mark.parametrize("why", TRANSIENT)
def test_an_earlier_result_outlives_what_is_no_fault_of_the_scan(
    why: str, done: Path, scan: InputScan
) -> None:
    before = results(done)
    assert prepared(scan, done, Stub(2.0, TRANSIENT[why])).status == "failed"
    assert {n: b for n, b in results(done).items() if n != head_folder.LOG_NAME} == before
    assert prepared(scan, done, Stub()).recorded == "ok"


@pytest.mark.parametrize("why", OF_THE_SCAN)
def test_a_refused_scan_loses_it(why: str, done: Path, scan: InputScan) -> None:
    assert prepared(scan, done, Stub(2.0, OF_THE_SCAN[why])).status == "failed"
    assert set(results(done)) == {"sub-01_desc-preparation.json"}


@pytest.mark.parametrize("refuses", ["exists", "is_file"])
def test_a_scan_that_cannot_be_looked_at_costs_nothing(
    refuses: str, done: Path, scan: InputScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the permission to enter its folder is gone: pathlib raises that."""

    def denied(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    before = results(done)
    monkeypatch.setattr(Path, refuses, denied)
    result = prepared(scan, done, Stub(2.0))
    monkeypatch.undo()
    assert result.status == "failed" and "Permission denied" in result.reason
    assert {n: b for n, b in results(done).items() if n != head_folder.LOG_NAME} == before


def test_an_input_that_cannot_be_hashed(done: Path, scan: InputScan, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    before = results(done)
    monkeypatch.setattr(head_folder, "sha256_file", denied)
    assert prepared(scan, done, Stub()).status == "failed"
    assert {n: b for n, b in results(done).items() if n != head_folder.LOG_NAME} == before


@pytest.mark.parametrize("room", range(6))
def test_a_disk_that_fills_up_between_two_files(
    room: int, done: Path, scan: InputScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier result stays as a whole, never with files of two preparations."""
    before, written = results(done), 0

    def limited(write):  # type: ignore[no-untyped-def]
        def call(*given, **more):  # type: ignore[no-untyped-def]
            nonlocal written
            written += 1
            if written > room:
                raise HzError("the disk is full.")
            return write(*given, **more)

        return call

    monkeypatch.setattr(head_folder, "write_volume", limited(head_folder.write_volume))
    for write in ("atomic_write_bytes", "write_changed"):
        monkeypatch.setattr(head_folder, write, limited(getattr(head_folder, write)))
    assert prepared(scan, done, Stub(2.0)).reason == "the disk is full."
    assert results(done) == before
    assert not [path for path in done.iterdir() if path.is_dir()]
    monkeypatch.undo()


def test_files_are_replaced_together(done: Path, scan: InputScan) -> None:
    before = results(done)
    (done / ".sub-01.hz-prepare").mkdir()  # of a run that was killed
    (done / ".sub-01.hz-prepare" / "half").touch()
    assert prepared(scan, done, Stub(), overwrite=True).status == "ok"
    assert results(done) == before
    assert not [path for path in done.iterdir() if path.is_dir()]


def test_the_same_run_again_writes_nothing(
    scan: InputScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that was prepared, and one on which hz itself stumbles, every time."""

    class Stumbling(Stub):
        def __call__(self, volume: Volume) -> SimpleNamespace:
            if volume.data.max() > 100:
                raise RuntimeError("a fault of hz")
            return super().__call__(volume)

    monkeypatch.setattr(Preparer, "opened", classmethod(lambda *_: Stumbling()))
    easy = tmp_path / "sub-02_T1w.nii.gz"
    write_volume(easy, INSIDE * 1.0, Geometry.from_affine(INSIDE.shape, AFFINE))
    out = tmp_path / "out"

    def run() -> PrepareReport:
        return prepare_batch([scan.path, easy], out, PrepareOptions(workers=1))

    assert run().summary() == "2 scans: 1 ok, 1 failed"
    before = snapshot(out)
    assert run().summary() == f"2 scans: 1 done before, 1 failed; {NOTHING_WRITTEN}"
    assert snapshot(out) == before
    (out / head_folder.LOG_NAME).unlink()
    (out / "sub-01_desc-preparation.json").unlink()
    assert not run().unchanged and "Traceback" in (out / head_folder.LOG_NAME).read_text()
    write_volume(tmp_path / "sub-03_T1w.nii.gz", INSIDE * 0.5, Geometry.from_affine(INSIDE.shape, AFFINE))
    report = prepare_batch([*sorted(tmp_path.glob("*.nii.gz"))], out, PrepareOptions(workers=1))
    assert report.summary() == "3 scans: 1 ok, 1 done before, 1 failed"


def test_brains_of_a_scan_with_a_contrast_agent_are_known_by_its_record(
    scan: InputScan, tmp_path: Path
) -> None:
    out = tmp_path / "agent"
    out.mkdir()
    made = prepared(scan, out, Stub())
    brains = [name for name in made.outputs if name.endswith("brain_T1w.nii.gz")]
    assert made.flags == () and len(brains) == 2
    assert [contrast_flags(out / name) for name in brains] == [(), ()]
    scan.path.with_name("sub-01_T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    assert "contrast agent" in prepared(scan, out, Stub(), overwrite=True).flags[0]
    assert all("contrast agent" in contrast_flags(out / name)[0] for name in brains)


def test_a_first_failure_is_recorded(scan: InputScan, tmp_path: Path) -> None:
    assert prepared(scan, tmp_path, Stub(fault=MemoryError())).status == "failed"
    assert (tmp_path / "sub-01_desc-preparation.json").is_file()  # there was nothing to lose


def test_a_killed_niimath_says_nothing_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "niimath"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(n4, "niimath_program", lambda _: str(program))
    with pytest.raises(HzError, match=r"ended from outside \(niimath, signal 9\)") as error:
        n4.niimath("N4", [], tmp_path)
    assert not isinstance(error.value, ScanError)


KILLED, NONE = HzError("killed"), ScanError("no map")


@pytest.mark.parametrize(
    ("starts", "similarity", "ends"),
    [
        ((KILLED, np.eye(4)), 0.6, None),
        ((KILLED, np.eye(4)), 0.2, KILLED),  # no poor map instead of the one that was killed
        ((KILLED, NONE), None, KILLED),
        ((NONE, KILLED), None, KILLED),
        ((NONE, NONE), None, NONE),
        ((NONE, np.eye(4)), 0.2, None),
    ],
)
def test_a_killed_registration_refuses_no_scan(
    starts: tuple[object, ...],
    similarity: float | None,
    ends: HzError | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(starts)

    def pose(*_: object) -> object:
        answer = next(answers)
        if isinstance(answer, HzError):
            raise answer
        return answer

    monkeypatch.setattr(registration, "affine_pose", pose)
    monkeypatch.setattr(registration, "placed", lambda *_: np.eye(4))
    monkeypatch.setattr(registration, "similarity", lambda *_: similarity)
    monkeypatch.setattr(registration, "coarse_values", lambda *_: np.zeros(12))
    monkeypatch.setattr(registration, "fine_values", lambda *_: np.zeros(12))
    monkeypatch.setattr(registration, "refined_pose", lambda *_, **__: np.eye(4))
    monkeypatch.setattr(registration, "folds", lambda *_: 0.0)
    data, template = np.zeros((4, 4, 4), np.float32), SimpleNamespace(mask=np.ones((4, 4, 4), bool))
    template.affine, template.centre_mm, template.around = np.eye(4), np.zeros(3), template.mask
    if ends is None:
        assert registration.registered(data, np.eye(4), template)[1] == similarity  # type: ignore[arg-type]
        return
    with pytest.raises(HzError) as error:
        registration.registered(data, np.eye(4), template)  # type: ignore[arg-type]
    assert error.value is ends


def masked(scan: InputScan, affine: np.ndarray, path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The mask that a head is prepared with, given in a file with this affine."""
    write_volume(path, INSIDE, Geometry.from_affine(INSIDE.shape, affine), dtype="uint8")
    used: list[np.ndarray] = []
    monkeypatch.setattr(preparer, "prepare_head", lambda *_, brain_mask, **__: used.append(brain_mask))
    monkeypatch.setattr(preparer, "niimath_program", lambda _: "")
    template = SimpleNamespace(sha256="")
    Preparer(Preparation.asked(6, str(path)), template)(read_volume(scan.path))  # type: ignore[arg-type]
    return used[0]


def test_a_mask_has_to_lie_where_the_scan_does(
    scan: InputScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.nii.gz"
    np.testing.assert_array_equal(masked(scan, AFFINE, path, monkeypatch), INSIDE)
    near, turned = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 1.9  # voxels are of 4 mm
    assert masked(scan, near, path, monkeypatch).any()
    near[0, 3] += 0.2
    with pytest.raises(GridMismatch, match=r"lies 2\.1 mm from the scan's own voxels"):
        masked(scan, near, path, monkeypatch)
    turned[1, 0] += 0.3  # only the far corners move
    with pytest.raises(GridMismatch):
        masked(scan, turned, path, monkeypatch)


def test_a_damaged_mask_is_no_fault_of_the_scan(
    scan: InputScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.nii.gz"
    masked(scan, AFFINE, path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-40])
    template = SimpleNamespace(sha256="")
    with pytest.raises(HzError, match=r"the brain mask mask\.nii\.gz") as error:
        Preparer(Preparation.asked(6, str(path)), template)(read_volume(scan.path))  # type: ignore[arg-type]
    assert not isinstance(error.value, ScanError)
