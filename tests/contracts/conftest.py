"""The server on which the contracts run for the engine `remote`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from small_kserve import SmallKServe


@pytest.fixture(scope="session")
def kserve() -> Iterator[SmallKServe]:
    server = SmallKServe()
    yield server
    server.close()


@pytest.fixture
def remote_server(kserve: SmallKServe, monkeypatch: pytest.MonkeyPatch) -> SmallKServe:
    """The server of this session, which HZ_REMOTE names."""
    monkeypatch.setenv("HZ_REMOTE", kserve.url)
    return kserve
