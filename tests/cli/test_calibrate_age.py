"""hz-calibrate age: a site's people of known age in, a bundle calibrated there out, and what that says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hz_cli.bundle import description
from hz_cli.calibrate import main
from hz_cli.info import facts, lines
from hz_runtime.batch.known_ages import KnownAges
from hz_runtime.batch.run import run_batch
from hz_runtime.batch.run_options import RunOptions
from hz_runtime.bundle.signing_keys import SigningKey
from hz_runtime.bundle.store import load_bundle, sign_bundle, write_bundle
from hz_runtime.bundle.trust import Trust
from hz_runtime.errors import BundleError
from small_keys import key_pair
from small_scans import write_scan
from tiny import make_tiny_bundle

PEOPLE = 29
CPU = RunOptions(report=False, backend="onnxruntime-cpu", space="model")


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["age", *(str(a) for a in arguments)])


@dataclass(frozen=True)
class Site:
    """A bundle, results of it, their table, and the numbers in them: every third person came twice."""

    bundle: Path
    results: Path
    table: Path
    ages: np.ndarray
    raw: np.ndarray
    people: np.ndarray


def results_of(run: dict[str, Any], names: list[str], raw: np.ndarray) -> dict[str, Any]:
    """A run.json as if these scans had got these ages."""
    (scan,) = run["scans"]
    scans = [
        {**scan, "input": f"{name}_T1w.nii.gz", "name": name, "sha256": f"{k:064x}", "age_raw": float(age)}
        for k, (name, age) in enumerate(zip(names, raw, strict=True))
    ]
    return {**run, "scans": scans}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    pytest.importorskip("onnxruntime", reason="runs the tiny networks")
    folder = tmp_path_factory.mktemp("site")
    bundle = make_tiny_bundle(folder / "tiny.hz")
    write_scan(folder / "sub-00_T1w.nii.gz", 1)
    run_batch([folder / "sub-00_T1w.nii.gz"], load_bundle(bundle), folder / "out", CPU)
    rng = np.random.default_rng(5)
    people = np.sort([*range(PEOPLE), *range(0, PEOPLE, 3)])
    ages = rng.uniform(30, 70, PEOPLE)[people] + np.linspace(0, 0.5, len(people))
    raw = np.round(0.7 * ages + 26 + rng.normal(0, 3, len(people)), 4)
    names = [f"sub-{who:02}_ses-{k:02}" for k, who in enumerate(people)]
    place = folder / "out" / "run.json"
    place.write_text(json.dumps(results_of(json.loads(place.read_text()), names, raw)))
    rows = [
        f"sub-{who:02}\t{name}_T1w.nii.gz\t{age!r}\tbasel"
        for who, name, age in zip(people, names, ages.tolist(), strict=True)
    ]
    table = folder / "participants.tsv"
    table.write_text("\n".join(["participant_id\tfile\tage\tsite", *rows]) + "\n")
    return Site(bundle, folder / "out", table, ages, raw, people)


def half_width(errors: np.ndarray, people: np.ndarray) -> float:
    """The least error that people of a weight of 90 % keep to, of K + 1 with the new one: by counting."""
    everybody = np.unique(people)
    for error in np.sort(errors):
        share = sum(np.mean(errors[people == who] <= error) for who in everybody)
        if share / (len(everybody) + 1) >= 0.9 - 1e-12:
            return float(error)
    raise AssertionError("too few people")


def corrected(ages: np.ndarray, raw: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    slope, intercept = np.polyfit(ages[fitted], raw[fitted], 1)
    return np.asarray((raw - intercept) / slope)


def left_out_errors(ages: np.ndarray, raw: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Everybody's by the line through the others."""
    found = np.empty(len(ages))
    for who in np.unique(people):
        found[people == who] = np.abs(corrected(ages, raw, people != who) - ages)[people == who]
    return found


@pytest.fixture(scope="module")
def made(site: Site) -> tuple[Path, Result]:
    out = site.bundle.with_name("ours.hz")
    return out, calibrate(site.bundle, site.results, "--participants", site.table, "-o", out)


