"""From a scenario to a run's folder: all of it checked, each party's own records dealt."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from attacks import deviation, registry
from clients.sectors import SECTORS
from fedsim.core import rng
from fedsim.core.data import catalogue, layout, parties
from fedsim.core.data import encode as encoding
from fedsim.core.data.store import AUXILIARY, TARGETS, write_party, write_pool, write_public
from fedsim.core.errors import InputError, suggestion
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario
from fedsim.evaluation import truth
from fedsim.runs.checks import adversary as observers
from fedsim.runs.checks import parties as checks
from fedsim.runs.checks.parties import defences, private_training
from fedsim.server import strategy


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A scenario whose every choice has been checked against the data, before anything is written.

    rows: party name → row indices in ``encoded``
    """

    scenario: Scenario
    encoded: encoding.Encoded
    rows: dict[str, np.ndarray]
    adversary: str


def with_sector_defaults(scenario: Scenario) -> Scenario:
    """Fill in what the sector decides: its first table and its model, where the scenario is silent."""
    sector = SECTORS[scenario.parties.sector]
    changes: dict[str, Any] = {}
    if scenario.data.name is None and scenario.data.path is None:
        changes["data"] = scenario.data.model_copy(update={"name": sector.tables[0]})
    if "model" not in scenario.model_fields_set:
        changes["model"] = sector.model
    return scenario.model_copy(update=changes)


def check(scenario: Scenario, data_dir: Path | None, encoded: encoding.Encoded | None = None) -> Prepared:
    """Read the data and check all that only the data can tell.

    encoded: the scenario's records, where they have been read before.

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    scenario = with_sector_defaults(scenario)
    registry.attacks_of(scenario)
    deviation.check(scenario.adversary, scenario.federation.rounds)
    strategy.build(scenario.federation, scenario.training)
    encoded = read_records(scenario, data_dir) if encoded is None else encoded
    rows = parties.deal(encoded, scenario.parties, scenario.seed)
    dealt = sum(map(len, rows.values()))
    if dealt < len(encoded):
        partition = scenario.parties.partition
        notice = f"{len(encoded) - dealt} of {len(encoded)} records are in no party: partition '{partition}'"
        encoded = dataclasses.replace(encoded, notices=(*encoded.notices, notice))
    scenario = scenario.model_copy(
        update={"parties": scenario.parties.model_copy(update={"count": len(rows)})}
    )
    adversary = scenario.adversary.party or next(iter(rows))
    _check_names(scenario, rows, adversary)
    observers.check(scenario, list(rows), adversary)
    private_training(scenario, encoded, rows)
    defences(scenario, encoded, rows)
    notices = *checks.notices(scenario, rows), *observers.notices(scenario)
    encoded = dataclasses.replace(encoded, notices=(*encoded.notices, *notices))
    natural = scenario.parties.partition == "natural" or (
        scenario.parties.partition == "auto" and encoded.party is not None
    )
    knows = scenario.adversary.knows_party
    told = {"party": adversary, "knows_party": natural if knows is None else knows}
    told["candidates"] = deviation.candidates(scenario.adversary)
    scenario = scenario.model_copy(update={"adversary": scenario.adversary.model_copy(update=told)})
    return Prepared(scenario, encoded, rows, adversary)


def read_records(scenario: Scenario, data_dir: Path | None) -> encoding.Encoded:
    """Read and encode the scenario's records, each once; nothing is learnt from private ones (DESIGN §7)."""
    data = scenario.data
    source = catalogue.open_table(data, data_dir)
    stream = rng.generator(scenario.seed, "public records")
    bounds = SECTORS[scenario.parties.sector].bounds
    return encoding.deduplicate(encoding.encode(source, data, stream, sector_bounds=bounds))


def _check_names(scenario: Scenario, rows: dict[str, np.ndarray], adversary: str) -> None:
    if adversary not in rows:
        raise InputError(f"adversary.party = '{adversary}': no such party{suggestion(adversary, rows)}")
    for section, names in (("dp", scenario.dp), ("defences", scenario.defences)):
        for name in names:
            if name != "all" and name not in rows:
                raise InputError(f"{section}.{name}: no such party{suggestion(name, ['all', *rows])}")


def prepare(prepared: Prepared, path: Path) -> RunDirectory:
    """Create the run's folder: each party's own records of every game, the candidates, the truth."""
    scenario, encoded = prepared.scenario, prepared.encoded
    games = [
        truth.draw_game(
            encoded,
            prepared.rows,
            seed=scenario.seed,
            game=game,
            member_share=scenario.parties.member_share,
            adversary=prepared.adversary,
            settings=scenario.adversary,
        )
        for game in range(scenario.games)
    ]
    run = RunDirectory.create(path, scenario)
    for number, game in enumerate(games):
        _write_game(run, prepared, number, game)
    truth.write_truth(run.path, games)
    bounds = layout.declared_bounds(scenario.data, SECTORS[scenario.parties.sector].bounds)
    layout.write_layout(run.path, layout.of(encoded, bounds))
    run.update_manifest(
        adversary=prepared.adversary,
        record=SECTORS[scenario.parties.sector].record,
        parties={name: len(index) for name, index in prepared.rows.items()},
        input_shape=list(encoded.features.shape[1:]),
        classes=list(encoded.classes),
        notices=list(encoded.notices),
        data_sha256=encoded.hashes,
        seed=scenario.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prepared=True,
        **_machine(),
    )
    return run


def _write_game(run: RunDirectory, prepared: Prepared, number: int, game: truth.Game) -> None:
    run.write_candidates(number, game.candidates)
    settings = run.scenario.adversary
    sizes = {name: len(records.train) for name, records in game.parties.items()}
    if settings.active == "poisoning":  # what it tells the others counts its poison
        sizes[prepared.adversary] += settings.poison_copies * len(game.candidates.first(settings.targets))
    for partition, (name, records) in enumerate(game.parties.items()):
        info = {
            "partition": partition,
            "sector": run.scenario.parties.sector,
            "malicious": name == prepared.adversary,
            "accomplice": name in settings.coalition,
            "classes": len(prepared.encoded.classes),
            "names": list(game.parties),
            "sizes": list(sizes.values()),
        }
        folder = run.party_folder(number, partition, name)
        write_party(folder, records, info)
        defence = run.scenario.defence_of(name)
        if prepared.encoded.public is not None and defence is not None and defence.stop_on == "public":
            write_public(folder, prepared.encoded.public)
        if name == prepared.adversary:
            write_pool(folder, AUXILIARY, game.auxiliary)
            if settings.active:
                write_pool(folder, TARGETS, game.candidates.first(settings.targets))


def _machine() -> dict[str, Any]:
    packages = ("fedsim", "flwr", "torch", "opacus", "numpy", "pandas", "safetensors")
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "machine": {"system": platform.platform(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }
