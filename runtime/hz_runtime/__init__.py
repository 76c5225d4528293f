"""Run hz bundles: harmonize T1-weighted brain MRI and predict age, without torch.

    from hz_runtime import load_bundle, open_networks
    networks = open_networks(load_bundle("reference.hz"))

Names are imported on first use, so that `import hz_runtime` stays free of numpy and of every engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hz_runtime.bundle.store import load_bundle
    from hz_runtime.errors import HzError
    from hz_runtime.inference.open import NetworkOptions, open_networks
    from hz_runtime.io.volume import Volume, read_volume, write_volume
    from hz_runtime.model_space.recipe import Recipe

    __version__: str

_HOME = {
    "HzError": "hz_runtime.errors",
    "NetworkOptions": "hz_runtime.inference.open",
    "Recipe": "hz_runtime.model_space.recipe",
    "Volume": "hz_runtime.io.volume",
    "load_bundle": "hz_runtime.bundle.store",
    "open_networks": "hz_runtime.inference.open",
    "read_volume": "hz_runtime.io.volume",
    "write_volume": "hz_runtime.io.volume",
}

__all__ = [
    "HzError",
    "NetworkOptions",
    "Recipe",
    "Volume",
    "__version__",
    "load_bundle",
    "open_networks",
    "read_volume",
    "write_volume",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def _version() -> str:
    """The installed distribution's version; "0+unknown" where hz runs from a bare source tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hz-mri")
    except PackageNotFoundError:
        return "0+unknown"