def test_bias_interval_and_coverage_are_those_counted_by_hand(site: Site, made: tuple[Path, Result]) -> None:
    out, result = made
    assert result.exit_code == 0, result.output
    bundle, before = load_bundle(out), load_bundle(site.bundle)
    slope, intercept = np.polyfit(site.ages, site.raw, 1)
    assert bundle.age_bias is not None and bundle.age_bias.n == PEOPLE
    assert (bundle.age_bias.slope, bundle.age_bias.intercept) == pytest.approx((slope, intercept))
    interval = bundle.age_interval
    assert interval is not None and interval.corrected is not None and interval.n == PEOPLE
    errors = left_out_errors(site.ages, site.raw, site.people)
    assert interval.corrected.half_width == pytest.approx(half_width(errors, site.people))
    inside = []
    for who in range(PEOPLE):
        rest = site.people != who
        reach = half_width(
            left_out_errors(site.ages[rest], site.raw[rest], site.people[rest]), site.people[rest]
        )
        inside.append(np.mean(errors[~rest] <= reach))
    assert interval.corrected.coverage == pytest.approx(float(np.mean(inside)))
    assert 0.8 <= interval.corrected.coverage < 1
    assert interval.site is not None and interval.site.sites == ("basel",)
    assert interval.site.age_range == (site.ages.min(), site.ages.max())
    assert interval.site.bundle == before.id != bundle.id and not interval.site.raw_heads
    same = {name: sha for name, sha in before.files.items() if name != "MODEL_CARD.md"}
    assert same == {name: sha for name, sha in bundle.files.items() if name != "MODEL_CARD.md"}


def test_card_info_and_show_say_whose_calibration_it_is(site: Site, made: tuple[Path, Result]) -> None:
    out, _ = made
    card = (out / "MODEL_CARD.md").read_text()
    youngest, oldest = site.ages.min(), site.ages.max()
    whose = f"on {PEOPLE} people ({len(site.ages)} scans, brains, taken as they are) of basel, "
    assert f"{whose}{youngest:g} to {oldest:g} years old" in card and "of use at that site alone" in card
    assert card.startswith("# Tiny test bundle") and card.count("## Age calibration\n") == 1
    found = facts(out)["ages_calibrated"]
    assert found["people"] == PEOPLE and found["sites"] == ["basel"]
    (shown,) = (line for line in lines(facts(out)) if line.startswith("  ages "))
    assert f"calibrated at basel on {PEOPLE} people of {youngest:g} to {oldest:g} years (brains)" in shown
    assert shown in description(load_bundle(out))
    assert facts(site.bundle)["ages_calibrated"] is None


def test_a_card_made_by_hz_export_has_every_section_once_and_its_items_answered(
    made: tuple[Path, Result],
) -> None:
    from hz_export.age_card import after_calibration
    from hz_export.model_card import model_card

    bundle = load_bundle(made[0])
    before = model_card("x", {**bundle.raw, "age_bias": None, "age_interval": None}, {"age": {"cohort": {}}})
    card = after_calibration(before, bundle.raw)
    assert after_calibration(card, bundle.raw) == card
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) == len([t for t in before.splitlines() if t.startswith("## ")]) + 1
    assert titles.index("## Age calibration") + 1 == titles.index("## Age-bias correction")
    assert "| TRIPOD+AI 15 | what an age means: how far it may be off | Age interval |" in card
    missing = [text.count("| missing |") for text in (before, card)]
    assert missing[0] - missing[1] == 2  # the bias and the interval
    assert f"subjects {missing[1]} are missing" in card


def test_a_card_of_others_network_no_longer_says_that_nothing_is_known(made: tuple[Path, Result]) -> None:
    from hz_export.age_card import after_calibration
    from hz_export.imported.importing import described
    from hz_export.imported.sfcn import NETWORK
    from hz_export.model_card import model_card

    bundle = load_bundle(made[0])
    meta = {"published": described(replace(NETWORK, files=()), ())}
    before = model_card("x", {**bundle.raw, "age_bias": None, "age_interval": None}, {"age": meta})
    card = after_calibration(before, bundle.raw)
    assert before.count("Nothing says how an age is biased") == 1
    assert "Nothing says" not in card and "was measured at the site that Age calibration names" in card


def test_runs_say_it_and_flag_people_of_other_ages(
    site: Site, made: tuple[Path, Result], tmp_path: Path
) -> None:
    scan, bundle = site.table.with_name("sub-00_T1w.nii.gz"), load_bundle(made[0])
    report = run_batch([scan], bundle, tmp_path / "out", RunOptions(
        report=False, backend="onnxruntime-cpu", space="model", ages=KnownAges(only=79.5)
    ))  # fmt: skip
    (found,) = report.scans
    assert report.run["age"]["calibrated_at"]["sites"] == ["basel"]
    assert bundle.age_interval is not None and bundle.age_interval.site is not None
    youngest, oldest = bundle.age_interval.site.age_range
    low, high = found.prediction.age_interval or (np.nan, np.nan)
    apart = high < youngest or low > oldest
    assert apart == any("holds none of the ages that it was calibrated on (basel" in f for f in found.flags)
    assert any("79.5" in flag for flag in found.flags)
    log = (tmp_path / "out" / "hz-run.log").read_text()
    assert f"calibrated on: basel, {youngest:g} to {oldest:g} years" in log


