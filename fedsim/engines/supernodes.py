"""SuperNodes of one machine, a process each, forked from one that has imported what they need.

Started with their command lines, as ``flower-supernode`` takes them, in JSON; it ends when one of them does.
"""

from __future__ import annotations

import json
import os
import sys

from fedsim.engines import flower_cli, flower_internals


def run(commands: list[list[str]]) -> int:
    """Run the SuperNodes; return with what the first of them ended."""
    flower_internals.import_supernode()
    for command in commands:
        if os.fork() == 0:
            flower_cli.end_with_parent()
            sys.argv = ["flower-supernode", *command]
            flower_internals.run_supernode()
    return os.waitstatus_to_exitcode(os.wait()[1])


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
