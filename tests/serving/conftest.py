from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import Clock, a_run, opened

from fedsim.core.run_directory import RunDirectory
from fedsim.serving.app import Service


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return a_run(tmp_path_factory.mktemp("served"))


@pytest.fixture
def run(finished: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A finished run that nobody has served yet."""
    return RunDirectory(Path(shutil.copytree(finished.path, tmp_path / "served-run")))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(run: RunDirectory, clock: Clock) -> Iterator[Service]:
    """The run's service, with a clock that stands."""
    service = opened(run, clock)
    yield service
    service.database.close()
