"""What all tests share: where the real data are, one thread for torch, a Ctrl-C that is heard."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs are deaf to Ctrl-C, and so would be the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets; the test is skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDSIM_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder} (set FEDSIM_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another one, or the person at this machine, has simulated before."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
