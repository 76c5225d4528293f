"""What a model card says of a network that others published, in the place of training and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hz_export.markdown import table

Meta = Mapping[str, Any]


def what_it_does(role: str, meta: Meta) -> str:
    """One or two sentences for the card's head."""
    made = f"by {meta['published']['authors']}"
    if role == "harmonizer":
        return f"Maps T1-weighted brains to {meta.get('target')}; trained {made}, not by hz."
    return f"Predicts brain age in years from scans as they are, not harmonized; trained {made}, not by hz."


def published_section(role: str, meta: Meta) -> str:
    """Whose the weights are, how their authors prepare scans, and what is not known."""
    about = meta["published"]
    rows = [
        ("authors", about["authors"]),
        ("paper", about["paper"]),
        ("licence of the weights", _licence(about)),
        ("kept by the authors at", about["source"]),
    ]
    for file in about["files"]:
        rows.append((file["name"], f"sha256 {file['sha256']}, {AS_PUBLISHED[file['sha256_published']]}"))
    steps = "\n".join(f"- {line}" for line in about["preparation"])
    unknown = (NOT_TRIED, UNCALIBRATED) if role == "age" else (NOT_TRIED,)
    notes = "\n".join(f"- {line}" for line in (*about["remarks"], *unknown))
    return (
        f"### Origin\n\n{table(('what', 'value'), rows)}\n\n### Preparation by the authors\n\n{steps}\n\n"
        f"### To know\n\n{notes}"
    )


def calibrated(card: str) -> str:
    """A card of a bundle that was calibrated at a site: what nobody knew of its ages is known there now."""
    return card.replace(UNCALIBRATED, CALIBRATED)


AS_PUBLISHED = {
    True: "as the authors publish it",
    False: "of the file given, which is **not the one that the authors publish**",
    None: "of the file given; the authors publish none that is known here",
}
# It holds for every import: the weights cannot be had where hz is tested, nor the scans they learned from.
NOT_TRIED = (
    "hz's rebuilt network was proven with random weights under the published names and shapes, not with the "
    "real ones, and the bundle holds no statistics of the training scans: nothing says how usual a scan is."
)
UNCALIBRATED = (
    "Nothing says how an age is biased, or how far off it may be. hz-calibrate age measures that on a site's "
    "own people."
)
CALIBRATED = (
    "How ages are biased and how far off they may be was measured at the site that Age calibration names, "
    "and nowhere else."
)


def _licence(about: Mapping[str, Any]) -> str:
    return f"{about['licence']}, no commercial use" if about["non_commercial"] else str(about["licence"])
