"""The same scenario under other DP-SGD, so that what it buys and costs stands beside the run itself.

A twin has the run's seed, and so its members, held-out records and initial weights: what differs is the
training of the parties that switch DP-SGD on, and how many shadows the adversary simulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory, new_run_path
from fedsim.core.scenario import reading
from fedsim.runs import prepare

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


def check(scenario_path: Path, overrides: Sequence[str], switches: Sequence[str]) -> None:
    """Refuse a switch that cannot be read, before any work starts.

    Raises:
        InputError: naming the switch.
    """
    for switch in switches:
        reading.load(scenario_path, overrides, [switch])
