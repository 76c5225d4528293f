"""The shell of a page: its head, its policy, its assets.

A page forbids itself to load anything, and to run anything but the scripts of this package, each named by its
hash (Content-Security-Policy). What comes from outside is escaped by whoever writes it into the body.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

NOTICE = (
    "Research use only: the pictures, ages, probabilities and flags on this page are not for diagnosis "
    "or any other clinical use."
)


def page(
    title: str, body: str, scripts: Sequence[str] = (), allowed: Sequence[str] = (), more_style: str = ""
) -> str:
    """A whole page.

    title, body : HTML.  scripts : names of assets that run at the end of the page.
    allowed : source of further scripts that those may add to the page.
    more_style : CSS behind that of every page.
    """
    style = asset("page.css") + more_style
    running = [asset(name) for name in scripts]
    runs = " ".join(f"'{_hash(text)}'" for text in (*running, *allowed)) or "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src {runs}; "
        "base-uri 'none'; form-action 'none'"
    )
    tail = "".join(f"<script>{text}</script>\n" for text in running)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}{tail}</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("hz_runtime.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
