"""A node's own process: it answers with the ClientApp installed here, never with code that came with a run.

Flower sends a run's app along, and the SuperExec beside a SuperNode executes it: whoever starts the run
decides what a party's machine does. Here no SuperExec is started. This process, which has imported the
party's own fedsim, asks the machine's SuperNodes for messages to its ClientApp and forks: each message has a
process of its own, which ends with it, and waits for no import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from fedsim.core.patience import Patience
from fedsim.engines import flower_cli, flower_internals
from fedsim.engines.flower_internals import ClientApp, TasksOfNode

READY = "clients.ready"
NODES = "nodes"
"""Folder with an empty file for each SuperNode that is asked, named after its port."""

_SHORTEST, _LONGEST = 0.02, 1.0
"""Seconds between two looks for messages; the second is SuperExec's."""


def serve(folder: Path, run: Path | None = None, deployed: Path | None = None) -> None:
    """Answer messages to the SuperNodes named in ``folder`` until this process is asked to end.

    run: whose model and privacy decide what is imported beforehand; None to leave it to the first message
    deployed: folder of the one party whose node this is; its records are read here, once
    """
    from clients.client_app import app  # before the first fork
    from clients.warm_up import warm_up

    if run is not None:
        from fedsim.core.run_directory import RunDirectory

        warm_up(RunDirectory.open(run).scenario)
    if deployed is not None:
        from clients.deployed import load

        warm_up(load(deployed).scenario)
    flower_internals.import_client_runtime()
    os.chdir(folder)
    Path(READY).touch()
    _answer_all(Path(NODES), app, run)


def _answer_all(nodes: Path, app: ClientApp, run: Path | None) -> None:
    tasks: dict[int, TasksOfNode] = {}
    at_work: dict[int, int] = {}  # process → the port of whose message it answers
    patience = Patience(_SHORTEST, _LONGEST)
    while True:
        ports = {int(file.name) for file in nodes.iterdir()}
        tasks = {port: tasks.get(port) or TasksOfNode(port) for port in ports}
        for port, of_node in tasks.items():
            if token := of_node.take():
                at_work[_fork(of_node.address, token, app, run)] = port
                patience.renew()
        _end_orphans(at_work, ports)
        patience.wait()


def _end_orphans(at_work: dict[int, int], ports: set[int]) -> None:
    """Forget processes that have ended, and kill those whose SuperNode is gone: nobody takes their answer."""
    for process, port in list(at_work.items()):
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            del at_work[process]
        elif port not in ports:
            os.kill(process, signal.SIGKILL)


def _fork(address: str, token: str, app: ClientApp, run: Path | None) -> int:
    """Answer a message in a process of its own, as ``flwr-clientapp`` does; return that process's id."""
    from clients import isolation

    parent = str(os.getpid())
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        flower_cli.end_with_parent()
        if run is not None and isolation.wanted():
            isolation.start_worker(run, forked=True)  # while it has no threads
        options = ["--runtime-api-address", address, "--token", token, "--insecure", "--parent-pid", parent]
        sys.argv = ["flwr-clientapp", *options]
        flower_internals.run_client_app(app)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _main(home: str, kind: str, folder: str) -> None:
    """The command line: a home, and the folder of a ``run`` or of a ``node``."""
    if kind == "node":
        serve(Path(home), deployed=Path(folder))
    else:
        serve(Path(home), Path(folder))


if __name__ == "__main__":
    _main(*sys.argv[1:])
