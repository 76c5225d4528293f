"""The self-test that a bundle carries: its scan, and what its files answer. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hz_export.differences import TOLERANCES
from hz_runtime.bundle.store import Bundle, load_bundle, write_bundle
from hz_runtime.inference.expected_answers import ANSWERS, ENTRY, SCAN, make_answers
from hz_runtime.inference.self_test_head import scan_bytes
from hz_runtime.io.atomic import sha256_bytes
from hz_runtime.model_space.recipe import Recipe

if TYPE_CHECKING:
    from hz_runtime.bundle.signing_keys import SigningKey


def self_test_files(
    recipe: Mapping[str, Any], models: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The manifest's "self_test" and the files that it names.

    recipe, models : of the manifest.  files : name -> contents, those of the models among them.
    Raises BackendError where no CPU engine is installed, or one fails.
    """
    # Engines stray further from each other on the made-up head than on scans (2e-4 measured, of float32), but
    # less than bfloat16 does (weights alone 5e-4).
    tolerances = {
        name: {key: 3 * getattr(one, key) for key in ("mean", "p999", "years", "probability")}
        for name, one in TOLERANCES.items()
    }
    asked = [({**e, "sha256": sha256_bytes(files[e["file"]])}, files[e["file"]]) for e in models]
    answers = make_answers(scan_bytes(), Recipe.from_dict(dict(recipe)), asked, tolerances)
    return dict(ENTRY), {SCAN: answers.scan, ANSWERS: answers.to_json()}


def add_self_test(path: Path, key: SigningKey | None = None) -> Bundle:
    """Give a finished bundle a self-test, in place of one that it has; its id is another then.

    key : signs it; None leaves it unsigned, also where it was signed.
    Raises BundleError where it is damaged, BackendError as `self_test_files` does.
    """
    bundle = load_bundle(path)
    files = {name: bundle.read_listed(name) for name in bundle.files if name not in (SCAN, ANSWERS)}
    manifest = dict(bundle.raw)
    manifest["self_test"], added = self_test_files(manifest["recipe"], manifest["models"], files)
    return write_bundle(path, manifest, {**files, **added}, overwrite=True, key=key)
