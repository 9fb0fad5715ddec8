"""Shadow federations on a cluster of two nodes, simulated on one machine.

Whoever joins a cluster may be ended with it: each test does so in a process of its own (`apart`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.long import LONG
from support.runs import finished_run, prepared_run
from support.shadow_plans import members_of, small_plan, some_pool, w_0

from attacks.shadows.simulate import Laboratory, ShadowRequest, train_shadows
from fedsim.core.cluster import ATTEMPTS, joined
from fedsim.core.errors import InputError
from fedsim.core.parallel import Workers
from fedsim.engines import flower_cli
from fedsim.engines.settings import EngineOptions
from fedsim.runs import play

pytest.importorskip("ray", reason="Ray is not installed; `make test` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flower")]


def commands() -> dict[int, str]:
    """How each process is called and with what environment, as far as may be seen."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parts = [(folder / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:
            continue
        found[int(folder.name)] = b" ".join(parts).decode(errors="replace")
    return found


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes of one core: its address. Whatever it started has ended after it."""
    [port] = flower_cli.free_ports(1)
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path, for sockets
        common = ["--num-cpus", "1", "--block", "--disable-usage-stats", "--object-store-memory", "100000000"]
        head = ["--head", "--port", str(port), "--include-dashboard=false", "--temp-dir", folder]
        nodes = []
        try:
            for options in (head, ["--address", address]):
                command = [flower_cli.tool("ray"), "start", *options, *common]
                nodes.append(subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                    env={**os.environ, "RAY_NODE_OF_TEST": folder},
                ))  # fmt: skip
                deadline = time.monotonic() + 60
                while not (Path(folder) / "ray_current_cluster").exists():
                    assert nodes[-1].poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            yield address
            assert [node.poll() for node in nodes] == [None, None], "the cluster did not outlive the shadows"
        finally:
            for node in reversed(nodes):
                node.terminate()  # and so all of its processes
                node.wait(timeout=30)
        deadline = time.monotonic() + 20
        while left := [pid for pid, text in commands().items() if folder in text]:
            assert time.monotonic() < deadline, f"processes of the cluster are left: {left}"
            time.sleep(0.2)


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of this module in a process of its own; what it raises is raised here."""
    with Workers(1) as workers:
        list(workers.map(function, [arguments], timeout=180))


def wait_for_two(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        with joined(address) as cluster:
            if (cluster.machines, cluster.cores) == (2, 2):
                return
        assert time.monotonic() < deadline, "the second node has not joined"
        time.sleep(0.5)


def kill_once(name: str, folder: str) -> str:
    """Take the worker along the first time that any task is called."""
    with (Path(folder) / name).open("a") as calls:
        calls.write(".")
    if not (Path(folder) / "killed").exists():
        (Path(folder) / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def raising(folder: str) -> None:
    with (Path(folder) / "raising").open("a") as calls:
        calls.write(".")
    raise InputError("wrong")


def killing(folder: str) -> None:
    with (Path(folder) / "killing").open("a") as calls:
        calls.write(".")
    os.kill(os.getpid(), signal.SIGKILL)


def request(private: bool) -> ShadowRequest:
    plan = small_plan(private=[1] if private else [], training={"epochs": 300})
    pool = some_pool(plan)
    return ShadowRequest(plan, w_0(plan), pool, members_of(plan, 8, pool), pool, (1, 3), seed=3)


def test_a_block_whose_worker_is_killed_is_done_again_and_shadows_are_the_same_bits(two_nodes: str) -> None:
    apart(train_while_a_worker_is_killed, two_nodes)


def train_while_a_worker_is_killed(two_nodes: str) -> None:
    wait_for_two(two_nodes)
    asked, killed = request(private=True), []
    expected = train_shadows(asked, Laboratory(2))
    told: list[int] = []

    def kill_a_worker() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            # Ray's workers name themselves after the task that they are at.
            at_work = [pid for pid, text in commands().items() if text.startswith("ray::_run_alone")]
            for pid in at_work[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    actual = train_shadows(
        asked, Laboratory(1, cluster=two_nodes, progress=lambda done, of: told.append(done), max_bytes=1)
    )
    killer.join()
    assert killed, "no worker was seen at work"
    np.testing.assert_array_equal(actual.phi, expected.phi)
    assert told == list(range(9)), "each block of one shadow counts once, whatever became of its worker"


@LONG
def test_ctrl_c_ends_the_blocks_of_a_cluster(two_nodes: str) -> None:
    apart(train_until_ctrl_c, two_nodes)


def train_until_ctrl_c(two_nodes: str) -> None:
    wait_for_two(two_nodes)

    def interrupt(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    asked = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_shadows(request(private=True), Laboratory(cluster=two_nodes, progress=interrupt, max_bytes=1))
    while any(text.startswith("ray::_run_alone") for text in commands().values()):
        assert time.monotonic() < asked + 20, "a worker is still at it"
        time.sleep(0.2)


@LONG
def test_a_run_of_the_default_engine_has_its_shadows_trained_there(two_nodes: str, tmp_path: Path) -> None:
    apart(run_with_shadows_there, two_nodes, tmp_path)


def run_with_shadows_there(two_nodes: str, folder: Path) -> None:
    settings = {"federation": {"rounds": 2}, "adversary": {"attacks": ["lira"], "shadows": 16}}
    with pytest.MonkeyPatch.context() as here:
        here.setenv("FEDSIM_CACHE", str(folder / "cache-a"))
        alone = finished_run(folder, out="a", **settings)
        here.setenv("FEDSIM_CACHE", str(folder / "cache-b"))
        here.setattr("attacks.shadows.simulate._run_block", None)  # here nothing can be trained
        run = prepared_run(folder, out="b", **settings)
        play.federate(run, options=EngineOptions(ray_address=two_nodes))
    assert not run.has("not_run")
    pd.testing.assert_frame_equal(run.table("scores"), alone.table("scores"))


@LONG
def test_only_what_was_lost_is_done_again_and_not_for_ever(two_nodes: str, tmp_path: Path) -> None:
    apart(lose_workers, two_nodes, str(tmp_path))
    assert len((tmp_path / "a").read_text()) == 2
    assert (tmp_path / "raising").read_text() == "."
    assert len((tmp_path / "killing").read_text()) == ATTEMPTS


def lose_workers(two_nodes: str, folder: str) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes have no tests
    with joined(two_nodes) as cluster:
        started, done = cluster.run(kill_once, [("a", folder)])
        assert (started.state, done.value) == ("started", "a")
        _, raised = cluster.run(raising, [(folder,)])
        _, lost = cluster.run(killing, [(folder,)])
    assert isinstance(raised.error, InputError)
    assert "a worker of the cluster was lost" in str(lost.error)
