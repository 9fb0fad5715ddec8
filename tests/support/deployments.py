"""Deployments on this machine: folders of a server and its nodes, and the commands that run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.deploy import folders
from fedsim.deploy.folders import Wanted
from fedsim.engines import flower_cli
from fedsim.runs import prepare
from support.runs import scenario


def written(folder: Path, settings: dict[str, Any], **wanted: Any) -> dict[str, Path]:
    """Write a trial deployment of the tests' small scenario; return each one's folder, as `folders.write`."""
    wanted = {"port": flower_cli.free_ports(1)[0], "with_records": True, **wanted}
    prepared = prepare.check(scenario(folder, **settings), None)
    return folders.write(prepared, folder / "federation", Wanted(**wanted))


@contextmanager
def started(kind: str, folder: Path, inside: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """`fedsim deploy server` or `node`, in the folder's own parent and with nothing else's path.

    inside: a command that starts it, as one that enters a network namespace does
    """
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "fedsim", "deploy", kind, folder.name],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
