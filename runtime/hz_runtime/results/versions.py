"""The versions of hz, Python and the packages that shape a result."""

from __future__ import annotations

import contextlib
import platform
import sys


def hz_version() -> str:
    """Version of this package."""
    import hz_runtime

    return str(getattr(hz_runtime, "__version__", "unknown"))


def versions() -> dict[str, str]:
    """Versions that shape a result, for run.json."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"hz": hz_version(), "python": platform.python_version()}
    for package in ("numpy", "isal"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {**found, "platform": f"{sys.platform} {platform.machine()}"}
