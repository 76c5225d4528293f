"""Simple methods against closed forms, and ComBat against what neuroCombat gave for the same numbers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")

from hz_runtime.errors import UsageError
from hz_runtime.model_space.foreground import block_means
from hz_train.cohort import Scan
from hz_train.datasets import ModelInputs
from hz_train.studies.baselines import Blocks, ComBat, Nyul, Raw, ZScore, foreground
from hz_train.studies.combat import fit_combat


def head(seed: int, shift: float = 0.0) -> np.ndarray:
    """(24, 24, 24) float32: a ball with a smooth range of intensities, zero around it."""
    axis = np.linspace(-1, 1, 24)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    noise = np.random.default_rng(seed).normal(0, 0.05, radius.shape)
    tissue = 0.55 + 0.3 * np.cos(3 * radius + seed) + noise + shift
    return np.where(radius < 0.9, np.clip(tissue, 0.15, 1.0), 0).astype(np.float32)


def cohort(grids: np.ndarray, sites: list[str]) -> ModelInputs:
    scans = tuple(
        Scan(Path(f"{i}.nii.gz"), f"s{i}", site, 30.0 + i, "n/a", "control") for i, site in enumerate(sites)
    )
    return ModelInputs(scans, grids, ({},) * len(scans), tuple(f"sha-{i}" for i in range(len(scans))))


def test_raw_changes_nothing() -> None:
    grids = np.stack([head(0), head(1)])
    np.testing.assert_array_equal(Raw().apply(grids, ["a", "b"]), grids)


def test_z_scores_are_those_of_the_reference_sites_tissue() -> None:
    grids = np.stack([head(0), head(1), head(2, -0.1) * np.float32(0.5)])
    method = ZScore()
    method.fit(cohort(grids, ["ref", "ref", "other"]), "ref")
    made = method.apply(grids[2:], ["other"])[0]
    mask = foreground(grids[2])
    wanted = [grids[i][foreground(grids[i])].astype(np.float64) for i in (0, 1)]
    assert made[mask].mean() == pytest.approx(np.mean([w.mean() for w in wanted]), abs=1e-5)
    assert made[mask].std() == pytest.approx(np.mean([w.std() for w in wanted]), abs=1e-5)
    assert not made[~mask].any()
    # An affine map of intensities, whatever the scan: the correlation stays 1.
    assert np.corrcoef(made[mask], grids[2][mask])[0, 1] == pytest.approx(1, abs=1e-6)
    # Gain and offset of the tissue do not matter to a z-score.
    again = method.apply(np.where(mask, 0.3 * grids[2] + 0.4, 0)[None].astype(np.float32), ["other"])[0]
    np.testing.assert_allclose(again[mask], made[mask], atol=2e-4)


@pytest.mark.parametrize("exponent", [0.6, 1.6])
def test_nyul_undoes_a_monotone_curve(exponent: float) -> None:
    clean = np.stack([head(0), head(0)])
    method = Nyul()
    method.fit(cohort(clean, ["ref", "ref"]), "ref")
    curved = (clean[:1] ** np.float32(exponent)).astype(np.float32)
    made = method.apply(curved, ["other"])[0]
    mask = clean[0] > 0
    before = np.abs(curved[0] - clean[0])[mask].mean() / clean[0][mask].mean()
    after = np.abs(made - clean[0])[mask].mean() / clean[0][mask].mean()
    assert before > 0.1
    assert after < 0.01
    assert not made[~mask].any()


def test_nyul_takes_landmarks_to_the_mean_landmarks() -> None:
    grids = np.stack([head(0), head(3), head(5) * np.float32(0.6)])
    method = Nyul()
    method.fit(cohort(grids, ["ref", "ref", "other"]), "ref")
    made = method.apply(grids[2:], ["other"])[0]
    mask = foreground(grids[2])
    found = np.percentile(made[mask], [1, 10, 50, 90, 99])
    np.testing.assert_allclose(found, method.standard[[0, 1, 5, 9, 10]], atol=2e-3)
    ends = np.array([np.percentile(g[foreground(g)], [1, 99]) for g in grids[:2]]).mean(0)
    np.testing.assert_allclose(method.standard[[0, -1]], ends, atol=1e-6)
    # Order of intensities is kept.
    order = np.argsort(grids[2][mask])
    assert (np.diff(made[mask][order]) >= -1e-6).all()


def test_blocks_are_block_means() -> None:
    grids = np.random.default_rng(0).random((2, 16, 24, 32)).astype(np.float32)
    wanted = grids.reshape(2, 8, 2, 8, 3, 8, 4).mean((2, 4, 6))
    np.testing.assert_allclose(Blocks().apply(grids, ["a", "b"]), wanted, atol=1e-6)


def three_sites() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    sites = np.repeat(["a", "b", "c"], [6, 7, 5])
    x = rng.normal(size=(18, 5))
    x[sites == "b"] = x[sites == "b"] * 1.5 + 2
    x[sites == "c"] -= 0.7
    return x, sites


# Rows 0, 8 and 17 of neuroCombat 0.2.12 for `three_sites`, without and with b as its reference batch.
NEUROCOMBAT = {
    None: [
        [0.2594975620002927, 0.4791029914188791, 2.1760623037190165, 1.5097733022338593, -0.8313759027512879],
        [
            1.5267979289217095,
            1.4208739264431294,
            -0.18894999562464043,
            -0.5271455845561293,
            -0.911064525234938,
        ],
        [1.4514773900926206, 0.23125093295202012, 0.4518398735226948, -0.47646078485353, -0.6577935801333178],
    ],
    "b": [
        [2.048854097688512, 2.4553726952554547, 3.0106250295526333, 2.9977508817433325, 1.2001365266132766],
        [3.121939588944702, 3.276450936463314, 0.9354726939369726, 1.089204222117003, 0.803265627250207],
        [2.792653835063848, 2.244877188090624, 1.410060987468683, 0.9114755084393649, 1.4046716521582274],
    ],
}


@pytest.mark.parametrize("reference", [None, "b"])
def test_combat_gives_what_neurocombat_gave(reference: str | None) -> None:
    x, sites = three_sites()
    made = fit_combat(x, sites.tolist(), reference).apply(x, sites.tolist())
    # neuroCombat ends its iteration at a relative change of 1e-4.
    np.testing.assert_allclose(made[[0, 8, 17]], NEUROCOMBAT[reference], atol=2e-4)


def test_combat_gives_what_neurocombat_gives_here() -> None:
    package = pytest.importorskip("neuroCombat", reason="neuroCombat is not installed")
    pandas = pytest.importorskip("pandas")
    x, sites = three_sites()
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = package.neuroCombat(x.T, pandas.DataFrame({"SITE": sites}), "SITE")["data"].T
    made = fit_combat(x, sites.tolist()).apply(x, sites.tolist())
    np.testing.assert_allclose(made, wanted, atol=2e-4)


def test_combat_undoes_a_site_that_shifts_and_scales_everything() -> None:
    # With many features that all share the site's effect, the shrunken estimates are the effect itself.
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(400, 200))
    sites = ["ref"] * 200 + ["other"] * 200
    seen = clean.copy()
    seen[200:] = 1.7 * clean[200:] + 3
    model = fit_combat(seen, sites, "ref")
    made = model.apply(seen, sites)
    np.testing.assert_allclose(made[:200], seen[:200], atol=1e-12)
    assert np.abs(made[200:] - clean[200:]).mean() < 0.15
    fresh = rng.normal(size=(50, 200))
    again = model.apply(1.7 * fresh + 3, ["other"] * 50)
    assert np.abs(again - fresh).mean() < 0.15
    with pytest.raises(UsageError, match="not fitted on site third"):
        model.apply(fresh[:1], ["third"])


def test_combat_of_volumes_leaves_air_and_the_reference_alone() -> None:
    grids = np.stack([head(i) for i in range(12)])
    grids[6:] *= np.float32(0.6)
    sites = ["ref"] * 6 + ["other"] * 6
    method = ComBat()
    method.fit(cohort(grids, sites), "ref")
    made = method.apply(grids, sites)
    raw = block_means(grids)
    assert made.shape == (12, 8, 8, 8)
    np.testing.assert_allclose(made[:6], raw[:6], atol=1e-6)
    assert not made[:, 0, 0, 0].any()
    gap = np.abs(raw[:6].mean(0) - raw[6:].mean(0)).mean()
    assert np.abs(made[:6].mean(0) - made[6:].mean(0)).mean() < 0.5 * gap
    # One site by itself, in another order than it was fitted in, gives the same.
    np.testing.assert_array_equal(method.apply(grids[[8, 7]], ["other"] * 2), made[[8, 7]])


def test_methods_say_whom_they_saw() -> None:
    grids = np.stack([head(0), head(1), head(2)])
    inputs = cohort(grids, ["ref", "ref", "other"])
    for method in (ZScore(), Nyul()):
        assert method.seen == frozenset()
        method.fit(inputs, "ref")
        assert {"s0", "s2", "sha-0", "sha-2"} <= method.seen
