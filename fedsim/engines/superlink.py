"""Flower's deployment engine on this machine: a real SuperLink, and a SuperNode for each party.

As between organisations: TLS by an authority made for the run, nodes that prove who they are by a key, a new
process for every message, of the code that is installed here (`fedsim.engines.node`). Certificates and keys
live in a home of this run, which goes with it. Flower keeps the clients' states, so a game that was stopped
starts again from round 1 (to the same result).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fedsim.core.errors import FedsimError
from fedsim.core.run_directory import RunDirectory
from fedsim.engines import credentials, flower_cli, node
from fedsim.engines.flower_cli import FlowerHome
from fedsim.engines.own_code import environment

LET_IN = b"SuperNode ID:"
"""What a SuperNode says once its server has let it in."""

_VALID_DAYS = 30.0  # no run takes longer
_START_SECONDS = 120.0
_POLL_SECONDS = 0.1


def run_game(run: RunDirectory, game: int) -> None:
    """Run one game of ``run`` on Flower's deployment engine.

    Raises:
        FedsimError: the run failed; the text names Flower's log and its last error.
    """
    run.forget_checkpoint(game)
    parties = list(run.manifest["parties"])
    with flower_cli.private_home(run.path / f"flower-{game:03d}.log", environment(run)) as home:
        clients = start_clients(home, "run", run.path)
        tls = credentials.write_server(home.path, ["127.0.0.1", "localhost"], _VALID_DAYS)
        options = [*tls.options, "--enable-supernode-auth"]
        keys = [home.path / f"node-{partition}" for partition in range(len(parties))]
        publics = [credentials.write_node_key(key) for key in keys]
        with flower_cli.superlink(home, options, tls.authority) as (address, server):
            register(home, publics)
            nodes = start_nodes(
                home,
                address,
                tls.authority,
                {
                    key: f"partition-id={partition} num-partitions={len(parties)}"
                    for partition, key in enumerate(keys)
                },
            )
            watched = {"the SuperLink": server, "the clients' process": clients, "a SuperNode": nodes}
            try:
                await_clients(home, clients)
                config = f"run={json.dumps(str(run.path))} game={game}"
                flower_cli.run_app(home, flower_cli.write_app(home), config, watched=watched)
            finally:
                for process in (nodes, clients):
                    process.terminate()  # at once: each takes its time
                for process in (nodes, clients):
                    flower_cli.end(process)


def register(home: FlowerHome, public_keys: list[Path]) -> None:
    """Let the SuperLink know the nodes' keys: all in one process, each would take seconds to start.

    Raises:
        FedsimError: the SuperLink does not take one of them.
    """
    script = (
        "import sys\n"
        "from flwr.cli.app import app\n"
        "for key in sys.argv[2:]:\n"
        "    app(['supernode', 'register', key, sys.argv[1]], standalone_mode=False)\n"
    )
    command = [sys.executable, "-c", script, flower_cli.CONNECTION, *map(str, public_keys)]
    done = subprocess.run(
        command, env=dict(home.environment), cwd=home.path, capture_output=True, text=True, check=False
    )
    with home.log.open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    if done.returncode or done.stdout.count("registered successfully") != len(public_keys):
        raise FedsimError(
            f"the SuperLink did not register the nodes: {flower_cli.last_error(home.log)} (see {home.log})"
        )


def start_clients(home: FlowerHome, kind: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the process from which every message's own is forked, for all SuperNodes of this machine.

    It reads and imports for seconds, while others can be started: `await_clients` before they are asked.

    kind: 'run', of whose folder the parties are, or 'node', of whose folder the one party is
    """
    (home.path / node.NODES).mkdir()
    return home.start([sys.executable, "-m", "fedsim.engines.node", str(home.path), kind, str(folder)])


def await_clients(home: FlowerHome, clients: subprocess.Popen[bytes]) -> None:
    """Wait until the clients' process takes messages.

    Raises:
        FedsimError: it did not come up.
    """
    deadline = time.monotonic() + _START_SECONDS
    while not (home.path / node.READY).exists():
        if clients.poll() is not None or time.monotonic() > deadline:
            raise FedsimError(
                f"the clients' process did not start: {flower_cli.last_error(home.log)} (see {home.log})"
            )
        time.sleep(_POLL_SECONDS)


def start_nodes(
    home: FlowerHome, address: str, authority: Path, nodes: Mapping[Path, str]
) -> subprocess.Popen[bytes]:
    """Start SuperNodes, for which the clients' process answers; return what ends as soon as one of them does.

    nodes: by its private key, what ``flower-supernode --node-config`` takes
    """
    commands = []
    for (key, config), port in zip(nodes.items(), flower_cli.free_ports(len(nodes)), strict=True):
        commands.append([
            "--isolation", "process", "--root-certificates", str(authority), "--superlink", address,
            "--host", "127.0.0.1", "--port", str(port), "--auth-supernode-private-key", str(key),
            "--node-config", config,
        ])  # fmt: skip
        (home.path / node.NODES / str(port)).touch()
    return home.start([sys.executable, "-m", "fedsim.engines.supernodes", json.dumps(commands)])


def forget_nodes(home: FlowerHome) -> None:
    """Let the clients' process end what it does for SuperNodes that are gone."""
    for file in (home.path / node.NODES).iterdir():
        file.unlink()
