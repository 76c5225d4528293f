"""What a model card is made from, small: a checkpoint's JSON and a manifest."""

from __future__ import annotations

from typing import Any

META: dict[str, Any] = {
    "sources": ["basel", "leipzig"],
    "target": "oslo",
    "cohort": {
        "training": {
            "n_scans": 83,
            "n_subjects": 77,
            "sites": {"basel": {"scans": 40, "subjects": 38, "age_range": [18.5, 71.0]}},
            "age_range": None,
            "age_mean": None,
            "age_sd": None,
        },
        "held_out": None,
    },
    "split": "by subject",
    "seed": 4711,
    "schedule": {"epochs": 19, "milestones": [10, 15], "lr": 0.0003},
    "metrics": {
        "restoration": {
            "before": {"value": 0.08125, "ci95": [0.07, 0.0925], "n": 13, "how": "one | two"},
            "after": {"value": 0.025, "n": 13},
        },
        "epochs_run": 19,
    },
}
MANIFEST: dict[str, Any] = {
    "intended_use": "Tests.",
    "licence": "CC0-1.0",
    "recipe": {"grid_shape": [64, 64, 64]},
    "statistics": {"brain_cm3": {"min": 950.0, "max": 1650.0, "mean": 1280.0, "sd": 110.0}},
    "age_bias": {"slope": 0.5, "intercept": 18.25, "n": 61, "how": "folds"},
    "models": [
        {"file": "harmonizer.onnx", "precision": "fp32", "parameters": 5256476, "parity": {"measured": []}}
    ],
}