def test_ages_beyond_those_of_the_site_are_flagged(made: tuple[Path, Result]) -> None:
    from hz_runtime.bundle.age_calibration import known_age_flags

    interval = load_bundle(made[0]).age_interval
    assert interval is not None and interval.site is not None
    youngest, oldest = interval.site.age_range
    assert interval.site_flags((oldest, oldest + 9)) == interval.site_flags(None) == ()
    (flag,) = interval.site_flags((oldest + 0.1, oldest + 9))
    assert flag.startswith(f"the interval {oldest + 0.1:.1f} to {oldest + 9:.1f} holds none")
    known = oldest + 3
    (flag,) = known_age_flags(known, known, (known - 9, known + 9), (18, 80), interval)
    assert flag == f"known age {known:g} is none that the age interval was calibrated on ({interval.site})"
    assert known_age_flags(youngest, youngest, (0, 99), (18, 80), interval) == ()


def without(site: Site, folder: Path, edit: Any) -> Path:
    """The site's table with its rows edited."""
    head, *rows = site.table.read_text().splitlines()
    table = folder / "participants.tsv"
    table.write_text("\n".join([head, *(row for row in map(edit, rows) if row)]) + "\n")
    return table


def test_too_few_people_are_refused_with_the_reason_and_nothing_is_written(
    site: Site, tmp_path: Path
) -> None:
    out = tmp_path / "o.hz"
    table = without(site, tmp_path, lambda row: row if row < "sub-18" else "")
    result = calibrate(site.bundle, site.results, "--participants", table, "-o", out)
    assert result.exit_code == 2 and "18 people are too few: with fewer than 19" in result.output
    assert "15 scans are not in the table" in result.output and not out.exists()
    table = without(site, tmp_path, lambda row: row if row < "sub-19" else "")
    assert calibrate(site.bundle, site.results, "--participants", table, "-o", out).exit_code == 0


def test_people_outside_the_training_ages_do_not_count(site: Site, tmp_path: Path) -> None:
    def aged(row: str) -> str:
        who, file, age, place = row.split("\t")
        return "\t".join([who, file, "85" if who < "sub-12" else age, place])

    table = without(site, tmp_path, aged)
    result = calibrate(site.bundle, site.results, "--participants", table, "-o", tmp_path / "o.hz")
    assert result.exit_code == 2 and "17 people are too few" in result.output
    assert "16 scans are of people outside the ages of the network's training" in result.output
    assert not (tmp_path / "o.hz").exists()


def test_results_of_another_bundle_and_scans_of_no_site_are_refused(site: Site, tmp_path: Path) -> None:
    run = json.loads((site.results / "run.json").read_text())
    run["bundle"]["id"] = "sha256:" + "0" * 64
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    out = ("--participants", site.table, "-o", tmp_path / "o.hz")
    result = calibrate(site.bundle, tmp_path / "out", *out)
    assert result.exit_code == 2 and "holds results of another bundle" in result.output
    nowhere = without(site, tmp_path, lambda row: row.replace("\tbasel", "\tn/a"))
    asked = (site.bundle, site.results, "--participants", nowhere, "-o", tmp_path / "o.hz")
    result = calibrate(*asked)
    assert result.exit_code == 2 and "--site NAME" in result.output
    assert calibrate(*asked, "--site", "oslo").exit_code == 0
    interval = load_bundle(tmp_path / "o.hz").age_interval
    assert interval is not None and interval.site is not None and interval.site.sites == ("oslo",)
    result = calibrate(site.bundle, site.results, "--participants", site.table, "--write", "--site", "oslo")
    assert result.exit_code == 2 and f"{len(site.ages)} scans are of another site" in result.output


