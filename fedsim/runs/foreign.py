"""A run that fedsim did not make, read and checked: saved global models, and a table of records.

Nothing is trained. The models are what a participant was sent, and the table says who was trained on; as a
run's folder (`fedsim.runs.foreign_run`) they are attacked, judged and reported by the same code as any run.

Who the adversary is follows from the table. With a column of parties one of them is: it knows its own records
and which of them were trained on. Without one the model counts as a federation of one: one owner trained it
on all members, and an insider, who knows that of a share of the records, asks about the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks import registry
from attacks.declaration import PULLED, Attack
from attacks.views.settings import Weights
from fedsim.core import rng
from fedsim.core.data import table
from fedsim.core.data.encode import Encoded, deduplicate
from fedsim.core.data.parties import shown, units_of
from fedsim.core.data.prepared import as_they_stand, members_of
from fedsim.core.errors import InputError, suggestion
from fedsim.core.models import saved, zoo
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.settings import Scenario
from fedsim.core.training import metrics
from fedsim.runs.checks import limits
from fedsim.runs.prepare import Prepared

INSIDER, OWNER = "insider", "owner"
"""The two parties of a federation of one: who knows of some records, and whose the model is."""

KNOWN = 0.2
"""Share of the records that an insider knows, where nothing else is said."""

UNDESCRIBED = "it simulates the training, which nobody described: name a scenario that does with --scenario"
NO_STEP = "it reads a round's step, and of no two neighbouring rounds both models were saved"
NO_START = "it reads the first round's step, and the models of rounds 0 and 1 were not both saved"
ALONE = "it tells parties apart, and the model is one owner's"


@dataclass(frozen=True)
class Brought:
    """What was brought, read and checked, before anything is written.

    member: (n,) bool of the prepared records. files: round t → file. weights: t → w_t. start: where
        simulations begin if w_0 is not among them. one: whether it is a federation of one. left_out: attack →
        why it cannot be run on it.
    """

    prepared: Prepared
    member: np.ndarray
    files: dict[int, Path]
    weights: dict[int, Weights]
    start: Weights | None
    one: bool
    left_out: dict[str, str]


def read(
    scenario: Scenario,
    models: Path,
    members: str,
    *,
    key: str | None = None,
    described: bool = False,
    known: float = KNOWN,
) -> Brought:
    """Read saved models and the table of ``scenario.data``, and check that they go together.

    models: a folder of models by round, or one file (`fedsim.core.models.saved`)
    members: which records were trained on (`fedsim.core.data.prepared.members_of`)
    key: a column that identifies a record; it is no feature
    described: whether ``scenario`` tells how the models were trained, so that shadows can repeat it
    known: share of the records that the insider knows, where the table names no parties

    Raises:
        InputError: in one sentence, what does not go together.
    """
    _check_observers(scenario)
    encoded, member = _records(scenario, members, key)
    files, weights, start = _models(scenario, encoded, models, described)
    one = encoded.party is None
    rows = _insider_and_owner(encoded, scenario.seed, known) if one else _by_party(encoded)
    adversary = INSIDER if one else scenario.adversary.party or next(iter(rows))
    if adversary not in rows:
        raise InputError(f"--adversary {adversary}: there is no such party{suggestion(adversary, rows)}")
    scenario = _filled_in(scenario, len(rows), max(weights), adversary, one)
    limits.check(scenario, encoded, rows)
    wanted, left_out = _attacks(scenario, weights, described, one)
    scenario = _asking_for(scenario, wanted)
    notices = _assumed(scenario, rows, one, described, start is not None)
    notices += _doubt(scenario, encoded, member, weights)
    encoded = dataclasses.replace(encoded, notices=(*encoded.notices, *notices))
    return Brought(Prepared(scenario, encoded, rows, adversary), member, files, weights, start, one, left_out)


def _check_observers(scenario: Scenario) -> None:
    settings = scenario.adversary
    beyond = [name for name in settings.observers if name in ("coalition", "server")]
    if beyond:
        raise InputError(
            f"adversary.observers: '{beyond[0]}' saw more than global models; of a run that fedsim did not "
            "make only 'participant' and 'outsider' can be scored"
        )
    if settings.active:
        raise InputError(f"adversary.active = '{settings.active}': what was done is done; leave it out")
    if scenario.model.pretrain is not None:
        raise InputError("model.pretrain: w_0 is the one that was saved, or a fresh one; leave it out")
    if scenario.games != 1:
        raise InputError(f"games = {scenario.games}: models of another software are one game; leave it out")


def _records(scenario: Scenario, members: str, key: str | None) -> tuple[Encoded, np.ndarray]:
    """Return the distinct records and which of them were trained on; a record is if any of its copies was."""
    given = table.read(scenario.data)
    member, strangers = members_of(given, scenario.data, members, key)
    keys = [name for name in (key, members) if name is not None and name in given.frame]
    encoded = as_they_stand(given, scenario.data, keys)
    # Copies are one record: members come first, so that the first of its copies decides.
    order = np.argsort(~member, kind="stable")
    numbered = dataclasses.replace(encoded.take(order), person=order.astype(object))
    first = np.sort(deduplicate(numbered).person.astype(np.int64))  # type: ignore[union-attr]
    notices = []
    if len(first) < len(encoded):
        notices.append(f"{len(encoded) - len(first)} records that repeat another were removed")
    if strangers:
        notices.append(f"{strangers} of the members named are no record of the table and are not asked about")
    encoded = encoded.take(first)
    return dataclasses.replace(encoded, notices=(*encoded.notices, *notices)), member[first]


def _models(
    scenario: Scenario, encoded: Encoded, place: Path, described: bool
) -> tuple[dict[int, Path], dict[int, Weights], Weights | None]:
    """Return files and weights by round, and a fresh w_0 where shadows need one and it was not saved."""
    last = scenario.federation.rounds if described else 1
    files = saved.round_files(place, last)
    if max(files) < 1:
        raise InputError(f"--models {place}: w_0 has seen no record; bring a model of a later round as well")
    if described and max(files) > last:
        raise InputError(
            f"federation.rounds = {last}, and {files[max(files)]} is of round {max(files)}; correct one"
        )
    module = zoo.build(scenario.model, encoded.features.shape[1:], len(encoded.classes))
    read = {t: saved.read_weights(file, module) for t, file in files.items()}
    return files, read, None if 0 in read else weights_of(module)


def _insider_and_owner(encoded: Encoded, seed: int, known: float) -> dict[str, np.ndarray]:
    """Deal a share of the records, of persons where there are some, to the insider, the rest to the owner."""
    units, first = units_of(encoded)
    drawn = rng.generator(seed, "insider").permutation(len(first))[: round(known * len(first))]
    inside = np.isin(units, drawn)
    return {INSIDER: np.flatnonzero(inside), OWNER: np.flatnonzero(~inside)}


def _by_party(encoded: Encoded) -> dict[str, np.ndarray]:
    assert encoded.party is not None
    if any(name is None for name in encoded.party):
        raise InputError(f"{encoded.name}: a record names no party; drop it or name one")
    names = sorted(set(encoded.party))
    if len(names) < 2:
        raise InputError(
            f"{encoded.name} names one party, '{names[0]}'; leave the party out for a model of one owner"
        )
    return {shown(name): np.flatnonzero(encoded.party == name) for name in names}


def _filled_in(scenario: Scenario, parties: int, rounds: int, adversary: str, one: bool) -> Scenario:
    """Return the scenario with what the models and the table say."""
    federation = scenario.federation.model_copy(update={"rounds": max(rounds, scenario.federation.rounds)})
    if "rounds" not in scenario.federation.model_fields_set:
        federation = federation.model_copy(update={"rounds": rounds})
    knows = scenario.adversary.knows_party
    filled_in = {"party": adversary, "knows_party": False if one else True if knows is None else knows}
    return scenario.model_copy(
        update={
            "federation": federation,
            "parties": scenario.parties.model_copy(update={"count": parties}),
            "adversary": scenario.adversary.model_copy(update=filled_in),
        }
    )


def _attacks(
    scenario: Scenario, weights: Mapping[int, Weights], described: bool, one: bool
) -> tuple[list[Attack], dict[str, str]]:
    """Return the attacks that can be run, and of the others why not.

    Raises:
        InputError: one of the others was named, or none is left.
    """
    wanted, left_out = [], {}
    for attack in registry.attacks_of(scenario):
        obstacle = _obstacle(attack, weights, described, one)
        if not obstacle:
            wanted.append(attack)
        elif attack.name in scenario.adversary.attacks:
            raise InputError(f"attack '{attack.name}': {obstacle}")
        else:
            left_out[attack.name] = obstacle
    return wanted, left_out


def _obstacle(attack: Attack, weights: Mapping[int, Weights], described: bool, one: bool) -> str:
    """Return why an attack cannot be run on these models, '' where it can."""
    if attack.assumes == PULLED and not any(t + 1 in weights for t in weights):
        return NO_STEP
    if attack.simulates and one:
        return ALONE
    if (attack.shadows or attack.simulates) and not described:
        return UNDESCRIBED
    if attack.simulates and not {0, 1} <= set(weights):
        return NO_START
    return ""


def _asking_for(scenario: Scenario, attacks: list[Attack]) -> Scenario:
    """Return the scenario that names these attacks, so that they are the ones repeated later."""
    names = {"attacks": [attack.origin or attack.name for attack in attacks]}
    return scenario.model_copy(update={"adversary": scenario.adversary.model_copy(update=names)})


def _assumed(
    scenario: Scenario, rows: Mapping[str, np.ndarray], one: bool, described: bool, fresh: bool
) -> list[str]:
    """Return what a person should know of where the models come from, and of what is assumed."""
    notices = ["The models were not trained by fedsim; who was trained on is as --members says."]
    if one:
        n, all_records = len(rows[INSIDER]), sum(map(len, rows.values()))
        notices.append(
            f"The adversary is an insider who knows of {n} of {all_records} records, drawn at random, "
            "whether they were trained on; it asks about the others."
        )
    if described and fresh:
        notices.append("w_0 was not saved: simulated trainings begin at a fresh initialisation.")
    if not described:
        notices.append(
            "No --scenario describes the training: attacks that simulate it are left out, and those on "
            "updates take the default learning rate and batch."
        )
    if scenario.dp:
        notices.append("ε is that of the DP-SGD which the scenario describes; models do not show it.")
    return notices


def _doubt(
    scenario: Scenario, encoded: Encoded, member: np.ndarray, weights: Mapping[int, Weights]
) -> list[str]:
    """Return a warning where the last model knows less of its own training records than their classes do."""
    trained = encoded.records(member)
    module = zoo.build(scenario.model, encoded.features.shape[1:], len(encoded.classes))
    load_weights(module, weights[max(weights)])
    accuracy = metrics.evaluate(module, trained)["accuracy"]
    constant = np.bincount(trained.labels).max() / len(trained)
    if accuracy >= constant:
        return []
    return [
        f"The last model is right on {accuracy:.1%} of its own training records; always naming the most "
        f"frequent class is on {constant:.1%}: are the columns in the training's order and scale, and the "
        "classes in that of its outputs?"
    ]
