"""From a scenario to a run's folder: all of it checked, each party's own records dealt."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attacks import deviation, registry
from clients.sectors import SECTORS
from fedsim.core import rng
from fedsim.core.data import catalogue, encode, layout, parties, released, text
from fedsim.core.data.encode import Encoded
from fedsim.core.data.store import AUXILIARY, TARGETS, PartyInfo, write_party, write_pool, write_public
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import write_arrays
from fedsim.core.models import shapes
from fedsim.core.run_directory import INITIAL, PUBLIC_FOLDER, RunDirectory
from fedsim.core.scenario.settings import STRATEGIES, DataSettings, Scenario
from fedsim.core.scenario.training import ModelSettings
from fedsim.evaluation import secrets, truth
from fedsim.runs import integrity
from fedsim.runs.checks import limits
from fedsim.runs.checks.adversary import check_observers, protection_notices
from fedsim.runs.checks.parties import (
    check_defences,
    check_model,
    check_patience,
    check_private_training,
    defence_notices,
    delta_notices,
    patience_notices,
)
from fedsim.runs.checks.release import check_release, release_notices
from fedsim.runs.observers import observers_of

Progress = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A scenario whose every choice has been checked against the data, before anything is written.

    rows: party name → row indices in ``encoded``
    """

    scenario: Scenario
    encoded: Encoded
    rows: dict[str, np.ndarray]
    adversary: str


def with_sector_defaults(scenario: Scenario) -> Scenario:
    """Fill in what the sector decides: its first table and its model, where the scenario is silent."""
    sector = SECTORS[scenario.parties.sector]
    changes: dict[str, Any] = {}
    if scenario.data.name is None and scenario.data.path is None and scenario.data.text is None:
        changes["data"] = scenario.data.model_copy(update={"name": sector.tables[0]})
    if "model" not in scenario.model_fields_set:
        changes["model"] = ModelSettings(name="gpt") if _is_text(scenario.data) else sector.model
    return scenario.model_copy(update=changes)


def _is_text(data: DataSettings) -> bool:
    return data.text is not None or (data.name is not None and catalogue.get(data.name).schema.is_text)


def _with_vocabulary(scenario: Scenario, encoded: Encoded) -> Scenario:
    """Fill in the size of the vocabulary that public letters decided; model and text must go together.

    Raises:
        InputError: the records are letters and the model reads none, or nothing is there to pretrain on.
    """
    model = scenario.model
    if model.pretrain is not None and encoded.public is None:
        raise InputError(
            "model.pretrain: there are no public records with a label; name a table of them in data.public"
        )
    if not encoded.vocabulary:
        return scenario
    if model.name not in shapes.LANGUAGE and not shapes.is_custom(model):
        raise InputError(f"model.name = '{model.name}' reads a table, and the records are letters; use 'gpt'")
    size = text.Vocabulary(encoded.vocabulary).size
    if model.vocabulary not in (None, size):
        raise InputError(f"model.vocabulary = {model.vocabulary}: public letters give {size}; leave it out")
    return scenario.model_copy(update={"model": model.model_copy(update={"vocabulary": size})})


def check(scenario: Scenario, data_dir: Path | None, encoded: Encoded | None = None) -> Prepared:
    """Read the data and check all that only the data can tell.

    encoded: the scenario's records, where they have been read before.

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    scenario = with_sector_defaults(scenario)
    for observer in observers_of(scenario.adversary):
        registry.attacks_of(scenario, observer)
    deviation.check(scenario.adversary, scenario.federation.rounds)
    _check_strategy(scenario)
    encoded = read_records(scenario, data_dir) if encoded is None else encoded
    scenario = _with_vocabulary(scenario, encoded)
    private = any(switch != "off" for switch in scenario.dp.values()) or bool(scenario.federation.central_dp)
    encoded = encode.under_dp(encoded) if private else encoded
    encoded = encode.deduplicate(encoded, within_parties=private)
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
    limits.check(scenario, encoded, rows)
    check_observers(scenario, list(rows), adversary)
    check_model(scenario, encoded)
    check_private_training(scenario, encoded, rows)
    check_defences(scenario, encoded, rows)
    check_patience(scenario, encoded, rows)
    check_release(scenario, list(rows), encoded.public)
    notices = (
        *delta_notices(scenario, rows),
        *defence_notices(scenario, list(rows)),
        *protection_notices(scenario),
    )
    notices = *notices, *patience_notices(scenario, rows), *release_notices(scenario)
    encoded = dataclasses.replace(encoded, notices=(*encoded.notices, *notices))
    natural = scenario.parties.partition == "natural" or (
        scenario.parties.partition == "auto" and encoded.party is not None
    )
    knows = scenario.adversary.knows_party
    filled_in = {"party": adversary, "knows_party": natural if knows is None else knows}
    filled_in["worlds"] = list(scenario.adversary.ladder)
    filled_in["candidates"] = deviation.candidates(scenario.adversary)
    scenario = scenario.model_copy(update={"adversary": scenario.adversary.model_copy(update=filled_in)})
    return Prepared(scenario, encoded, rows, adversary)


def _check_strategy(scenario: Scenario) -> None:
    """Try the strategy's options; those of Flower's stock strategies are all valid by default."""
    federation = scenario.federation
    if federation.strategy in STRATEGIES and not federation.options and federation.central_dp is None:
        return
    from fedsim.server import strategy  # it takes seconds to import Flower

    strategy.build(federation, scenario.training)


def read_records(scenario: Scenario, data_dir: Path | None) -> Encoded:
    """Read and encode the scenario's records; `check` drops duplicates, which depends on DP."""
    data = scenario.data
    source = catalogue.open_table(data, data_dir)
    stream = rng.generator(scenario.seed, "public records")
    if source.schema.is_text:
        return text.encode(source, data, stream)
    bounds = SECTORS[scenario.parties.sector].bounds
    return encode.encode(source, data, stream, sector_bounds=bounds)


