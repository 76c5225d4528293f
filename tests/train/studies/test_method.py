"""Who is held out, leaks that are caught, and harmonizers as methods."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="studies train networks")

import torch

from hz_runtime.errors import UsageError
from hz_runtime.model_space.levels import white_level
from hz_runtime.model_space.recipe import Recipe
from hz_train.cohort import Cohort, Scan
from hz_train.cyclegan_task import Settings
from hz_train.datasets import ModelInputs
from hz_train.studies import method as method_module
from hz_train.studies.method import CycleGAN, _key, methods
from hz_train.studies.presets import (
    Leak,
    StudySettings,
    check_cohort,
    on_grid,
    refuse_leak,
    split_cohort,
    study_preset,
    whom,
)
from hz_train.studies.trained_harmonizer import TrainedHarmonizer, recipe_of, system_of, translate, unseen
from small_checkpoints import base_meta, write_age, write_harmonizer


def inputs(per_site: dict[str, int], groups: tuple[str, ...] = ("control",)) -> ModelInputs:
    """Scans of noise, 16^3; groups take turns."""
    scans = []
    for site, count in per_site.items():
        for n in range(count):
            name = f"{site}{n}"
            scans.append(Scan(Path(f"{name}.nii"), name, site, 20.0 + n, "n/a", groups[n % len(groups)]))
    grids = np.random.default_rng(0).random((len(scans), 16, 16, 16)).astype(np.float32)
    return ModelInputs(tuple(scans), grids, ({},) * len(scans), tuple(f"sha-{s.subject}" for s in scans))


def settings(out: Path, **changes: object) -> StudySettings:
    given = {
        "reference": "oslo",
        "preset": study_preset("quick", "volume"),
        "table": Path("t.tsv"),
        "out": out,
    }
    return StudySettings(**{**given, **changes})  # type: ignore[arg-type]


def test_nobody_is_on_both_sides_and_every_site_is_scored() -> None:
    everyone = inputs({"oslo": 10, "rome": 6})
    for seed in range(5):
        training, test = split_cohort(everyone, 0.3, seed)
        assert not whom(training) & whom(test)
        assert len(training) + len(test) == 16
        assert {s.site for s in test.scans} == {"oslo", "rome"}
        refuse_leak("anything", whom(training), test)


def test_a_diagnosis_split_holds_out_of_every_group_of_every_site() -> None:
    everyone = inputs({"oslo": 12, "rome": 12}, ("control", "patient"))
    for seed in range(5):
        training, test = split_cohort(everyone, 0.25, seed)
        for part in (training, test):
            assert {(s.site, s.group) for s in part.scans} == {
                (site, group) for site in ("oslo", "rome") for group in ("control", "patient")
            }


def test_rescans_elsewhere_and_copies_under_another_name_are_not_scored() -> None:
    everyone = inputs({"oslo": 8, "rome": 8})
    scans = list(everyone.scans)
    scans[12] = replace(scans[12], subject="oslo3")  # scanned at both sites
    hashes = list(everyone.sha256)
    hashes[9] = hashes[2]  # one file, two names
    both = replace(everyone, scans=tuple(scans), sha256=tuple(hashes))
    for seed in range(8):
        training, test = split_cohort(both, 0.4, seed)
        assert not whom(training) & whom(test)


def test_a_file_under_two_names_is_scored_once_at_most() -> None:
    everyone = inputs({"oslo": 8, "rome": 8})
    hashes = list(everyone.sha256)
    hashes[9] = hashes[10]
    both = replace(everyone, sha256=tuple(hashes))
    for seed in range(8):
        test = split_cohort(both, 0.4, seed)[1]
        assert len(set(test.sha256)) == len(test)


def test_groups_too_small_to_hold_anybody_out_are_refused() -> None:
    """10 subjects a site, but two of each group: a fifth of two is nobody."""
    everyone = inputs({"oslo": 10, "rome": 10}, ("a", "b", "c", "d", "e"))
    with pytest.raises(UsageError, match="nobody of oslo, rome is held out"):
        split_cohort(everyone, 0.2, 0)


def test_another_predictor_goes_on_with_the_same_harmonizer(tmp_path: Path) -> None:
    scans, preset = inputs({"oslo": 4, "rome": 4}), study_preset("quick", "volume")
    longer = replace(preset, predictor=replace(preset.predictor, epochs=9))
    wider = replace(preset, harmonizer=replace(preset.harmonizer, settings=Settings(width=3)))
    keys = [_key(scans, ["rome"], "oslo", settings(tmp_path, preset=p)) for p in (preset, longer, wider)]
    assert keys[0] == keys[1] != keys[2]


def test_a_harmonizer_is_another_where_scans_change_their_site(tmp_path: Path) -> None:
    """The same files with the site column scrambled, as one does for a control, in the same folder."""
    first = inputs({"oslo": 4, "rome": 4})
    swapped = [replace(s, site={"oslo": "rome", "rome": "oslo"}[s.site]) for s in first.scans]
    keys = {
        _key(p, ["rome"], "oslo", settings(tmp_path))
        for p in (first, replace(first, scans=tuple(swapped)), first)
    }
    assert len(keys) == 2


def test_a_report_does_not_list_a_training_that_was_not_done(tmp_path: Path) -> None:
    assert settings(tmp_path).described()["preset"]["harmonizer"]["schedule"]["epochs"] == 1
    judged = settings(tmp_path, harmonizer=tmp_path / "h.safetensors").described()
    assert judged["harmonizer"] == "h.safetensors" and judged["preset"]["harmonizer"] is None


def test_a_leak_raises() -> None:
    training, test = split_cohort(inputs({"oslo": 8, "rome": 8}), 0.3, 0)
    one = test.scans[0]
    with pytest.raises(Leak, match="was fitted on 1 of the subjects or files"):
        refuse_leak("a harmonizer", whom(training) | {one.subject}, test)
    with pytest.raises(Leak):
        refuse_leak("a harmonizer", whom(training) | {f"sha-{one.subject}"}, test)
    assert Leak.exit_code == 2


@pytest.mark.parametrize(
    "per_site, reference, message",
    [
        ({"oslo": 9}, "oslo", "no second site"),
        ({"oslo": 9, "rome": 9}, "paris", "'paris' has no scans; the cohort has oslo, rome"),
        ({"oslo": 9, "rome": 3}, "oslo", "site rome has 3 subjects; a study needs at least 4"),
    ],
)
def test_cohorts_that_allow_no_study(
    per_site: dict[str, int], reference: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        check_cohort(Cohort(inputs(per_site).scans), settings(tmp_path, reference=reference))


def test_translating_is_the_checkpoints_generator(tmp_path: Path) -> None:
    from hz_train.checkpoint import load_checkpoint, without_prefix
    from hz_train.volume_cyclegan import Generator

    path = write_harmonizer(tmp_path)
    network = Generator(2).eval()
    network.load_state_dict(without_prefix("generator", load_checkpoint(path)[0]))
    volumes = np.random.default_rng(0).random((2, 16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(volumes[:, None])).numpy()[:, 0]
    np.testing.assert_allclose(translate(path, volumes, "cpu"), wanted, atol=1e-5)
    assert np.abs(wanted - volumes).mean() > 0.01
    with pytest.raises(UsageError, match="holds no reverse generator"):
        translate(path, volumes, "cpu", "reverse")


def test_translated_volumes_have_the_level_of_the_checkpoints_recipe(tmp_path: Path) -> None:
    recipe = Recipe(white_level=0.5).to_dict()
    volumes = np.random.default_rng(0).random((2, 16, 16, 16)).astype(np.float32)
    made = translate(write_harmonizer(tmp_path, recipe=recipe), volumes, "cpu")
    plain = translate(write_harmonizer(tmp_path), volumes, "cpu")
    assert min(white_level(volume) for volume in plain) > 0.6
    # Noise is clipped at 1 before, which moves the classes a little.
    assert [white_level(volume) for volume in made] == pytest.approx([0.5, 0.5], abs=5e-3)


@pytest.mark.parametrize("system", ["volume", "slice"])
@pytest.mark.parametrize("name", ["quick", "reference", "paper"])
def test_every_preset_of_a_study_can_start(name: str, system: str) -> None:
    # A study does not settle "auto": it would end with an error once its scans are read.
    preset = study_preset(name, system)
    for schedule in (preset.harmonizer.schedule, preset.predictor):
        assert schedule.precision in ("float32", "bf16", "fp16")


def test_slices_are_translated_one_by_one_and_put_back(tmp_path: Path) -> None:
    from hz_train.checkpoint import save_checkpoint, with_prefix
    from hz_train.slice_cyclegan import SliceGenerator

    torch.manual_seed(0)
    network = SliceGenerator(4, 1).eval()
    with torch.no_grad():
        network.layers[-1].weight.mul_(100)
    path = tmp_path / "harmonizer.safetensors"
    meta = {**base_meta(), "kind": "slice_cyclegan", "network": {"width": 4, "blocks": 1}}
    meta |= {"sources": ["rome"], "target": "oslo"}
    save_checkpoint(path, with_prefix("generator", network.state_dict()), meta)
    volume = np.random.default_rng(0).random((1, 16, 20, 6)).astype(np.float32)
    made = translate(path, volume, "cpu")
    for k in range(6):
        with torch.no_grad():
            wanted = network(torch.from_numpy(volume[0, :, :, k][None, None].copy())).numpy()[0, 0]
        np.testing.assert_allclose(made[0, :, :, k], wanted, atol=1e-4)
    assert system_of(path) == "slice"


def test_a_checkpoint_is_judged_as_it_is(tmp_path: Path) -> None:
    everyone = inputs({"oslo": 4, "leipzig": 4})
    training, test = split_cohort(everyone, 0.3, 0)
    path = write_harmonizer(tmp_path, training_scans=[test.sha256[0]])
    judged = TrainedHarmonizer(path, "cpu")
    assert system_of(path) == "volume"
    assert recipe_of(path).grid_shape == (64, 64, 64)
    judged.fit(training, "oslo")
    sites = [s.site for s in test.scans]
    made = judged.apply(test.grids, sites)
    for volume, was, site in zip(made, test.grids, sites, strict=True):
        assert np.array_equal(volume, was) == (site == "oslo")
    with pytest.raises(Leak):
        refuse_leak(judged.name, judged.seen, test)
    with pytest.raises(UsageError, match="maps to oslo, not to leipzig"):
        judged.fit(training, "leipzig")
    with pytest.raises(UsageError, match="kind age_cnn, not a harmonizer"):
        TrainedHarmonizer(write_age(tmp_path))


def test_subjects_that_a_checkpoint_saw_are_left_out_with_their_rescans(tmp_path: Path) -> None:
    scans = []
    for name in ("a", "b", "c"):
        for session in (1, 2):
            path = tmp_path / f"{name}{session}.nii"
            path.write_bytes(path.name.encode())
            scans.append(Scan(path, name, "oslo", 30.0, "n/a", "control"))
    cohort = Cohort(tuple(scans))

    def trained_on(*files: bytes) -> Path:
        return write_harmonizer(tmp_path, training_scans=[sha256(f).hexdigest() for f in files])

    assert unseen(cohort, trained_on(b"b2.nii")).subjects == ("a", "c")
    assert unseen(cohort, trained_on(b"else")) == cohort
    with pytest.raises(UsageError, match="trained on all 3 subjects"):
        unseen(cohort, trained_on(b"a1.nii", b"b2.nii", b"c1.nii"))


@pytest.mark.parametrize("form, trainings", [("pairs", [["bonn"], ["rome"]]), ("many", [["bonn", "rome"]])])
def test_harmonizers_are_trained_once_and_leave_the_reference_alone(
    form: str, trainings: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def train(cohort: Cohort, sources: list[str], target: str, out: Path, *_: object) -> Path:
        assert target == "oslo"
        assert set(cohort.sites) == {*sources, "oslo"}
        asked.append(list(sources))
        return write_harmonizer(out, sources=list(sources), target=target)

    monkeypatch.setattr(method_module, "train", train)
    everyone = inputs({"oslo": 5, "rome": 5, "bonn": 5})
    for _ in range(2):  # the second finds the checkpoints of the first
        method = CycleGAN(settings(tmp_path, device="cpu"), 0, form)
        method.fit(everyone, "oslo")
        assert asked == trainings
    sites = [s.site for s in everyone.scans]
    made = method.apply(everyone.grids, sites)
    for volume, was, site in zip(made, everyone.grids, sites, strict=True):
        assert np.array_equal(volume, was) == (site == "oslo")
    assert method.seen == whom(everyone)
    with pytest.raises(UsageError, match="not trained on site paris"):
        method.apply(everyone.grids[:1], ["paris"])
    # Other training scans are another harmonizer.
    CycleGAN(settings(tmp_path, device="cpu"), 0, form).fit(inputs({"oslo": 5, "rome": 5, "bonn": 4}), "oslo")
    assert len(asked) > len(trainings)


def test_every_study_compares_the_same_methods(tmp_path: Path) -> None:
    names = [m.name for m in methods(settings(tmp_path, form="both"), 0)]
    assert names == [
        "raw",
        "z-score",
        "Nyul",
        "raw, block means",
        "ComBat, block means",
        "3D CycleGAN, one a site",
        "3D CycleGAN, many to one",
    ]
    path = write_harmonizer(tmp_path)
    assert methods(settings(tmp_path, harmonizer=path), 0)[-1].name == "3D CycleGAN, harmonizer.safetensors"


def test_presets_have_networks_that_fit_their_grids() -> None:
    from hz_train.age_cnn import AgeCNN

    assert on_grid(study_preset("paper", "volume"), 32).recipe.grid_shape == (32, 32, 32)
    assert on_grid(study_preset("paper", "slice"), 64).recipe.middle_slices == 28
    with pytest.raises(UsageError, match="multiple of 8"):
        on_grid(study_preset("paper", "volume"), 36)
    for size in (16, 32, 64):
        assert AgeCNN(2, (size,) * 3).eval()(torch.zeros(1, 1, size, size, size)).shape == (1, 1)
