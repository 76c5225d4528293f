"""A user's folders, and a user who has none: no $HOME, and a number that no name belongs to."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from hz_runtime.backends.built_engines import _kept
from hz_runtime.bundle.engine_cache import EngineCache, default_cache
from hz_runtime.bundle.store import load_bundle
from hz_runtime.errors import BackendError, UsageError
from hz_runtime.io.user_folders import user_folder
from hz_runtime.preparation.network_mask import default_place, find_mask_network


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HZ_ENGINES", "HZ_BRAIN_MASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()


def test_the_variable_comes_before_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/a")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert user_folder("XDG_DATA_HOME", ".local", "share") == Path("/people/a/.local/share")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_folder("XDG_DATA_HOME", ".local", "share") == Path("/data")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_no_place_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_folder("XDG_DATA_HOME", ".local") is None
    assert default_place() is None and default_cache() is None
    monkeypatch.setenv("HZ_ENGINES", "/engines")
    assert default_cache() == Path("/engines")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_no_engine_is_kept_and_none_found(tiny_bundle: Path) -> None:
    cache = EngineCache()
    assert cache.find("k") is None
    assert _kept(cache, "tensorrt", load_bundle(tiny_bundle).models[0]) == []
    with pytest.raises(BackendError, match="this user has no home") as error, cache.lock("k"):
        pass
    assert "HZ_ENGINES" in error.value.remedy


@pytest.mark.usefixtures("homeless")
def test_without_a_home_heads_are_prepared_without_a_network(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert find_mask_network(None, load_bundle(tiny_bundle)) is None
    with pytest.raises(UsageError, match="no brain-mask network"):
        find_mask_network(None, load_bundle(tiny_bundle), needed=True)
