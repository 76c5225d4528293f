"""hz-run --info: what a bundle says of itself, and which engines would run it here. Nothing is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hz_cli import options, render

if TYPE_CHECKING:
    from hz_runtime.bundle.manifest import Manifest

EPILOG = """\b
Exit codes: 0 some engine would run here; 2 usage; 4 bundle refused; 5 no engine would.
"""


@click.command("--info", cls=render.HzCommand, context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("bundle", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="BUNDLE", type=click.Path(path_type=Path), help="The same as BUNDLE.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.pass_context
def info(ctx: click.Context, /, bundle: Path | None, model: Path | None, as_json: bool) -> None:
    """Say what a bundle is, for whom its ages hold, what it holds, and which engines would run it here.

    Of the one that hz-run takes by itself where none is named. Only its manifest is read: its files are
    verified when they are run.
    """
    found = facts(bundle or model)
    if as_json:
        render.say(json.dumps(found, indent=2, allow_nan=False))
    else:
        for line in lines(found):
            render.say(line)
    ctx.exit(0 if any(engine["runs"] for engine in found["engines"]) else 5)


def facts(path: Path | None) -> dict[str, Any]:
    """What `--info` says, as JSON types. Raises BundleError."""
    from hz_runtime.bundle.store import default_bundle, read_manifest

    place = default_bundle() if path is None else path
    manifest = read_manifest(place)
    cohort, interval = manifest.cohort, manifest.age_interval
    roles = sorted({entry.role for entry in manifest.models})
    return {
        "bundle": place.name,
        "name": manifest.name,
        "id": manifest.id,
        "created": manifest.created,
        "licence": manifest.licence,
        "intended_use": manifest.intended_use,
        "networks": roles,
        "harmonizes_to": sorted({e.target for e in manifest.models if e.role == "harmonizer" and e.target}),
        "people": cohort.get("n"),
        "sites": list(cohort.get("sites") or ()),
        "ages": list(cohort["age_range"]) if cohort.get("age_range") else None,
        "age_interval": None if interval is None else interval.level,
        "ages_calibrated": calibrated(manifest),
        "files": [
            {
                "role": entry.role,
                "file": entry.file,
                "precision": entry.precision,
                "to": entry.target,
                "bytes": entry.bytes,
            }
            for entry in manifest.models
        ],
        "built_engines": [entry.file for entry in manifest.engines],
        "engines": _engines(manifest),
    }


def calibrated(manifest: Manifest) -> dict[str, Any] | None:
    """Whose calibration a bundle's ages have, of one that hz-calibrate age was given; None of others."""
    from hz_runtime.bundle.age_calibration import site_metadata

    interval, bias = manifest.age_interval, manifest.age_bias
    width = None if interval is None else interval.of(bias)
    if interval is None or interval.site is None or width is None:
        return None
    return {
        **site_metadata(interval.site),
        "people": interval.n,
        "level": interval.level,
        "half_width": width.half_width,
        "coverage": width.coverage,
    }


def _engines(manifest: Manifest) -> list[dict[str, Any]]:
    """Every engine of the table, fastest first: whether it would run here, in what precision, or why not."""
    from hz_runtime.backends.registry import ENGINES, missing

    first = manifest.models[0].role  # of a bundle without a harmonizer, what else it holds
    held = {entry.precision for entry in manifest.models if entry.role in ("harmonizer", first)}
    found = []
    for engine in ENGINES:
        problem, remedy = missing(engine)
        precision = engine.fastest if engine.fastest in held else "fp32"
        found.append(
            {
                "name": engine.name,
                "label": engine.label,
                "runs": not problem,
                "precision": None if problem else precision,
                "problem": problem,
                "remedy": remedy,
            }
        )
    return found


def calibration_lines(found: dict[str, Any] | None) -> list[str]:
    """The same of the calibration, for people; nothing where there is none from a site."""
    if found is None:
        return []
    ages, way = found["age_range"], "raw heads" if found["raw_heads"] else "brains"
    sites = ", ".join(found["sites"])
    return [
        f"  ages      calibrated at {sites} on {found['people']} people of {ages[0]:g} to "
        f"{ages[1]:g} years ({way}): +- {found['half_width']:.1f} years for {found['level']:.0%}, and "
        f"{found['coverage']:.1%} of them within what the others give"
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    ages, people = found["ages"], [f"{found['people']} people"] if found["people"] else []
    people += [", ".join(found["sites"])] if found["sites"] else []
    people += [f"{ages[0]:g} to {ages[1]:g} years"] if ages else []
    to = f" to {', '.join(found['harmonizes_to'])}" if found["harmonizes_to"] else ""
    shown = [
        f"{found['bundle']}: {found['name']}",
        f"  id        {found['id']}",
        f"  networks  {', '.join(found['networks'])}{to}",
        f"  made of   {'; '.join(people) or 'unknown'}",
        *calibration_lines(found["ages_calibrated"]),
        f"  licence   {found['licence'] or 'unknown'}",
        *(
            f"  file      {e['file']} ({e['role']}, {e['precision']}, {e['bytes'] / 1e6:.1f} MB)"
            for e in found["files"]
        ),
        *(f"  engine    {name}" for name in found["built_engines"]),
        "engines here, fastest first:",
    ]
    for engine in found["engines"]:
        if engine["runs"]:
            shown.append(f"  {engine['label']}: would run ({engine['precision']})")
        else:
            shown.append(f"  {engine['label']}: {engine['problem']}. {engine['remedy']}")
    return shown
