"""What many shadow federations and many cells of a sweep cost: in core-hours, and on disk.

    python experiments/benchmarks/costs.py                 # about a minute on one core
    python experiments/benchmarks/costs.py --shadows 32
    python experiments/benchmarks/costs.py --full          # also a cell with all of its attacks, once

All of it is experiments/hospitals.toml with one game, without DP-SGD and with it at every party (ε = 8). A
cell runs the attacks of `--quick`, those that simulate nothing; shadow federations are simulated from what
its adversary saw. Counted is the CPU time of one core once everything is imported and compiled, of two
measurements the smaller one. docs/scale-out.md plans with these rates.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attacks.shadows import suite
from attacks.shadows.suite import Laboratory
from attacks.views import observations
from fedsim.core.parallel import environment
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.runs import play, prepare, quick

HOSPITALS = Path(__file__).resolve().parents[1] / "hospitals.toml"
FEDERATIONS, CELLS = 10**6, 10**4


def play_cell(folder: Path, dp: tuple[str, ...], seed: int, full: bool = False) -> RunDirectory:
    scenario = load(HOSPITALS, ["games=1", f"seed={seed}"], dp)
    scenario = scenario if full else quick.without_simulations(scenario)
    run = prepare.prepare(prepare.check(scenario, None), folder / f"cell-{seed}")
    play.federate(run)
    return run


def simulate(run: RunDirectory, shadows: int, cache: Path, seed: int) -> None:
    """Simulate so many shadows of all rounds, as LiRA asks for them where it owns all records."""
    view = observations.load_view(run.observations(0))
    view = dataclasses.replace(view, assumptions=view.assumptions.model_copy(update={"shadows": shadows}))
    suite.simulate(view, observations.load_candidates(run.observations(0)), seed, 0, Laboratory(1, cache))


def least(work: Callable[[int], object]) -> float:
    """Return the least CPU seconds of two, after one for what is done once; its number keeps each apart."""
    seconds = []
    for number in range(3):
        began = time.process_time()
        work(number)
        seconds.append(time.process_time() - began)
    return min(seconds[1:])


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def row(seconds: float, kept: float, count: int) -> tuple[str, ...]:
    """Return what one costs, and so many. kept: bytes."""
    hours, disk = seconds * count / 3600, kept * count / 2**30
    return f"{seconds:.4g}", f"{kept / 1024:.1f}", f"{count:,}", f"{hours:.2g}", f"{disk:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shadows", type=int, default=256, help="federations that are measured together")
    parser.add_argument("--full", action="store_true", help="also a cell with all attacks")
    options = parser.parse_args()
    shadows = options.shadows
    table = Table(title="experiments/hospitals.toml")
    for column in ("", "CPU s", "KiB", "of them", "core-hours", "GiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for title, dp in (("", ()), (", all=8", ("all=8",))):
        with tempfile.TemporaryDirectory() as name:
            cells, kept = Path(name) / "cells", Path(name) / "shadows"
            seconds = least(partial(play_cell, cells, dp))
            table.add_row("cell" + title, *row(seconds, size(cells) / 3, CELLS))
            run = RunDirectory.open(cells / "cell-0")
            seconds = least(partial(simulate, run, shadows, kept)) / shadows
            table.add_row("shadow" + title, *row(seconds, size(kept) / (3 * shadows), FEDERATIONS))
    if options.full:
        with tempfile.TemporaryDirectory() as name, environment(FEDSIM_CACHE=f"{name}/cache"):
            began = time.process_time()
            run = play_cell(Path(name), (), 3, full=True)
            table.add_row("cell, all attacks", *row(time.process_time() - began, size(run.path), CELLS))
    Console().print(table)


if __name__ == "__main__":
    main()
