"""The adversary inside the federation: an ordinary participant that also keeps what it is sent.

It trains and answers as the protocol asks, writes every global model it receives and every update it
sends to its own disk, and after the last round runs its attacks from that view alone (DESIGN §5). Its
process is never given a membership bit of another party.

Where the scenario makes it active it deviates in one of two ways (`attacks.deviation`): it poisons its own
training records, or it adds a step up the targets' loss to its answer. All else is as before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from attacks import deviation, execution, registry
from attacks.execution import Task
from attacks.shadows import cache
from attacks.shadows.suite import Laboratory, path_of
from attacks.views import observations
from attacks.views.settings import PublicSettings, Weights
from attacks.views.worlds import in_world, record_worlds
from clients import messages, participant
from clients.party import Party
from fedsim.core import rng
from fedsim.core.cluster import on_cluster
from fedsim.core.data import text, worlds
from fedsim.core.data.records import Pool, Records
from fedsim.core.data.store import AUXILIARY, TARGETS, read_pool
from fedsim.core.errors import FedsimError
from fedsim.core.privacy.plan import Plan, make_plan


def introduce(party: Party, context: Context) -> RecordDict:
    """Introduce itself like anyone else, and open its notebook."""
    trained_on = _with_poison(party)
    observations.record_settings(
        _notebook(party),
        _public_settings(trained_on),
        party.records,
        party.scenario.adversary,
        read_pool(party.folder, AUXILIARY),
    )
    if party.scenario.adversary.active == "poisoning":
        observations.record_poison(_notebook(party), _poison(party))
    if party.scenario.adversary.active == "gradient-ascent":
        observations.record_raised(_notebook(party), _ascent_targets(party))
    return participant.introduce(trained_on, context)


def _public_settings(party: Party) -> PublicSettings:
    scenario = party.scenario
    federation, parties = scenario.federation, len(party.sizes)
    return PublicSettings(
        model=scenario.model,
        input_shape=party.records.train.shape,
        classes=party.classes,
        rounds=federation.rounds,
        parties=parties,
        participants=federation.participants(parties),
        training=scenario.training,
        strategy=federation.strategy,
        options=dict(federation.options),
        sizes=party.sizes,
        privacy=tuple(_privacy(party, k) for k in range(parties)),
        defences=tuple(scenario.defence_of(name) for name in party.names),
        central_dp=federation.central_dp,
        own=party.partition,
        vocabulary=text.read_document(party.folder),
    )


def _privacy(party: Party, partition: int) -> Plan | None:
    """Return what party ``partition`` plans: it follows from public settings and its public size.

    When it would stop training is its own affair; the adversary expects it to take part to the end.
    """
    scenario, name = party.scenario, party.names[partition]
    settings = scenario.dp_of(name)
    if settings is None:
        return None
    rounds = scenario.federation.rounds
    plan = make_plan(settings, scenario.training_of(name), party.units(partition), rounds)
    return dataclasses.replace(plan, budget=plan.epsilon)


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Keep the model it was sent, train as asked, ascend if it is to, keep its own answer."""
    round = messages.server_round(message)
    observations.record_model(_notebook(party), round - 1, messages.global_model(message))
    answer = participant.train(_with_poison(party), message, context)
    if "arrays" in answer:
        act = _ascended if _ascends(party, round) else _separating if _separates(party) else None
        if act:
            sent = messages.global_model(message)
            answer["arrays"] = act(party, round, sent, messages.arrays_in(answer))
        reply = messages.to_numpy(messages.arrays_in(answer))
        observations.record_reply(_notebook(party), round, reply)
    return answer


def _with_poison(party: Party) -> Party:
    """Return the party as it trains: the poison counts among its records, in its public size as well."""
    if party.scenario.adversary.active != "poisoning":
        return party
    poison, records = _poison(party), party.records
    train, person = Records.concatenate([records.train, poison]), records.train_person
    sizes = tuple(len(train) if k == party.partition else n for k, n in enumerate(party.sizes))
    if person is not None:  # a mislabelled copy poses as a person of its own
        person = np.concatenate([person, -1 - np.arange(len(poison))])
    poisoned = dataclasses.replace(records, train=train, train_person=person)
    return dataclasses.replace(party, records=poisoned, sizes=sizes)


def _poison(party: Party) -> Records:
    """Return the mislabelled copies, the same whenever it is asked."""
    targets, copies = read_pool(party.folder, TARGETS).records, party.scenario.adversary.poison_copies
    stream = rng.generator(party.scenario.seed, "poison", game=party.game, party=party.name)
    return deviation.poison(targets, copies, party.classes, stream)


def _ascends(party: Party, round: int) -> bool:
    adversary, rounds = party.scenario.adversary, party.scenario.federation.rounds
    return adversary.active == "gradient-ascent" and round in deviation.ascent_rounds(adversary, rounds)


def _ascent_targets(party: Party) -> Records:
    """Return the targets and as many records of its own, of both sides.

    Its own have to be pushed like the targets, so that a threshold set on them holds for the targets.
    """
    targets, own = read_pool(party.folder, TARGETS).records, party.records
    rows = np.arange(len(targets) - len(targets) // 2)
    sides = [side.take(rows[: len(side)]) for side in (own.train, own.heldout)]
    return Records.concatenate([targets, *sides])


def _ascended(party: Party, round: int, sent: Weights, arrays: ArrayRecord) -> ArrayRecord:
    """Add the ascent to the answer, whose weights the party's module still has, and keep a note of it."""
    honest, settings = messages.to_numpy(arrays), party.scenario.adversary
    step = deviation.ascent(party.module, _ascent_targets(party), settings.ascent_rate)
    learnt = deviation.length({name: array - sent[name] for name, array in honest.items()})
    step = deviation.shortened(step, settings.ascent_limit * learnt)
    observations.record_ascent(_notebook(party), round, step)
    return messages.to_arrays({name: array + step.get(name, 0) for name, array in honest.items()})


def _separates(party: Party) -> bool:
    return party.scenario.adversary.active == "separation"


def _separating(party: Party, round: int, sent: Weights, arrays: ArrayRecord) -> ArrayRecord:
    """Move the answer to where the next round should show the targets, within the budget, and keep a note."""
    honest, settings, own = messages.to_numpy(arrays), party.scenario.adversary, party.records
    learnt = {name: array - sent[name] for name, array in honest.items()}
    share = len(own.train) / sum(party.sizes)
    targets = read_pool(party.folder, TARGETS).records
    sample = own.train.take(np.arange(min(len(own.train), deviation.OWN_SAMPLE)))
    step = deviation.separation(
        party.module, targets, sample, share, settings.ascent_limit * deviation.length(learnt)
    )
    step = deviation.within_budget(step, learnt, settings.least_cosine, _keeps_utility(party))
    observations.record_ascent(_notebook(party), round, step)
    return messages.to_arrays({name: array + step.get(name, 0) for name, array in honest.items()})


def _keeps_utility(party: Party) -> Callable[[Weights], bool]:
    """Return what tells whether a step from the module's weights keeps the loss of its held-out records."""
    own = party.records.heldout if len(party.records.heldout) else party.records.train
    honest = deviation.loss_after(party.module, {}, own)
    most = honest + party.scenario.adversary.most_loss
    return lambda step: deviation.loss_after(party.module, step, own) <= most


def evaluate(party: Party, message: Message) -> RecordDict:
    """Keep the model it was sent, evaluate as asked."""
    round = messages.server_round(message)
    observations.record_model(_notebook(party), round, messages.global_model(message))
    return participant.evaluate(party, message)


def attack(party: Party, message: Message, cluster: str | None = None) -> RecordDict:
    """Run the attacks on the candidates of the message; answer scores, thresholds, and what could not run.

    cluster: address of the Ray cluster on which shadows are trained, None for this machine

    Raises:
        FedsimError: no attack could be run.
    """
    content, notebook = message.content, _notebook(party)
    candidates = Pool.from_arrays(messages.to_numpy(messages.arrays_in(content, "candidates")))
    owned = worlds.from_arrays(messages.to_numpy(messages.arrays_in(content, "worlds")))
    observations.record_candidates(notebook, candidates)
    record_worlds(notebook, owned)
    view = observations.load_view(notebook)
    laboratory = Laboratory(
        workers=messages.workers(message),
        cache=cache.cache_folder(),
        progress=observations.progress_note(notebook),
        cluster=cluster,
    )
    attacks = [entry for entry in registry.attacks_of(party.scenario) if entry.infers == "membership"]
    results, seconds = {}, {}
    with on_cluster(cluster):
        for name, world in owned.items():
            started = time.monotonic()
            task = Task(candidates.records.take(world.asked), party.scenario.seed, party.game, laboratory)
            mounted = [attack for attack in attacks if registry.owned_in(name, attack)]
            results[name] = execution.run(
                "participant", in_world(view, candidates, name, world), mounted, task
            )
            seconds[name] = round(time.monotonic() - started, 3)
    return _answer(results, seconds, path_of(view))


def _answer(results: dict[str, execution.Results], seconds: dict[str, float], path: str) -> RecordDict:
    """Return scores, thresholds and what could not be run, by 'world/attack', and seconds by world.

    path: how shadows were trained

    Raises:
        FedsimError: no attack could be run in any world.
    """
    found = {
        f"{world}/{name}": one for world, all_of in results.items() for name, one in all_of.findings.items()
    }
    not_run = {
        f"{world}/{name}": reason
        for world, all_of in results.items()
        for name, reason in all_of.not_run.items()
    }
    if not found:
        raise FedsimError(f"no attack could be run: {next(iter(not_run.values()))}")
    return RecordDict(
        {
            "scores": messages.to_arrays({key: finding.scores for key, finding in found.items()}),
            "thresholds": messages.metrics({key: finding.threshold for key, finding in found.items()}),
            "not-run": ConfigRecord(dict(not_run)),
            "seconds": messages.metrics(seconds),
            "shadows": ConfigRecord({"path": path}),
            "by-round": messages.to_arrays(
                {
                    f"{t} {name}": scores
                    for name, rounds in next(iter(results.values())).by_round.items()
                    for t, scores in rounds.items()
                }
            ),
        }
    )


def _notebook(party: Party) -> Path:
    if party.observations is None:
        raise PermissionError(f"{party.name} is an honest party; it keeps nothing and attacks no one")
    return party.observations
