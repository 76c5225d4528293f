"""Where files of this user lie that no command names: caches, and networks converted once.

Nothing is made here, and nothing is promised about the folders: they may not be there, or not be writable.
"""

from __future__ import annotations

import os
from pathlib import Path


def user_folder(variable: str, *below_home: str) -> Path | None:
    """The folder that the environment variable names, else the one below the user's home.

    None where there is neither: a container may run as a user without a name, and without $HOME.
    """
    if given := os.environ.get(variable):
        return Path(given)
    try:
        return Path.home().joinpath(*below_home)
    except RuntimeError:
        return None
