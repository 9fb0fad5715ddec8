"""A party on a machine of its own: its node's folder holds its records, its settings and its ledger.

Everything that decides over this party's records stands in that folder, and nothing in a server's message can
change it: the scenario that was agreed on, the public schema, and the administrator's ``node.toml``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from flwr.app import Context
from pydantic import Field

from clients import party as simulated
from clients.party import Party
from fedsim.core import rng
from fedsim.core.data import released
from fedsim.core.data.by_schema import OwnTable, read_own
from fedsim.core.data.records import Pool, Records
from fedsim.core.data.store import AUXILIARY, PartyRecords, write_pool
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.scenario import reading
from fedsim.core.scenario.base import Positive, Settings, Share
from fedsim.core.scenario.settings import Scenario

FOLDER = "folder"
"""Key of Flower's node configuration: the node's folder."""

NODE, SCENARIO, LEDGER, SEEN = "node.toml", "scenario.toml", "ledger.json", "seen"
"""Files of a node's folder, and where a malicious one keeps what it is sent."""

FEWEST = 4
"""Records that a party needs, two to train on and two to hold out."""


class NodeSettings(Settings):
    """What the administrator of one party's node decides, in ``node.toml``."""

    party: str = Field(description="this organisation's name in the federation")
    parties: list[str] = Field(description="all of them, in the order of their numbers")
    server: str = Field(description="the server's address, host:port")
    records: str = Field("records.csv", description="its own table: a path, from this folder if relative")
    held_out: Share = Field(0.2, description="share of the records that only test the model")
    epsilon_budget: Positive | None = Field(
        None, description="ε that all training here may cost together; without one the scenario decides"
    )
    epsilon_delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="δ at which it holds")
    role: Literal["honest", "malicious"] = Field(
        "honest", description="'malicious' keeps what it is sent, for `fedsim deploy attack`"
    )

    @property
    def partition(self) -> int:
        """The party's number in the federation."""
        return self.parties.index(self.party)


def read_node(folder: Path) -> NodeSettings:
    """Read ``node.toml`` of a node's folder.

    Raises:
        InputError: in one sentence, what is wrong.
    """
    path = folder / NODE
    settings = reading.read_settings(path, NodeSettings)
    if settings.party not in settings.parties:
        raise InputError(f"{path}: party = '{settings.party}' is not among parties {settings.parties}")
    return settings


def party_of(context: Context) -> Party:
    """Return the party whose process this is: by its node's folder, or simulated by a run's."""
    folder = context.node_config.get(FOLDER)
    if folder is None:
        return simulated.party_of(context)
    torch.set_num_threads(1)
    return load(Path(str(folder)))


@lru_cache(maxsize=1)
def load(folder: Path) -> Party:
    """Return the party of a node's folder; whoever forks after this call has it already.

    Raises:
        InputError: a file is missing or wrong, or there are too few records.
    """
    settings, scenario = read_node(folder), scenario_of(folder)
    records = split(own_table(folder), settings, scenario)
    schema = released.read_schema(folder)
    module = zoo.build(scenario.model, records.train.shape, len(schema.schema.classes))
    own, count = len(records.train), len(settings.parties)
    persons = () if records.train_person is None else (len(np.unique(records.train_person)),) * count
    malicious = settings.role == "malicious"
    if malicious:  # it owns nothing beside its own records
        empty = Records(records.train.features[:0], records.train.labels[:0])
        write_pool(folder, AUXILIARY, Pool(empty, np.empty(0, dtype=np.int64)))
    return Party(
        name=settings.party,
        partition=settings.partition,
        game=0,
        scenario=scenario,
        records=records,
        module=module.to(scenario.device),
        classes=len(schema.schema.classes),
        names=tuple(settings.parties),
        sizes=(own,) * count,  # of the others it is told nothing: they are taken to be as large
        folder=folder,
        observations=folder / SEEN if malicious else None,
        persons=persons,
    )


def scenario_of(folder: Path) -> Scenario:
    """Return the agreed scenario; DP-SGD here draws from the operating system, whatever it says of seeds."""
    scenario = reading.load(folder / SCENARIO)
    secure = {
        name: switch if isinstance(switch, str) else switch.model_copy(update={"secure": True})
        for name, switch in scenario.dp.items()
    }
    return scenario.model_copy(update={"dp": secure})


@lru_cache(maxsize=1)
def own_table(folder: Path) -> OwnTable:
    """Read the node's own records by the federation's public schema.

    Raises:
        InputError: the table cannot be read, lacks a column, or has too few records.
    """
    path, data = folder / read_node(folder).records, scenario_of(folder).data
    table = read_own(path, released.read_schema(folder), data, data.person)
    if len(table.records) < FEWEST:
        raise InputError(f"{path}: {len(table.records)} usable record(s), a party needs at least {FEWEST}")
    return table


def split(table: OwnTable, settings: NodeSettings, scenario: Scenario) -> PartyRecords:
    """Hold out a share of the records, all of a person's together, the same at every start."""
    stream = rng.generator(scenario.seed, "held-out records", party=settings.party)
    owner = np.arange(len(table.records)) if table.person is None else table.person
    units = stream.permutation(np.unique(owner))
    count = int(np.clip(round(settings.held_out * len(units)), 2, len(units) - 2))
    held = np.isin(owner, units[:count])
    train, heldout = np.flatnonzero(~held), np.flatnonzero(held)
    of_persons = (None, None) if table.person is None else (table.person[train], table.person[heldout])
    return PartyRecords(settings.party, table.records.take(train), table.records.take(heldout), *of_persons)
