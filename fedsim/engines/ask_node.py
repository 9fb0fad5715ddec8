"""What a SuperNode starts in place of ``flwr-clientapp``: it passes the call on to the node's own process.

Run by its path, and on the standard library alone, so that a message does not wait for imports.
"""

import json
import os
import socket
import sys


def main() -> int:
    """Send the command line to the socket named first; return what the answer's process ended with."""
    folder, name = os.path.split(sys.argv[1])
    os.chdir(folder)  # a socket's path may have about a hundred characters
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(name)
        connection.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
        return int(connection.makefile().readline() or 1)  # nothing where the process was killed


if __name__ == "__main__":
    sys.exit(main())
