"""A node's own process: it answers with the ClientApp installed here, never with code that came with a run.

Flower sends a run's app along, and a SuperNode executes it: whoever starts the run decides what a party's
machine does. Here the command that a SuperNode starts for every message (``flwr-clientapp``, found on its
PATH) hands its call to this process, which has imported the party's own fedsim and forks: each message has a
process of its own, which ends with it, and waits for no import.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

from fedsim.engines import flower_internals

SOCKET = "node.sock"
READY = "node.ready"


def write_launcher(folder: Path) -> Path:
    """Write the ``flwr-clientapp`` that asks the process in ``folder``; return its folder, for the PATH."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    command = bin_folder / "flwr-clientapp"
    asks = [sys.executable, "-I", "-S", str(Path(__file__).with_name("ask_node.py")), str(folder / SOCKET)]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(asks)} "$@"\n', encoding="utf-8")
    command.chmod(0o700)
    return bin_folder


def serve(folder: Path, run: Path | None = None, deployed: Path | None = None) -> None:
    """Answer calls at the socket in ``folder`` until this process is asked to end.

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
    Path(SOCKET).unlink(missing_ok=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is not waited for
    with socket.socket(socket.AF_UNIX) as server:
        previous = os.umask(0o077)
        server.bind(SOCKET)
        os.umask(previous)
        server.listen(64)
        Path(READY).touch()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection, app)
            connection.close()


def _answer(connection: socket.socket, app: flower_internals.ClientApp) -> None:
    """In a process of its own: do what ``flwr-clientapp`` does with this command line, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        sys.argv = ["flwr-clientapp", *json.loads(connection.makefile().readline())]
        flower_internals.run_client_app(app)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        with contextlib.suppress(OSError):
            connection.sendall(f"{code}\n".encode())
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
