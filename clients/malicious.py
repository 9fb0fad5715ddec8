"""The adversary inside the federation: an ordinary participant that also keeps what it is sent.

It trains and answers as the protocol asks, writes every global model it receives and every update it
sends to its own disk, and after the last round runs its attacks from that view alone (DESIGN §5). Its
process is never given a membership bit of another party.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from attacks import observer, shadow, simulation, suite
from clients import messages, participant
from clients.party import Party
from fedsim import privacy
from fedsim.data.records import Pool
from fedsim.data.store import read_auxiliary


def introduce(party: Party, context: Context) -> RecordDict:
    """Introduce itself like anyone else, and open its notebook."""
    observer.record_settings(
        _notebook(party),
        _public_settings(party),
        party.records.train,
        party.records.heldout,
        party.scenario.adversary,
        read_auxiliary(party.folder),
    )
    return participant.introduce(party, context)


def _public_settings(party: Party) -> observer.PublicSettings:
    scenario = party.scenario
    federation, parties = scenario.federation, len(party.sizes)
    return observer.PublicSettings(
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
        own=party.partition,
    )


def _privacy(party: Party, partition: int) -> privacy.Plan | None:
    """Return what party ``partition`` plans: it follows from public settings and its public size.

    When it would stop training is its own affair; the adversary expects it to take part to the end.
    """
    settings = party.scenario.dp_of(party.names[partition])
    if settings is None:
        return None
    rounds = party.scenario.federation.rounds
    plan = privacy.plan(settings, party.scenario.training, party.sizes[partition], rounds)
    return dataclasses.replace(plan, budget=plan.epsilon)


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Keep the model it was sent, train as asked, keep its own answer."""
    round = messages.server_round(message)
    observer.record_model(_notebook(party), round - 1, messages.global_model(message))
    answer = participant.train(party, message, context)
    if "arrays" in answer:
        reply = messages.to_numpy(answer.array_records["arrays"])
        observer.record_reply(_notebook(party), round, reply)
    return answer


def evaluate(party: Party, message: Message) -> RecordDict:
    """Keep the model it was sent, evaluate as asked."""
    round = messages.server_round(message)
    observer.record_model(_notebook(party), round, messages.global_model(message))
    return participant.evaluate(party, message)


def attack(party: Party, message: Message) -> RecordDict:
    """Run the attacks on the candidates of the message; answer scores and thresholds."""
    candidates = Pool.from_arrays(messages.to_numpy(message.content.array_records["candidates"]))
    observer.record_candidates(_notebook(party), candidates)
    view = observer.load_view(_notebook(party))
    scenario = party.scenario
    laboratory = simulation.Laboratory(
        workers=messages.workers(message),
        cache=shadow.cache_folder(),
        progress=observer.progress_note(_notebook(party)),
    )
    findings = suite.run(
        view, candidates.records, scenario.adversary.attacks, scenario.seed, party.game, laboratory
    )
    scores = {name: finding.scores for name, finding in findings.items()}
    thresholds = {name: finding.threshold for name, finding in findings.items()}
    return RecordDict({"scores": messages.to_arrays(scores), "thresholds": messages.metrics(thresholds)})


def _notebook(party: Party) -> Path:
    if party.observations is None:
        raise PermissionError(f"{party.name} is an honest party; it keeps nothing and attacks no one")
    return party.observations
