"""The networks that can be imported, by name. To add one: a module with its `NETWORK`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hz_export.imported import brainagenext, deepbrainnet, iguane, sfcn
from hz_export.imported.published import Published
from hz_runtime.errors import UsageError

IMPORTABLE: Mapping[str, Published] = MappingProxyType(
    {one.NETWORK.name: one.NETWORK for one in (iguane, sfcn, brainagenext, deepbrainnet)}
)


def importable(name: str) -> Published:
    """The network of this name. Raises UsageError naming those that there are."""
    if name not in IMPORTABLE:
        raise UsageError(
            f"hz-export knows no network {name[:60]!r}; it knows {', '.join(IMPORTABLE)}.",
            "hz-export import --list",
        )
    return IMPORTABLE[name]
