"""hz-run status --affected: results of versions that a later fix concerns, on the screen and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hz_cli import render

SHOWN = 20  # results of each fix


def affected(out: Path) -> dict[str, Any]:
    """{"results": how many, "fixes": those that concern any, with the names of records, "unknown" apart}."""
    from hz_runtime.results.affected import concerns, fixes, made_anew, results_of

    results = list(results_of(out))
    rows = []
    for fix in fixes():
        answers = {made.name: concerns(fix, made) for made in results}
        found = [name for name, answer in answers.items() if answer]
        unknown = [name for name, answer in answers.items() if answer is None]
        if found or unknown:
            rows.append(
                {
                    "id": fix.id,
                    "release": fix.release,
                    "scans": fix.scans,
                    "what": fix.what,
                    "made_anew": made_anew(fix),
                    "results": found,
                    "unknown": unknown,
                }
            )
    return {"results": len(results), "fixes": rows}


def show(found: dict[str, Any], as_json: bool) -> int:
    """Print it; returns the exit code: 3 where a fix concerns any result, or may."""
    if as_json:
        render.say(json.dumps(found, indent=2))
    else:
        _lines(found)
    return 3 if found["fixes"] else 0


def _lines(found: dict[str, Any]) -> None:
    total = f"{found['results']} result{'' if found['results'] == 1 else 's'}"
    if not found["fixes"]:
        render.say(f"{total}: no later fix concerns them")
        return
    named = {name for fix in found["fixes"] for name in (*fix["results"], *fix["unknown"])}
    render.say(f"{total}: later fixes concern {len(named)}, where they are of the scans that are named")
    for fix in found["fixes"]:
        render.say(f"{fix['id']}: {fix['what']}")
        render.say(f"  scans: {fix['scans']}")
        again = "is made anew by the same command" if fix["made_anew"] else "is made anew with --overwrite"
        render.say(f"  what is of them {again}")
        for names, why in ((fix["results"], ""), (fix["unknown"], "  (its record does not say)")):
            for name in names[:SHOWN]:
                render.say(f"    {name}{why}")
            if len(names) > SHOWN:
                render.say(f"    ... and {len(names) - SHOWN} more{why}; --json lists all")
