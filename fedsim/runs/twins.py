"""The same scenario under other DP-SGD, so that what it buys and costs stands beside the run itself.

A twin has the run's seed, and so its members, held-out records and initial weights: what differs is the
training of the parties that switch DP-SGD on, and how many shadows the adversary simulates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedsim.core import files
from fedsim.core.parallel import Workers, cores
from fedsim.core.run_directory import RunDirectory, new_run_path
from fedsim.core.scenario import reading
from fedsim.engines.settings import EngineOptions
from fedsim.runs import play, prepare

SHADOWS = 64
"""Shadows of a twin at most: under DP each costs a multiple, and there is little left for more to find."""


def prepared(run: RunDirectory, switch: str, data_dir: Path | None) -> RunDirectory:
    """Deal the records of a twin of ``run`` in a folder beside it, and name it in the run's manifest.

    switch: as ``--dp`` takes it, such as 'all=8'

    Raises:
        InputError: the switch names no party, or the records cannot be read any more.
    """
    shadows = min(SHADOWS, run.scenario.adversary.shadows)
    source = run.path / "scenario.toml"
    scenario = reading.load(source, [f"adversary.shadows={shadows}"], [switch])
    checked = prepare.check(scenario, data_dir)
    name = f"{run.path.name}-dp-{files.slug(switch.replace('.', '-'))}"
    twin = prepare.prepare(checked, new_run_path(run.path.parent, name))
    run.update_manifest(twins=[*run.manifest.get("twins", []), twin.path.name])
    return twin


@contextmanager
def federated(
    twins: Sequence[RunDirectory],
    processes: Workers | None,
    engine: str,
    workers: int | None,
    options: EngineOptions,
) -> Iterator[Callable[[RunDirectory], None]]:
    """Federate the twins beside what the body does, and yield ``wait(twin)``, which returns when one is done.

    Each of k processes federates every k-th twin, one after the other; without any, `wait` federates
    the twin itself. The results are the same.

    processes: for the engine 'inprocess' alone
    engine, workers, options: as `play.federate` takes them
    """
    if processes is None:
        yield lambda twin: play.federate(twin, engine, workers, options)
        return
    lanes = [twins[number :: processes.count] for number in range(min(processes.count, len(twins)))]
    # Where there is no core to spare, a second thread for shadows would only take memory.
    own = workers if (workers or cores()) > processes.count + 1 else 1
    done: set[int] = set()
    tasks = [([twin.path for twin in lane], own) for lane in lanes]
    with contextlib.closing(processes.run(_federate, tasks)) as outcomes:
        for _ in lanes:  # all of them are started
            next(outcomes)

        def wait(twin: RunDirectory) -> None:
            while twins.index(twin) % processes.count not in done:
                outcome = next(outcomes)
                outcome.result()
                done.add(outcome.number)

        yield wait


def _federate(paths: Sequence[Path], workers: int | None) -> None:
    for path in paths:
        play.federate(RunDirectory.open(path), workers=workers)


def check(scenario_path: Path, overrides: Sequence[str], switches: Sequence[str]) -> None:
    """Refuse a switch that cannot be read, before any work starts.

    Raises:
        InputError: naming the switch.
    """
    for switch in switches:
        reading.load(scenario_path, overrides, [switch])
