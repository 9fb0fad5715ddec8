"""The server and a node of a deployment, each a command that stays until it is stopped or all is done."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from clients import node as switches
from clients.deployed import FOLDER, LEDGER, read_node, scenario_of
from fedsim.core import files
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario import reading
from fedsim.deploy.folders import AUTHORITY, KEY, RUN, SETTINGS, ServerSettings
from fedsim.engines import credentials, flower_cli, superlink
from fedsim.engines.flower_cli import FlowerHome
from fedsim.engines.own_code import isolation
from fedsim.runs import integrity

LOG = "flower.log"

_KNOCKS, _FIRST_KNOCKS, _KNOCK_SECONDS = 40, 10, 3.0
"""How often, and how far apart, a node that was let in once asks to be let in again, and one that never was:
a server that has just started answers before it knows all keys."""

Say = Callable[[str], object]


def read_server(folder: Path) -> ServerSettings:
    """Read ``server.toml`` of the server's folder.

    Raises:
        InputError: in one sentence, what is wrong.
    """
    return reading.read_settings(folder / SETTINGS, ServerSettings)


def serve(folder: Path, say: Say = lambda text: None) -> RunDirectory:
    """Run the federation of a server's folder: let its nodes in, train, keep the models.

    One that was stopped goes on after its last whole round.

    Returns: the run, complete.

    Raises:
        FedsimError: the run failed, was complete already, or is under way.
    """
    folder = folder.resolve()
    settings, run = read_server(folder), RunDirectory.open(folder / RUN)
    if run.manifest.get("complete"):
        raise InputError(f"{run.path}: this federation has been trained; make new folders for another one")
    tls = credentials.ServerFiles(folder / AUTHORITY, folder / "server.pem", folder / "server.key")
    publics = sorted((folder / "nodes").glob("*.pub"))
    with (
        files.locked(folder, f"{folder}: this server is running already"),
        flower_cli.private_home(folder / LOG, {}, owner=folder) as home,
    ):
        run.update_manifest(node_patience=settings.wait)
        options = [*tls.options, "--enable-supernode-auth"]
        with flower_cli.superlink(
            home, options, tls.authority, settings.host, settings.port, on_disk=True
        ) as (_, server):
            superlink.register(home, publics)
            say(f"listening on {settings.host}:{settings.port} for {len(publics)} nodes{_so_far(run)}")
            app = flower_cli.write_app(home, "fedsim.deploy.server_app:app")
            config = f"run={json.dumps(str(run.path))} game=0"
            flower_cli.run_app(home, app, config, watched={"the SuperLink": server})
    run.update_manifest(complete=True)
    integrity.note(run, "models", "rounds.parquet")
    return run


def _so_far(run: RunDirectory) -> str:
    checkpoint = run.read_checkpoint(0)
    return "" if checkpoint is None else f"; going on after round {checkpoint.round}"


def join(folder: Path, say: Say = lambda text: None) -> None:
    """Run the node of a party's folder until it is stopped.

    Once it was let in it outlives its server: a SuperNode ends when the server that it knew is gone and
    another is in its place, which knows it by its key alone, and is started anew.

    Raises:
        FedsimError: its process ended, or its SuperNode did and was not let in (again); or it runs already.
    """
    folder = folder.resolve()
    settings, scenario = read_node(folder), scenario_of(folder)
    with (
        files.locked(folder, f"{folder}: this node is running already"),
        flower_cli.private_home(folder / LOG, isolation(scenario), owner=folder) as home,
    ):
        clients = superlink.start_clients(home, "node", folder)
        superlink.await_clients(home, clients)
        say(f"{settings.party}: asking {settings.server} for work; stop it with Ctrl-C or SIGTERM")
        try:
            attempts = _FIRST_KNOCKS
            while attempts > 0:
                attempts = _KNOCKS if _work(home, clients, folder) else attempts - 1
                time.sleep(_KNOCK_SECONDS if attempts else 0)
        finally:
            flower_cli.end(clients)
        raise FedsimError(f"the SuperNode ended: {flower_cli.last_error(home.log)} (see {home.log})")


def _work(home: FlowerHome, clients: subprocess.Popen[bytes], folder: Path) -> bool:
    """Run the node's SuperNode to its end; return whether it was let in before.

    Raises:
        FedsimError: the node's own process ended.
    """
    settings, said_before = read_node(folder), home.log.stat().st_size
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in _configuration(folder).items())
    node = superlink.start_nodes(home, settings.server, folder / AUTHORITY, {folder / KEY: config})
    try:
        while node.poll() is None:
            if clients.poll() is not None:
                raise FedsimError(
                    f"the node's process ended: {flower_cli.last_error(home.log)} (see {home.log})"
                )
            time.sleep(0.2)
    finally:
        flower_cli.end(node)
        superlink.forget_nodes(home)
    with home.log.open("rb") as log:
        log.seek(said_before)
        return superlink.LET_IN in log.read()


def _configuration(folder: Path) -> dict[str, str | int | float]:
    """Return Flower's node configuration, which no server's message can change."""
    settings = read_node(folder)
    config: dict[str, str | int | float] = {
        FOLDER: str(folder),
        "partition-id": settings.partition,
        switches.LEDGER: str(folder / LEDGER),
    }
    if settings.epsilon_budget is not None:
        config |= {switches.BUDGET: settings.epsilon_budget, switches.DELTA: settings.epsilon_delta}
    return config