def test_results_of_brains_prepared_in_other_ways_are_refused(site: Site, tmp_path: Path) -> None:
    """Every choice of the preparation counts, not only whether there was one."""
    run = json.loads((site.results / "run.json").read_text())
    table = ("--participants", site.table, "-o", tmp_path / "o.hz")

    def folder(name: str, scans: slice, prepare: object) -> Path:
        (tmp_path / name).mkdir()
        made = {**run, "scans": run["scans"][scans], "options": {**run["options"], "prepare": prepare}}
        (tmp_path / name / "run.json").write_text(json.dumps(made))
        return tmp_path / name

    one = folder("one", slice(0, 20), {"dof": 6, "brain_mask": "auto"})
    for name, prepare in {"dof": {"dof": 12, "brain_mask": "auto"},
                          "mask": {"dof": 6, "brain_mask": "template"}, "brains": None}.items():  # fmt: skip
        result = calibrate(site.bundle, one, folder(name, slice(20, None), prepare), *table)
        assert result.exit_code == 2 and "some of these results are of " in result.output
    same = folder("same", slice(20, None), {"brain_mask": "auto", "dof": 6})
    assert calibrate(site.bundle, one, same, *table).exit_code == 0


@pytest.mark.made_up_results
def test_a_scan_that_failed_in_one_folder_counts_by_its_age_in_another(site: Site, tmp_path: Path) -> None:
    run = json.loads((site.results / "run.json").read_text())
    first, *rest = run["scans"]
    (tmp_path / "failed").mkdir()
    failed = {**run, "scans": [{**first, "status": "failed", "age_raw": None}, *rest]}
    (tmp_path / "failed" / "run.json").write_text(json.dumps(failed))
    asked = ("--participants", site.table, "-o", tmp_path / "o.hz")
    result = calibrate(site.bundle, tmp_path / "failed", site.results, *asked)
    assert result.exit_code == 0, result.output
    assert f"{len(site.ages)} scans of {PEOPLE} people" in result.output
    assert f"left out: {len(rest)} scans are the same file again" in result.output


def test_brains_for_a_network_of_registered_ones_are_named(site: Site, tmp_path: Path) -> None:
    bundle = load_bundle(site.bundle)
    files = {name: bundle.read_listed(name) for name in bundle.files}
    asked = write_bundle(tmp_path / "dof.hz", {**bundle.raw, "recipe": {**bundle.recipe, "dof": 12}}, files)
    run = json.loads((site.results / "run.json").read_text())
    (tmp_path / "out").mkdir()
    made = {**run, "bundle": {**run["bundle"], "id": asked.id}}
    (tmp_path / "out" / "run.json").write_text(json.dumps(made))
    table = ("--participants", site.table, "-o", tmp_path / "o.hz")
    result = calibrate(asked.path, tmp_path / "out", *table)
    assert result.exit_code == 0 and "not registered in this run" in result.output
    assert (
        "not registered"
        not in calibrate(site.bundle, site.results, *table[:2], "-o", tmp_path / "p.hz").output
    )


def test_without_results_the_scans_of_the_table_are_run(site: Site, tmp_path: Path) -> None:
    for name, folder in (("a", "one"), ("b", "two")):  # files of one name, told apart by their folders
        write_scan(tmp_path / folder / "T1w.nii.gz", ord(name))
    table = tmp_path / "participants.tsv"
    table.write_text("file\tage\tsite\none/T1w.nii.gz\t40\toslo\ntwo/T1w.nii.gz\t50\toslo\n")
    result = calibrate(site.bundle, "--participants", table, "--write", "--backend", "onnxruntime-cpu")
    assert result.exit_code == 2 and "2 scans of 2 people" in result.output
    assert "2 people are too few" in result.output


def test_a_signature_goes_unless_a_key_signs_anew(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="signs a bundle")
    key, public = key_pair(tmp_path, "hz")
    bundle = make_tiny_bundle(tmp_path / "tiny.hz")
    sign_bundle(bundle, SigningKey.read(key))
    trust = Trust.read((public,), required=True)
    given = (bundle, site.results, "--participants", site.table, "--write", "--quiet")
    assert calibrate(*given).exit_code == 0
    with pytest.raises(BundleError, match="signed"):
        load_bundle(bundle, trust)
    again = calibrate(*given, "--key", key)  # of the calibrated one: what networks say is as before
    assert again.exit_code == 0, again.output
    assert load_bundle(bundle, trust).age_interval is not None


def test_bad_use_is_said_before_any_work(site: Site, tmp_path: Path) -> None:
    table = ("--participants", site.table)
    assert "either --out NEW.hz or --write" in calibrate(site.bundle, site.results, *table).output
    assert "ends in .hz" in calibrate(site.bundle, *table, "-o", tmp_path / "o").output
    assert "exists" in calibrate(site.bundle, *table, "-o", site.bundle).output
