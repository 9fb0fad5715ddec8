"""A party's own process: what it finds on its own disk, and nothing of anyone else's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context

from fedsim.core import folders
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords, read_party, read_public
from fedsim.core.errors import InputError
from fedsim.core.imports import is_reference
from fedsim.core.models import zoo
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings, DPSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.paths import TrainingPath, training_path


@dataclass(frozen=True)
class Party:
    """One organisation: its records, its settings, and the model it trains.

    module is scratch space, other parties' of the same process too: its weights are replaced at the start of
    every message.
    folder is the party's own; observations is where the malicious party keeps what it sees, None for an
    honest one; shared is where an accomplice keeps what it shares with it. names and sizes (training
    records) are those of all parties, which are public, and so are persons, the numbers of persons in
    these records; empty where the table names none.
    """

    name: str
    partition: int
    game: int
    scenario: Scenario
    records: PartyRecords
    module: torch.nn.Module
    classes: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    folder: Path
    observations: Path | None
    shared: Path | None = None
    persons: tuple[int, ...] = ()

    def units(self, partition: int) -> int:
        """Return the number of records, or of persons, that a party's DP-SGD protects one by one."""
        settings = self.scenario.dp_of(self.names[partition])
        by_person = settings is not None and settings.unit == "person"
        return self.persons[partition] if by_person else self.sizes[partition]

    @property
    def dp(self) -> DPSettings | None:
        """The party's own DP-SGD switch, None where it is off."""
        return self.scenario.dp_of(self.name)

    @property
    def defence(self) -> DefenceSettings:
        """What the party does against leakage beside DP-SGD."""
        return self.scenario.defence_of(self.name) or NO_DEFENCE

    @property
    def training(self) -> TrainingSettings:
        """How the party trains, with its own weight decay and epochs."""
        return self.scenario.training_of(self.name)

    @property
    def path(self) -> TrainingPath:
        """How its rounds without DP are computed; 'reference' under DP."""
        if self.dp is not None:
            return "reference"
        rounds, n = self.scenario.federation.rounds, len(self.records.train)
        return training_path(self.module, self.training, self.defence, n, rounds, self.scenario.device)

    @property
    def stop_on(self) -> Records | None:
        """The records that its early stopping looks at, None where it has none."""
        if self.defence.patience is None:
            return None
        return self.records.heldout if self.defence.stop_on == "held-out" else read_public(self.folder)

    @property
    def transfer(self) -> Records | None:
        """The public records on which its students are trained, None where they are not."""
        return read_public(self.folder) if self.defence.distil == "dmp" else None


def party_of(context: Context) -> Party:
    """Return the party whose partition id and run the Flower context names."""
    # More than one thread made small models 36-58 times slower, and could change the last bit.
    torch.set_num_threads(1)
    folder = run_folder(context)
    game = int(context.run_config.get("game", 0))
    return _load(folder, _stamp(folder), game, int(context.node_config["partition-id"]))


def run_folder(context: Context) -> Path:
    """Return the run's folder, ``run`` of the run config, else the one that the server made for Flower's run.

    Raises:
        InputError: neither is here.
    """
    configured = str(context.run_config.get("run", ""))
    if configured:
        return _path(configured)
    made = folders.flower_run(context.run_id)
    if not (made / "scenario.toml").is_file():
        raise InputError(
            f"run = '' in the run config, and {made} is not here: name the folder of a run, as in "
            "flwr run . --run-config 'run=\"/path/of/the/run\"' (`fedsim run … --engine ray` does all of it)"
        )
    return made


@lru_cache(maxsize=8)
def _path(folder: str) -> Path:
    return Path(folder)  # making one takes longer than looking the party up


@lru_cache(maxsize=8)
def _scenario_file(folder: Path) -> Path:
    return folder / "scenario.toml"


def _stamp(folder: Path) -> tuple[int, int]:
    """Return what tells a run from another one that was at the same path before it."""
    try:
        status = _scenario_file(folder).stat()
    except OSError:
        return 0, 0  # `_load` says in a sentence what is missing
    return status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=1024)
def _load(folder: Path, stamp: tuple[int, int], game: int, partition: int) -> Party:
    run = RunDirectory.open(folder)
    pattern = f"{partition:03d}-*"
    folders = sorted(run.party_folder(game, partition, "x").parent.glob(pattern))
    if not folders:
        raise InputError(f"{run.path}: there is no party with partition id {partition} in game {game}")
    records, info = read_party(folders[0])
    scenario = run.scenario
    return Party(
        name=records.name,
        partition=partition,
        game=game,
        scenario=scenario,
        records=records,
        module=_module(scenario, records.train.shape, info.classes),
        classes=info.classes,
        names=info.names,
        sizes=info.sizes,
        folder=folders[0],
        observations=run.observations(game) if info.malicious else None,
        shared=run.accomplice(game, partition, records.name) if info.accomplice else None,
        persons=info.persons,
    )


def _module(scenario: Scenario, input_shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """Return the party's module, in evaluation mode: one for all parties of this process, which load their
    weights in turn.

    A person's own may keep more than its weights: each party has one of its own.
    """
    if is_reference(scenario.model.name):
        return zoo.build(scenario.model, input_shape, classes).to(scenario.device).eval()
    return _shared_module(scenario.model.model_dump_json(), input_shape, classes, scenario.device)


@lru_cache(maxsize=2)
def _shared_module(model: str, input_shape: tuple[int, ...], classes: int, device: str) -> torch.nn.Module:
    return zoo.build(ModelSettings.model_validate_json(model), input_shape, classes).to(device).eval()
