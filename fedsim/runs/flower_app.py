"""The ServerApp of fedsim's own Flower App: `flwr run .` runs a scenario on whatever nodes there are.

It names the folder of a run that fedsim prepared (``run``), as `--engine ray` and `superlink` do; or it names
a scenario, by default the hospitals, and the folder is made here (`fedsim.core.folders.flower_run`), where
the nodes of this machine look for it. It ends as `fedsim run` does: evaluated, ready for `fedsim show`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from attacks.shadows import cache
from attacks.shadows.simulate import Laboratory
from clients.party import run_folder
from fedsim.core import folders, own_packages
from fedsim.core.errors import InputError, suggestion
from fedsim.core.parallel import cores
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.engines import flower_cli
from fedsim.engines.bounded_grid import BoundedGrid
from fedsim.runs import play, prepare
from fedsim.runs.prepare import Prepared
from fedsim.server import server_app

_FEWEST = 2
_NODE_SECONDS = 60.0

app = ServerApp()
log = logging.getLogger("flwr")  # what `flwr run --stream` shows


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one game of the run that is named, or all of a scenario."""
    flower_cli.end_with_starter()
    grid = BoundedGrid(grid)
    if context.run_config.get("run"):
        run = RunDirectory.open(run_folder(context))
        server_app.federate(grid, run, int(context.run_config.get("game", 0)))
        return
    path = _scenario_path(str(context.run_config.get("scenario", "")))
    overrides = [part.strip() for part in str(context.run_config.get("set", "")).split(";") if part.strip()]
    prepared = for_nodes(path, overrides, len(server_app.await_nodes(grid, _FEWEST, _NODE_SECONDS)))
    run = prepare.prepare(prepared, folders.flower_run(context.run_id))
    log.info("%s: %s with %d parties; in %s", path.name, run.scenario.name, len(prepared.rows), run.path)
    with run.locked():
        laboratory = Laboratory(cores(), cache=cache.cache_folder())
        play.play(run, "flwr run", laboratory, lambda game: server_app.federate(grid, run, game))
    log.info("The result: fedsim show %s", run.path)


def for_nodes(path: Path, overrides: list[str], nodes: int) -> Prepared:
    """Return the scenario with one party for each node.

    Raises:
        InputError: the number of parties is the table's and not ``nodes``, or the scenario is not valid.
    """
    scenario = load(path, overrides)
    if scenario.games > 1:
        raise InputError(f"{path}: games = {scenario.games}: `flwr run .` runs one; use `fedsim run`")
    prepared = prepare.check(scenario, None)
    parties = len(prepared.rows)
    if parties == nodes:
        return prepared
    if scenario.parties.count is None:
        raise InputError(
            f"{path} has {parties} parties, and there are {nodes} nodes; "
            f"flwr run . --federation-config 'num-supernodes={parties}'"
        )
    log.warning(
        "%d nodes, so %d parties; for all %d of %s: flwr run . --federation-config 'num-supernodes=%d'",
        nodes, nodes, parties, path.name, parties,
    )  # fmt: skip
    return prepare.check(load(path, [*overrides, f"parties.count={nodes}"]), None)


def _scenario_path(named: str) -> Path:
    """Return the file of a scenario that comes along, or that an absolute path names.

    Raises:
        InputError: there is none.
    """
    shipped = own_packages.shipped()
    path = shipped.get(named.removeprefix("experiments/"), Path(named))
    if not path.is_absolute() or not path.is_file():
        scenarios = [name for name in shipped if name.endswith(".toml")]
        raise InputError(
            f"scenario = '{named}' in the run config: neither comes with fedsim nor is an absolute path"
            f"{suggestion(named, scenarios)}"
        )
    return path
