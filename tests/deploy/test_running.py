"""A server or a node that was killed is started again: what it left running ends first."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from support.deployments import written

from fedsim.core import files
from fedsim.core.errors import InputError
from fedsim.deploy import running
from fedsim.engines.flower_cli import private_home

SLEEP = [shutil.which("sleep") or "", "60"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are told by /proc")
def test_what_a_killed_owner_left_running_is_ended_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        private_home(log, {}, owner=tmp_path) as killed,
        private_home(log, {}, owner=tmp_path / "x") as other,
    ):
        left, others = killed.start(SLEEP), other.start(SLEEP)
        with private_home(log, {}, owner=tmp_path):
            assert left.wait(timeout=10) == -signal.SIGKILL
            assert others.poll() is None
    assert others.wait(timeout=10) == -signal.SIGTERM


def test_one_folder_is_run_once_at_a_time(tmp_path: Path) -> None:
    homes = written(tmp_path, {"parties": {"count": 2}})
    with (
        files.locked(homes["server"], "?"),
        pytest.raises(InputError, match=r"server: this server is running"),
    ):
        running.serve(homes["server"])
    node = homes["hospital-2"]
    with (
        files.locked(node, "?"),
        pytest.raises(InputError, match=r"hospital-2: this node is running already"),
    ):
        running.join(node)
