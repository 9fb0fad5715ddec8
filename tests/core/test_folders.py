from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.core import folders


def test_the_environment_decides_where_caches_and_data_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", "~/x")
    monkeypatch.setenv("FEDSIM_DATA", "/data")
    assert folders.cache() == Path.home() / "x" and folders.downloads() == Path.home() / "x" / "data"
    assert folders.named_data() == Path("/data")
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.delenv("FEDSIM_DATA")
    assert folders.cache().name == "fedsim" and folders.named_data() is None
