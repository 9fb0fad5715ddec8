"""SuperNodes of one machine, a process each, forked from one that has imported what they need.

Started with their command lines, as ``flower-supernode`` takes them, in JSON. It ends when one of them does;
asked to end, when all have told the server that they leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from fedsim.engines import flower_cli, flower_internals


def run(commands: list[list[str]]) -> int:
    """Run the SuperNodes; return with what the first of them ended."""
    flower_internals.import_supernode()
    nodes = {_fork(command) for command in commands}
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        for node in nodes if not ending else ():  # a second signal would end them in the middle of it
            with contextlib.suppress(ProcessLookupError):
                os.kill(node, signal.SIGTERM)
        ending = True

    signal.signal(signal.SIGTERM, end)
    ended, status = os.wait()
    while ending and nodes - {ended}:
        nodes.discard(ended)
        ended, _ = os.wait()
    return os.waitstatus_to_exitcode(status)


def _fork(command: list[str]) -> int:
    """Start one; return its process, which a signal to this one's group does not reach."""
    node = os.fork()
    if node:
        return node
    os.setpgid(0, 0)
    flower_cli.end_with_parent()
    sys.argv = ["flower-supernode", *command]
    flower_internals.run_supernode()


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
