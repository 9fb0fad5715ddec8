"""What all tests share: where the real data are, one thread for torch, a Ctrl-C that is heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="fedsim-tests-")  # no key among the person's own files

import absl.logging
import hypothesis
import torch
from support.federation import Federation, federate, initial, noise

from attacks.views.participant import ParticipantView
from fedsim.core import parallel
from fedsim.core.data.records import Records

# A first call that imports a package, or a busy machine, is no failure of a property.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# When uvicorn configures logging, absl's handler closes its stream unless that is one of Python's own. What
# pytest captures with, which stood for stderr when absl was imported, would be gone for all later tests.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# The workers of all tests are forked from one server, which so imports once what most of them need.
parallel.PRELOADED += ["clients.client_app", "torch._dynamo"]

# A shell's background jobs are deaf to Ctrl-C, and so would be the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if getattr(signal, "SIGHUP", None) and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as below `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def records() -> Callable[..., Records]:
    return noise


@pytest.fixture(scope="session")
def overfitted() -> Federation:
    """Three parties that learnt their records by heart."""
    return federate(rounds=12, epochs=60, lr=0.5)


@pytest.fixture(scope="session")
def early() -> Federation:
    """A federation of few short rounds, of which the last loss tells little yet and the steps tell all."""
    return federate(rounds=10, epochs=1, lr=0.05)


@pytest.fixture
def untrained(overfitted: Federation) -> ParticipantView:
    """The same view of models that never saw a record."""
    view = overfitted.view
    never = initial(view.settings)
    return ParticipantView(view.settings, {0: never, 1: never}, {}, view.own_train, view.own_heldout)


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Run a program in a new interpreter and return what it printed."""

    def run(program: str) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return done.stdout

    return run
