"""Opening a bundle for a command, held to the keys that its user trusts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hz_cli import render

if TYPE_CHECKING:
    from hz_runtime.bundle.store import Bundle
    from hz_runtime.bundle.trust import Trust


def open_bundle(path: Path | None, trust: Trust, quiet: bool) -> Bundle:
    """`load_bundle`, which also says of whom the bundle is where keys are trusted."""
    from hz_runtime.bundle.store import load_bundle

    bundle = load_bundle(path, trust)
    if trust.keys and not quiet:
        render.say(f"{bundle.path.name}: {signed_by(bundle, trust)}", err=True)
    return bundle


def signed_by(bundle: Bundle, trust: Trust) -> str:
    """In words, which trusted key signed a bundle."""
    for key in trust.keys:
        if key.key == bundle.signer:
            return f"signed with the key of {key.file} ({key.key[:12]}...)"
    return "not signed"
