"""Fixtures that every room's tests share. All small, all made by code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before numpy or torch is loaded, and for the processes that tests start, too: the tests of several processes
# (make test) share the cores, and threads that wait for one another there do nothing but wait. One training
# on two cores beside another process took six times the CPU time on two threads.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SCANS = ROOT.parent / "shared" / "scans"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses the real scans carries the marker for them."""
    for item in items:
        if "scans" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.scans)


@pytest.fixture(autouse=True)
def _results_fit_their_schemas(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever run.json and sidecars a test leaves in its folder are as docs/schemas says.

    A test that writes such files itself, on purpose unlike hz's, is marked `made_up_results`.
    """
    if "tmp_path" not in request.fixturenames or request.node.get_closest_marker("made_up_results"):
        yield
        return
    folder = request.getfixturevalue("tmp_path")
    yield
    from result_schemas import faults

    assert not faults(folder)


@pytest.fixture(scope="session", autouse=True)
def _shared_results_fit_their_schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for folders that several tests share."""
    made: list[Path] = []
    make = tmp_path_factory.mktemp

    def noted(basename: str, numbered: bool = True) -> Path:
        made.append(make(basename, numbered))
        return made[-1]

    tmp_path_factory.mktemp = noted  # type: ignore[method-assign]
    yield
    from result_schemas import faults

    shared = [folder for folder in made if not folder.name.startswith("test_")]  # those are tmp_path
    assert not [line for folder in shared for line in faults(folder)]


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files reach the disk when the system likes: no test cuts the power, and every wait takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def scans() -> Path:
    """Folder of real scans beside the repository; skips where there is none."""
    if not (SCANS / "README.tsv").is_file():
        pytest.skip("needs the real scans in ../shared/scans, which are not part of the project")
    return SCANS


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared-by-all"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def exported_once(run_folder: Path) -> Iterator[None]:
    """Whole exports of the same small network share its float32 graph; all that follows is done anew."""
    pytest.importorskip("torch", reason="export needs torch")
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    from exported_once import exported_once

    with exported_once(run_folder):
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two tiny networks with closed forms (tests/tiny.py)."""
    from tiny import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.hz")


HeadMaker = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="session")
def head() -> HeadMaker:
    """Maker of brain-like volumes: head(shape=(48, 56, 48), spacing=4.0, seed=0) -> (data, affine).

    data : float32 RAS, an ellipsoid of about 1450 cm3 with a darker rim and centre, zero outside, brightest
    value about 100.  affine : (4, 4), the brain where the MNI152 template has its own.
    """

    def make(
        shape: tuple[int, int, int] = (48, 56, 48), spacing: float = 4.0, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        affine = np.diag([spacing, spacing, spacing, 1.0])
        centre = np.array([0.0, -21.0, 11.0])
        affine[:3, 3] = centre - spacing * (np.asarray(shape) - 1) / 2
        index = np.indices(shape).reshape(3, -1)
        world = (affine[:3, :3] @ index).T + affine[:3, 3] - centre
        radius = np.linalg.norm(world / np.array([68.0, 85.0, 60.0]), axis=1).reshape(shape)
        tissue = np.where(radius < 0.75, 95.0, 65.0)  # white matter within grey
        tissue[radius < 0.2] = 25.0  # a ventricle
        tissue += np.random.default_rng(seed).normal(0, 2, shape)
        tissue[radius > 1] = 0
        return tissue.astype(np.float32), affine

    return make
