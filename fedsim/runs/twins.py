"""The same scenario under other DP-SGD, so that what it buys and costs stands beside the run itself.

A twin has the run's seed, and so its members, held-out records and initial weights: what differs is the
training of the parties that switch DP-SGD on, and how many shadows the adversary simulates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attacks.shadows.suite import cores
from fedsim.core import files
from fedsim.core.parallel import Workers
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
    twins: Sequence[RunDirectory], engine: str, workers: int | None, options: EngineOptions
) -> Iterator[Callable[[RunDirectory], None]]:
    """Federate the twins beside what the body does, and yield ``wait(twin)``, which returns when one is done.

    They have as many processes as there are cores beside the body's; with one core, or on another engine than
    'inprocess', which has processes of its own, `wait` federates the twin itself. The results are the same.

    workers, options: as `play.federate` takes them
    """
    processes = min(len(twins), (workers or cores()) - 1)
    if processes == 0 or engine != "inprocess":
        yield lambda twin: play.federate(twin, engine, workers, options)
        return
    done: set[int] = set()
    with Workers(processes) as pool:
        tasks = [(twin.path, workers) for twin in twins]
        with contextlib.closing(pool.run(_federate, tasks)) as outcomes:
            for _ in range(processes):  # all of these are started
                next(outcomes)

            def wait(twin: RunDirectory) -> None:
                number = twins.index(twin)
                while number not in done:
                    outcome = next(outcomes)
                    if outcome.state != "started":
                        outcome.result()
                        done.add(outcome.number)

            yield wait


def _federate(path: Path, workers: int | None) -> None:
    play.federate(RunDirectory.open(path), workers=workers)


def check(scenario_path: Path, overrides: Sequence[str], switches: Sequence[str]) -> None:
    """Refuse a switch that cannot be read, before any work starts.

    Raises:
        InputError: naming the switch.
    """
    for switch in switches:
        reading.load(scenario_path, overrides, [switch])
