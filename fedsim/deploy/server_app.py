"""The ServerApp of a deployment, as the SuperLink in the server's folder starts it."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clients.party import run_folder
from fedsim.core.run_directory import RunDirectory
from fedsim.engines import flower_cli
from fedsim.engines.bounded_grid import BoundedGrid
from fedsim.server import server_app

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the federation of the server's folder, which no other process may be training."""
    flower_cli.end_with_starter()
    run = RunDirectory.open(run_folder(context))
    with run.locked():
        server_app.federate(BoundedGrid(grid), run, 0)
