"""The engines that run a bundle's networks, behind one protocol (base.py); each is imported on use."""

from __future__ import annotations

from hz_runtime.backends.base import Backend, describe, installed, open_backend
from hz_runtime.backends.fallback import choose

__all__ = ["Backend", "choose", "describe", "installed", "open_backend"]
