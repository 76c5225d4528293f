"""What becomes of planted lesions, atrophy and tissues in scans written by harmonizers with known answers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="hz_train needs it")

from hz_runtime.io.volume import Volume
from hz_train.studies import audit, native_audit, native_scans
from small_native import judged, leave_fields, write_brains
from small_study import settings, table, value

LESIONS = [f"{kind}, {size} mm" for kind in ("dark", "bright") for size in (10, 6, 3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A study of two people by a function of volumes."""

    def study(written):
        folder = tmp_path_factory.mktemp("brains")
        cohort = write_brains(folder, {"oslo": 1, "rome": 1})
        with pytest.MonkeyPatch.context() as patch:
            leave_fields(patch, native_scans, native_audit)
            patch.setattr(native_audit, "TrainedHarmonizer", judged(written))
            patch.setattr(native_audit, "RESAMPLES", 20)
            return audit.written(cohort, settings(folder, harmonizer=folder / "some.hz"))

    return study


def test_a_change_of_scale_keeps_everything(run) -> None:
    result = run(lambda volume: volume.data / np.float32(200))
    for lesion in LESIONS:
        for metric in ("volume", "contrast"):
            kept = value(result, "native_lesions", "judged", "all sites", metric, lesion=lesion)
            assert kept == pytest.approx(1, abs=1e-3), (lesion, metric)
    for method in ("judged", "levels alone"):
        for metric in ("csf", "grey", "white", "brain", "csf_off_worst"):
            assert value(result, "native_volumes", method, "all sites", metric) == pytest.approx(0, abs=0.05)
    found = {m: value(result, "native_atrophy", m, "all sites", "recovered") for m in ("raw", "judged")}
    assert found["raw"] == pytest.approx(-3, abs=0.8)  # of voxels of 5 mm
    assert found["judged"] == pytest.approx(found["raw"], abs=1e-3)
    assert {r.site for r in table(result, "native_volumes").rows} == {"all sites", "oslo", "rome"}


def test_what_is_taken_for_tissue_is_missed(run) -> None:
    """Nothing brighter than white matter is written."""

    def fills(volume: Volume) -> np.ndarray:
        white = float(np.percentile(volume.data[volume.data > 0], 93))
        return np.minimum(volume.data, np.float32(white)) / np.float32(white)

    result = run(fills)
    bright = value(result, "native_lesions", "judged", "all sites", "contrast", lesion="bright, 10 mm")
    assert bright < 0.3
    assert value(
        result, "native_lesions", "judged", "all sites", "contrast_off_worst", lesion="bright, 10 mm"
    ) == pytest.approx(100 * (1 - bright), abs=20)
    dark = value(result, "native_lesions", "judged", "all sites", "volume", lesion="dark, 10 mm")
    assert dark == pytest.approx(1, abs=0.05)


def test_a_harmonizer_that_undoes_atrophy_is_found(run) -> None:
    """It writes a scan of the first one's tissue whatever it is given: no change is left."""
    first: dict[str, np.ndarray] = {}
    result = run(lambda volume: first.setdefault(volume.sha256, volume.data / np.float32(200)))
    assert value(result, "native_atrophy", "judged", "all sites", "recovered") == pytest.approx(0)
    assert value(result, "native_atrophy", "judged", "all sites", "off_worst") == pytest.approx(3)


def test_what_contrast_alone_does_to_a_segmentation_stands_beside_it(run) -> None:
    """A curve that is bent between the tissues differs from the straight one through the same medians."""
    result = run(lambda volume: np.sqrt(np.maximum(volume.data, 0) / np.float32(200)))
    written, alone = (
        value(result, "native_volumes", method, "all sites", "grey") for method in ("judged", "levels alone")
    )
    assert abs(written - alone) > 0.5
