"""`fedsim sweep`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fedsim.cli.common import (
    data_dir_option,
    engine_option,
    err,
    json_option,
    line,
    out,
    print_json,
    ray_address_option,
)
from fedsim.core.errors import FedsimError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key everywhere.")
@data_dir_option
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), help="Folder. [default: runs/sweeps/<name>]"
)
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of runs. [default: <out>/cells]")
@click.option("--workers", type=click.IntRange(1), help="Cells at a time. [default: one per core]")
@engine_option
@ray_address_option
@click.option("--show", is_flag=True, help="Run nothing; show what is finished.")
@json_option
def sweep(
    file: Path,
    overrides: tuple[str, ...],
    data_dir: Path | None,
    folder: Path | None,
    cells: Path | None,
    workers: int | None,
    engine: str,
    ray_address: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Run every combination of the settings in FILE (a TOML file), and make one table of all.

    A sweep that was stopped, in whatever way, goes on with the same command.

    \b
    Examples:
      fedsim sweep experiments/sweeps/epsilon.toml
      fedsim sweep experiments/sweeps/epsilon.toml --workers 8 --out runs/frontier
      fedsim sweep experiments/sweeps/epsilon.toml --set games=1 --set adversary.shadows=16
      fedsim sweep experiments/sweeps/epsilon.toml --engine ray --ray-address auto
      fedsim sweep experiments/sweeps/epsilon.toml --show
    """
    from fedsim.runs import play
    from fedsim.sweeps import points, table
    from fedsim.sweeps.file import load
    from fedsim.terminal import live, sweep_tables

    play.check_engine(engine)
    settings = load(file)
    folder = Path(os.path.realpath(folder or Path("runs") / "sweeps" / settings.name))
    cells = Path(os.path.realpath(cells or folder / "cells"))
    with live.bar("checking", err()) as progress:
        plan = points.plan(file, cells, data_dir, overrides, progress)
    failed: dict[str, str] = {}
    if not show:
        distinct, workers = points.distinct(plan), workers or os.cpu_count() or 1
        counts = (
            f"{len(plan)} points, {len(distinct)} cells, {sum(cell.finished for cell in distinct)} finished"
        )
        line(f"{settings.name}: {counts}; folder: {folder}", err())
        with live.sweep(plan, workers, err()) as watch:
            failed = points.run(plan, workers, engine, ray_address, watch)
    results = table.write(plan, folder, failed)
    if as_json:
        print_json(table.compact(results, settings.headline) if len(results) else [])
    elif len(results):
        out().print(sweep_tables.sweep(table.compact(results, settings.headline), settings.name))
        for sentence in table.left_out(results):
            line(sentence, out())
    line(f"Table: {folder / 'sweep.parquet'}", err() if as_json else out())
    if failed:
        raise FedsimError(points.complaint(plan, failed))