def _check_names(scenario: Scenario, rows: dict[str, np.ndarray], adversary: str) -> None:
    if adversary not in rows:
        raise InputError(f"adversary.party = '{adversary}': no such party{suggestion(adversary, rows)}")
    for section, names in (("dp", scenario.dp), ("defences", scenario.defences)):
        for name in names:
            if name != "all" and name not in rows:
                raise InputError(f"{section}.{name}: no such party{suggestion(name, ['all', *rows])}")


def prepare(
    prepared: Prepared, place: Path | RunDirectory, progress: Progress = lambda done, total: None
) -> RunDirectory:
    """Fill the run's folder: each party's own records of every game, the candidates, the truth.

    place: of a new run, or a run that was stopped before its records were dealt
    progress: called with the epochs done and all epochs of pretraining, where there is any
    """
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
    run = place if isinstance(place, RunDirectory) else RunDirectory.create(place, scenario)
    if scenario.model.pretrain is not None:
        _pretrain(run, prepared, progress)
    write_games(run, prepared, games)
    return run


def write_games(run: RunDirectory, prepared: Prepared, games: Sequence[truth.Game]) -> None:
    """Write what the parties hold in each game, who is a member, and what the run's folder says of itself."""
    scenario, encoded = prepared.scenario, prepared.encoded
    for number, game in enumerate(games):
        _write_game(run, prepared, number, game)
    truth.write_truth(run.path, games)
    if encoded.secret is not None:
        secrets.write_secrets(run.path, secrets.planted(encoded, prepared.rows, scenario))
    if encoded.vocabulary:
        text.Vocabulary(encoded.vocabulary).write(run.path)
    elif encoded.schema is not None:
        schema = released.release_schema(encoded.schema, scenario.data, encoded.readings)
        released.write_schema(run.path, schema)
    if encoded.schema is not None:
        layout.write_layout(run.path, layout.of(encoded))
    if scenario.release.kind == "student" and encoded.public is not None:
        write_public(run.path / "release", encoded.public)
    if scenario.federation.patience is not None and scenario.federation.stop_on == "public":
        assert encoded.public is not None  # `check` has seen to it
        write_public(run.path / PUBLIC_FOLDER, encoded.public)
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
        **machine(),
    )
    integrity.note_prepared(run)


def _pretrain(run: RunDirectory, prepared: Prepared, progress: Progress) -> None:
    """Train w_0, which every game begins with, on the public records, and write it."""
    from fedsim.core.models import zoo
    from fedsim.core.models.weights import weights_of
    from fedsim.core.training.pretrain import pretrain
    from fedsim.core.training.stacked.batches import single_thread

    scenario, public = prepared.scenario, prepared.encoded.public
    assert scenario.model.pretrain is not None and public is not None  # `check` has seen to it
    seed = rng.integer(scenario.seed, "initial weights")
    module = zoo.build(scenario.model, public.shape, len(prepared.encoded.classes), seed=seed)
    order = rng.torch_generator(scenario.seed, "pretraining")
    with single_thread():
        pretrain(module, public, scenario.model.pretrain, order, progress, scenario.device)
    write_arrays(run.path / INITIAL, weights_of(module.to("cpu")))


def _write_game(run: RunDirectory, prepared: Prepared, number: int, game: truth.Game) -> None:
    run.write_candidates(number, game.candidates)
    if game.persons is not None:
        run.write_persons(number, game.persons)
    run.write_worlds(number, game.worlds)
    settings = run.scenario.adversary
    sizes = {name: len(records.train) for name, records in game.parties.items()}
    owners = {name: records.train_person for name, records in game.parties.items()}
    persons = {name: len(np.unique(person)) for name, person in owners.items() if person is not None}
    if settings.active == "poisoning":  # what it tells the others counts its poison
        poison = settings.poison_copies * len(game.candidates.first(settings.targets))
        sizes[prepared.adversary] += poison
        if persons:
            persons[prepared.adversary] += poison
    for partition, (name, records) in enumerate(game.parties.items()):
        info = PartyInfo(
            partition=partition,
            sector=run.scenario.parties.sector,
            malicious=name == prepared.adversary,
            accomplice=name in settings.coalition,
            classes=len(prepared.encoded.classes),
            names=tuple(game.parties),
            sizes=tuple(sizes.values()),
            persons=tuple(persons.values()),
        )
        folder = run.party_folder(number, partition, name)
        write_party(folder, records, info)
        if prepared.encoded.vocabulary:
            text.Vocabulary(prepared.encoded.vocabulary).write(folder)
        defence = run.scenario.defence_of(name)
        if prepared.encoded.public is not None and defence is not None and defence.reads_public:
            write_public(folder, prepared.encoded.public)
        if name == prepared.adversary:
            write_pool(folder, AUXILIARY, game.auxiliary)
            if settings.active:
                write_pool(folder, TARGETS, game.candidates.first(settings.targets))


def machine() -> dict[str, Any]:
    """Return what the manifest says of versions and of the machine."""
    packages = ("fedsim", "flwr", "torch", "opacus", "numpy", "pandas", "safetensors")
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "machine": {"system": platform.platform(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }
