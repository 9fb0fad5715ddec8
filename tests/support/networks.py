"""Machines with an address each, as far as one machine goes: Linux's network namespaces on a bridge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

_TOOLS = ("unshare", "nsenter", "ip", "sleep")


@contextmanager
def machines(addresses: Sequence[str]) -> Iterator[list[list[str]]]:
    """Make a namespace for each address, such as '10.77.0.1/24', joined by a bridge in one of its own.

    Yields: for each the beginning of a command line that runs the rest of it there. The caller's own network
    is left alone, and no right is needed but to make user namespaces.
    """
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if sys.platform != "linux" or missing:
        pytest.skip(f"network namespaces need Linux and {', '.join(missing or _TOOLS)}")
    with ExitStack() as stack:
        switch = stack.enter_context(_namespace(["unshare", "--map-root-user", "--net"]))
        _run(switch, "ip link add br0 type bridge")
        _run(switch, "ip link set br0 up")
        inside = []
        for number, address in enumerate(addresses):
            machine = stack.enter_context(_namespace([*switch, "unshare", "--net"]))
            _run(switch, f"ip link add port{number} type veth peer name eth0 netns {machine[2]}")
            _run(switch, f"ip link set port{number} master br0 up")
            for command in ("link set lo up", f"addr add {address} dev eth0", "link set eth0 up"):
                _run(machine, f"ip {command}")
            inside.append(machine)
        yield inside


@contextmanager
def _namespace(make: list[str]) -> Iterator[list[str]]:
    """Make a namespace, which lives as long as a process in it; yield what enters it."""
    script = ["sh", "-c", "echo made; exec sleep infinity"]
    holder = subprocess.Popen([*make, *script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if said != "made\n":
            pytest.skip(f"no network namespace can be made here: {said.strip()}")
        yield ["nsenter", "--target", str(holder.pid), "--user", "--net", "--preserve-credentials"]
    finally:
        holder.kill()
        holder.communicate()


def _run(inside: list[str], command: str) -> None:
    done = subprocess.run([*inside, *command.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"`{command}` is not allowed here: {done.stderr.strip()}")
