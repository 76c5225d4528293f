"""How far scans of one real head agree before and after harmonization, on heads of a site never trained on.

    python benchmarks/travelling_head.py COHORT/participants.tsv --site SITE [--bundle NAME.hz]

Every subject's first scan goes through three simulated scanners, drawn within the range of the demo's three
by code that is not the training's, and then through the bundle's harmonizer as hz-run would send it.
Disagreement is the mean absolute difference of two scans in the brain, each divided by its own mean;
correlation is with the scan as it was. Prints JSON: means over subjects with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import describe_machine

SCANNERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--site", required=True)
    parser.add_argument("--bundle", type=Path, help="[default: the reference bundle]")
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()

    import numpy as np

    from hz_cli.agreement import correlation, disagreement
    from hz_cli.demo_scans import Head, random_scanner, scan
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.inference.open import open_networks
    from hz_runtime.io.volume import read_volume
    from hz_train.cohort import read_participants
    from hz_train.scores import score

    bundle = load_bundle(given.bundle)
    harmonizer = open_networks(bundle).harmonizer
    first = {s.subject: s for s in reversed(read_participants(given.cohort).at([given.site]).scans)}
    rows: dict[str, list[float]] = {}
    for number, subject in enumerate(sorted(first)):
        volume = read_volume(first[subject].path)
        data = np.clip(volume.data, 0, None)
        head = Head(data / np.percentile(data[data > 0], 99.9), volume.affine, data > 0)
        seeds = range(given.seed + SCANNERS * number, given.seed + SCANNERS * (number + 1))
        before = [scan(head, random_scanner(seed)) for seed in seeds]
        after = [harmonizer.volume(seen, head.affine).native for seen in before]
        for name, scans in (("before", before), ("after", after)):
            rows.setdefault(f"disagreement_{name}", []).append(disagreement(scans, head.brain))
            close = [correlation(s, head.data, head.brain) for s in scans]
            rows.setdefault(f"correlation_{name}", []).append(float(np.mean(close)))
    how = f"{SCANNERS} simulated scanners a head, seeds from {given.seed}"
    result = {name: score(values, how) for name, values in rows.items()}
    ratio = result["disagreement_after"]["value"] / result["disagreement_before"]["value"]
    entry = bundle.model("harmonizer")
    print(
        json.dumps(
            {
                "site": given.site,
                "site_in_training": given.site in (*entry.sources, entry.target),
                "subjects": len(first),
                **result,
                "disagreement_ratio": round(ratio, 4),
                "bundle": {"name": bundle.name, "id": bundle.id},
                "machine": describe_machine(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
