"""Flower's own simulation engine (Ray), through ``flwr run``, with the same two apps unchanged.

Flower keeps the clients' states, so a game that was stopped starts again from round 1 (to the same result).
"""

from __future__ import annotations

import json

from fedsim.core.run_directory import RunDirectory
from fedsim.engines import flower_cli
from fedsim.engines.own_code import environment
from fedsim.engines.settings import EngineOptions


def run_game(run: RunDirectory, game: int, workers: int = 1, options: EngineOptions | None = None) -> None:
    """Run one game of ``run`` under Ray; ``workers > 1`` bounds the number of Ray's CPUs.

    Raises:
        FedsimError: the run failed; the text names Flower's log and its last error.
    """
    options = options or EngineOptions()
    run.forget_checkpoint(game)
    cluster = {} if options.ray_address is None else {"RAY_ADDRESS": options.ray_address}
    log = run.path / f"flower-{game:03d}.log"
    with (
        flower_cli.private_home(log, {**environment(run), **cluster}) as home,
        flower_cli.superlink(home, ["--insecure", "--simulation"]),
    ):
        config = f"run={json.dumps(str(run.path))} game={game}"
        flower_cli.run_app(home, flower_cli.write_app(home), config, _federation(run, workers, options))


def _federation(run: RunDirectory, workers: int, options: EngineOptions) -> str:
    """Return Flower's federation config: one SuperNode per party, and what Ray may use."""
    entries: dict[str, object] = {
        "num-supernodes": run.scenario.parties.count,
        "client-resources-num-cpus": options.cpus_per_client,
        "client-resources-num-gpus": options.gpus_per_client,
        "init-args-log-to-driver": "false",
    }
    if workers > 1 and options.ray_address is None:  # a cluster has the processors that it has
        entries["init-args-num-cpus"] = workers
    return " ".join(f"{key}={value}" for key, value in entries.items())
