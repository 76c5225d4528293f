"""A small raw BIDS data set made by code: sub-01 in two sessions, sub-02 with two runs."""

from __future__ import annotations

import json
from pathlib import Path

from small_scans import write_scan

SCANS = (
    "sub-01/ses-1/anat/sub-01_ses-1_T1w",
    "sub-01/ses-2/anat/sub-01_ses-2_T1w",
    "sub-02/anat/sub-02_run-1_T1w",
    "sub-02/anat/sub-02_run-2_T1w",
)


def write_study(root: Path) -> Path:
    """The data set, and beside its scans what hz must not take for one."""
    for seed, name in enumerate(SCANS):
        write_scan(root / f"{name}.nii.gz", seed)
        (root / f"{name}.json").write_text('{"MagneticFieldStrength": 3}\n')
    write_scan(root / "sub-02" / "anat" / "sub-02_T2w.nii.gz", 9)
    write_scan(root / "derivatives" / "other" / "sub-03" / "anat" / "sub-03_desc-x_T1w.nii.gz", 8)
    told = {"Name": "made by code", "BIDSVersion": "1.9.0", "DatasetType": "raw", "License": "CC0"}
    (root / "dataset_description.json").write_text(json.dumps({**told, "Authors": ["A. B.", "C. D."]}))
    (root / "participants.tsv").write_text("participant_id\tage\tsite\nsub-01\t30\tA\nsub-02\t89+\tB\n")
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\nses-2\t32.5\n")
    (root / "README").write_text(
        "A data set of ellipsoids, made by code for the tests of hz, of no person.\n"
    )
    return root
