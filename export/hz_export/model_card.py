"""MODEL_CARD.md: what a hospital must know before it runs a bundle, every number from the checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hz_export.age_card import age_bias, age_interval
from hz_export.markdown import (
    as_range,
    as_text,
    as_words,
    flat,
    joined,
    section,
    table,
    without_sections,
)
from hz_export.published_section import published_section, what_it_does
from hz_export.reporting_items import reporting_items
from hz_runtime.model_space.anatomy import MEASURES
from hz_runtime.model_space.outliers import THRESHOLD

INTENDED_USE = (
    "Research on groups of adult, skull-stripped, T1-weighted brain MRI: making scans from different "
    "scanners comparable, and estimating brain age. Somebody who can read the scans must check the outputs."
)
OF_GROUPS = (
    "Probabilities of a diagnosis serve to compare groups and methods, where the true diagnoses are known."
)
NOT_FOR = (
    "Diagnosis, triage, treatment or any other clinical decision about one person; it is no medical device.",
    "Reading pathology: lesions, tumours, infarcts and atrophy were not what it learned to preserve.",
    "Children, ages outside the training range, other contrasts than T1, scans with the skull on.",
    "Studies whose groups were scanned at different sites: it can remove, or invent, the studied difference.",
    "Identifying a person, or deciding about employment, insurance or legal age.",
)
TITLES = {"harmonizer": "Harmonizer", "age": "Brain age", "diagnosis": "Diagnosis"}
SYSTEMS = {
    "volume_cyclegan": "the 3D CycleGAN generator of Komandur et al. 2023",
    "age_cnn": "the age CNN of Komandur et al. 2023",
    "age_ensemble": "a CNN and a ridge regression on tissue maps, their mean",
    "slice_cyclegan": "the slice CycleGAN generator of Bashyam et al. 2020",
    "slice_resnet": "the slice ResNet of Bashyam et al. 2020",
}
UNITS = {"intensity": "intensity units inside the brain", "years": "years"}  # of a plan's errors
PAPERS = {
    "Komandur et al. 2023": "Unsupervised harmonization of brain MRI using 3D CycleGANs",
    "Bashyam et al. 2020": "Medical image harmonization using deep learning based canonical mapping",
}


def intended_use(roles: Collection[str]) -> str:
    """What a bundle with networks of these roles is for."""
    return f"{INTENDED_USE} {OF_GROUPS}" if "diagnosis" in roles else INTENDED_USE


def model_card(
    name: str, manifest: Mapping[str, Any], metas: Mapping[str, Mapping[str, Any]], note: str = ""
) -> str:
    """Markdown of the whole card.

    manifest : of the bundle, models with their parity included.  metas : checkpoint JSON by role.
    note : what else a reader of the scores must know.
    """
    parts = [
        f"# {name}",
        "Research use only. " + _what(metas),
        section("Intended use", manifest["intended_use"]),
        section("Must not be used for", "\n".join(f"- {line}" for line in NOT_FOR)),
    ]
    parts.append(section("Note", note))
    parts += [_network(role, meta) for role, meta in metas.items()]
    parts.append(section("Age-bias correction", age_bias(manifest.get("age_bias"))) if "age" in metas else "")
    parts.append(
        section("Age interval", age_interval(manifest.get("age_interval"))) if "age" in metas else ""
    )
    parts.append(section("Files and their parity with the trained networks", _files(manifest["models"])))
    parts.append(section("TensorRT engines", _engines(manifest.get("engines", []))))
    parts.append(section("Precision plans", _plans(manifest["models"])))
    parts.append(section("Input range", _statistics(manifest.get("statistics", {}))))
    parts += _compared(manifest)
    parts.append(section("Preparation", table(("parameter", "value"), flat(manifest["recipe"]))))
    of = "weights" if "published" in manifest else "training data"
    parts.append(section(f"Licence of the {of}", manifest["licence"] or "Not stated in the checkpoints."))
    parts.append(section("Papers", _papers(metas)))
    card = "\n\n".join(part for part in parts if part)
    return f"{card}\n\n{section('Reporting guidelines', reporting_items(manifest, metas))}\n"


def _compared(manifest: Mapping[str, Any]) -> list[str]:
    """What scans and people are compared with, beside the input range."""
    return [
        section("Anatomy of those who get an age", _who_gets_an_age(manifest)),
        section("Outlier score", _outliers(manifest.get("cohort", {}).get("reference"))),
    ]


def after_anatomy(card: str, manifest: Mapping[str, Any]) -> str:
    """A card of before anatomy and outlier scores with the sections on both, before that on preparation."""
    added = "\n\n".join(part for part in _compared(manifest) if part)
    text = without_sections(card, ("Anatomy of those who get an age", "Outlier score"))
    return text.replace("## Preparation\n", f"{added}\n\n## Preparation\n", 1)


def _what(metas: Mapping[str, Mapping[str, Any]]) -> str:
    said = [what_it_does(role, meta) for role, meta in metas.items() if "published" in meta]
    if said:
        return " ".join(said)
    if "harmonizer" in metas:
        meta = metas["harmonizer"]
        said.append(
            f"Maps scans of {joined(meta.get('sources', []))} (and of scanners like theirs) "
            f"to {meta.get('target')}."
        )
    if "age" in metas:
        said.append("Predicts brain age in years from harmonized scans.")
    if "diagnosis" in metas:
        negative, positive = metas["diagnosis"].get("labels") or ("one label", "another")
        said.append(
            f"Predicts from harmonized scans how probable {positive} is rather than {negative}, where both "
            "are as common as in the training cohort; it diagnoses nobody."
        )
    return " ".join(said)


def _network(role: str, meta: Mapping[str, Any]) -> str:
    if "published" in meta:
        return f"## {TITLES[role]}: {meta['published']['title']}\n\n{published_section(role, meta)}"
    cohort = meta.get("cohort", {})
    system = SYSTEMS.get(str(meta.get("kind")))
    parts = [f"## {TITLES[role]}" + (f": {system}" if system else "")]
    for part, described in cohort.items():
        if described:
            parts.append(f"### Data: {as_words(part)}\n\n{_cohort(described)}")
    how = {
        "split": meta.get("split"),
        "seed": meta.get("seed"),
        "network": meta.get("network"),
        "labels": meta.get("labels") or None,
        "n4": meta.get("n4"),
        "started_from": (meta.get("started_from") or {}).get("sha256"),
        "schedule": meta.get("schedule"),
        "settings": meta.get("settings"),
    }
    parts.append(
        "### Training\n\n" + table(("what", "value"), flat({k: v for k, v in how.items() if v is not None}))
    )
    scores = _scores(meta.get("metrics") or {})
    parts.append(
        "### Scores\n\n" + (_scores_table(scores) if scores else "None are stored in the checkpoint.")
    )
    return "\n\n".join(parts)


def _cohort(described: Mapping[str, Any]) -> str:
    ages = as_range(described.get("age_range"))
    mean, sd = described.get("age_mean"), described.get("age_sd")
    spread = f", mean {mean:.1f}, SD {sd:.1f}" if mean is not None and sd is not None else ""
    first = (
        f"{described.get('n_scans')} scans of {described.get('n_subjects')} subjects; ages {ages}{spread}."
    )
    rows = [
        (site, str(row.get("scans")), str(row.get("subjects")), as_range(row.get("age_range")))
        for site, row in described.get("sites", {}).items()
    ]
    return f"{first}\n\n{table(('site', 'scans', 'subjects', 'ages'), rows)}"


def _scores(metrics: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, {"value", ...}) of every score, however deep it is nested."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for key, item in metrics.items():
        where = (*path, str(key))
        if isinstance(item, Mapping) and "value" not in item:
            rows += _scores(item, where)
        else:
            rows.append((as_words(" / ".join(where)), item if isinstance(item, Mapping) else {"value": item}))
    return rows


def _scores_table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    return table(
        ("score", "value", "95 % interval", "n", "how"),
        [
            (
                name,
                as_text(row["value"]),
                " to ".join(as_text(end) for end in row["ci95"]) if row.get("ci95") else "not stored",
                as_text(row.get("n", "")),
                as_text(row.get("how", "")),
            )
            for name, row in rows
        ],
    )


def _files(models: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in models:
        evidence = entry.get("parity", {})
        for row in evidence.get("measured", []) or [None]:
            ran = _engine(row["backend"]) if row else "not measured"
            said = _parity(row) if row else evidence.get("note", "unproven (--no-parity)")
            rows.append((entry["file"], entry["precision"], f"{entry['parameters']:,}", ran, said))
    volumes = next((e["parity"]["volumes"] for e in models if e.get("parity", {}).get("volumes")), None)
    source = f"Measured on {volumes['n']} volumes: {volumes['source']}.\n\n" if volumes else ""
    listed = table(("file", "precision", "parameters", "engine", "difference from PyTorch float32"), rows)
    return source + listed + _seams(models)


def _seams(models: Sequence[Mapping[str, Any]]) -> str:
    """What a harmonizer of slices leaves between them, measured on its first file; "" for one of volumes."""
    measured = [row for entry in models for row in entry.get("parity", {}).get("measured", [])]
    found = next((row["seams"] for row in measured if "seams" in row), None)
    if found is None:
        return ""
    return (
        f"\n\nSeams: neighbouring harmonized slices differ {found['overall']:.3g} times as much as their "
        f"anatomy and contrast explain, at the worst pair {found['worst']:.3g} times (1: no seams)."
    )


def _engine(ran: Mapping[str, str]) -> str:
    asked = f", asked for {ran['hint']}" if "hint" in ran else ""
    return f"{ran['name']} {ran['provider']}{asked}, arithmetic: {ran['precision']}"


def _parity(row: Mapping[str, Any]) -> str:
    said = []
    if "brain" in row:
        said.append(
            f"brain mean {row['brain']['mean']:.2g}, p99.9 {row['brain']['p999']:.2g}, "
            f"max {row['brain']['max']:.2g} of [0, 1]"
        )
    if "years" in row:
        said.append(f"ages at most {row['years']['max']:.2g} years")
    if "probability" in row:
        said.append(f"probabilities at most {row['probability']['max']:.2g}")
    return "; ".join(said)


def _papers(metas: Mapping[str, Mapping[str, Any]]) -> str:
    others = [str(meta["published"]["paper"]) for meta in metas.values() if "published" in meta]
    if others:
        return "\n".join(f"- {paper}" for paper in others)
    used = {SYSTEMS.get(str(meta.get("kind")), "") for meta in metas.values()}
    cited = [name for name in PAPERS if any(system.endswith(name) for system in used)]
    return "\n".join(f"- {name}: {PAPERS[name]}" for name in cited)


def _engines(engines: Sequence[Mapping[str, Any]]) -> str:
    if not engines:
        return ""
    said = (
        "Types are those read back from the built layers. No engine has run yet, so that nothing is claimed "
        "of their parity: measure it on the GPU with hz-bench parity.\n\n"
    )
    measured = any(engine.get("parity", {}).get("measured") for engine in engines)
    rows = [
        (
            engine["file"],
            f"{engine['flavour']} {engine['version']}",
            engine["precision"],
            ", ".join(engine["capability"]),
            "{least} to {most}, best {tuned}".format(**engine["profile"]),
            as_text([as_words(flag) for flag in engine["flags"]]),
            f"{engine['sha256'][:12]}...",
        )
        for engine in engines
    ]
    head = ("file", "builder", "precision", "compute capability", "batches", "options", "sha256")
    return ("" if measured else said) + table(head, rows)


def _plans(models: Sequence[Mapping[str, Any]]) -> str:
    said = [_plan(model["file"], model["plan"]) for model in models if model.get("plan")]
    return "\n\n".join(said)


def _plan(file: str, plan: Mapping[str, Any]) -> str:
    scans, sites = plan["calibration"]["n"], joined(list(plan["calibration"]["sites"]))
    error = plan["error"].get("int8") or {}
    found = " and ".join(f"{as_text(error[key])} {word}" for key, word in UNITS.items() if error.get(key))
    budget = " and ".join(
        f"{as_text(plan['budget'][key])} {word}" for key, word in UNITS.items() if plan["budget"].get(key)
    )
    head = (
        f"{file}: {len(plan['int8'])} convolutions in int8 ({plan['weight_bits']}-bit weights, ranges by "
        f"{plan['method']}), made on {scans} scans of {sites}, which are no part of the parity above. "
        f"On them the worst scans stray by {found or 'nothing'}; the budget was {budget or 'not limited'}."
    )
    return f"{head}\n\n" + table(
        ("kept in float32", "why"), [(f"{k['operation']} {k['node']}", k["why"]) for k in plan["kept"]]
    )


def _statistics(statistics: Mapping[str, Mapping[str, float]]) -> str:
    if not statistics:
        return ""
    rows = [
        (as_words(name), *(as_text(row[key]) for key in ("min", "max", "mean", "sd")))
        for name, row in statistics.items()
    ]
    said = "Scans further from these ranges than one SD are flagged in the results.\n\n"
    return said + table(("feature of the scan", "min", "max", "mean", "SD"), rows)


def _who_gets_an_age(manifest: Mapping[str, Any]) -> str:
    features = manifest.get("age_features")
    said = _anatomy(manifest.get("anatomy") or {})
    if features:
        said += (
            "\n\nThe age network's own features are compared, too: whoever's lie further from those of its "
            f"people than {features['limit']:g} gets no age (Mahalanobis distance by "
            f"{len(features['variances'])} principal directions and the rest; {features['how']})."
        )
    return said


def _anatomy(anatomy: Mapping[str, Mapping[str, float]]) -> str:
    """Who gets no age."""
    if not anatomy:
        return "Not known: the bundle does not say what anatomy its people had, and gives everybody an age."
    rows = [
        (
            MEASURES[name].words,
            *(as_text(MEASURES[name].factor * row[key]) for key in ("min", "max", "sd")),
            f"{MEASURES[name].slack:g} SD {'above' if MEASURES[name].sides == 'high' else 'to either side'}",
        )
        for name, row in anatomy.items()
    ]
    said = (
        "Of the people that the age network was trained on, measured on harmonized scans. Whoever is further "
        "from these ranges than the last column says gets no age. Old people of usual anatomy still get one, "
        "which is wrong: ages hold for the training range alone.\n\n"
    )
    return said + table(("measure (shares in %, volume in cm3)", "min", "max", "SD", "no age beyond"), rows)


def _outliers(reference: Mapping[str, Any] | None) -> str:
    """What a scan as a whole is compared with, beside its single features."""
    if not reference:
        return (
            "None: the bundle holds no reference of its training scans, so that nothing says how unlike them "
            "a scan is as a whole. Only the input range flags it."
        )
    return (
        f"A scan is compared with {reference['n']} training scans in size, place, contrast and correlation, "
        f"and flagged where the robust score of any of them exceeds {THRESHOLD:g}."
    )
