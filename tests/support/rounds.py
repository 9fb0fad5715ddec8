"""A small federation whose parties train as `attacks.shadows` has it, and what its participant sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from attacks.rounds.party_rounds import MemberSets, simulate
from attacks.shadows.suite import federation_plan
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings, Weights
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

SIZE, PARTIES = 16, 3


@dataclass(frozen=True)
class World:
    """The view of party 0, its candidates, and who of them is a member: half of all members are unknown."""

    view: ParticipantView
    candidates: Records
    member: np.ndarray


def dp(noise: float, size: int = SIZE, clipping_norm: float = 4.0) -> Plan:
    return Plan(
        sample_rate=0.5, expected_batch=size / 2, steps_per_round=4, noise_multiplier=noise, rounds=2,
        delta=1e-5, clipping_norm=clipping_norm, accountant="rdp", epsilon=1.0, budget=float("inf"),
    )  # fmt: skip


def records(stream: np.random.Generator, n: int, dimension: int = 12, classes: int = 4) -> Records:
    """Records whose labels can only be learnt by heart."""
    features = stream.normal(size=(n, dimension)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def world(
    seed: int = 0,
    *,
    training: TrainingSettings | None = None,
    privacy: Plan | None = None,
    strategy: str = "fedavg",
    participants: int = PARTIES,
    told: bool = False,
    learns: bool = True,
) -> World:
    """Two rounds of three parties; learns: whether the others train on the members, or on other records."""
    stream = np.random.default_rng(seed)
    pool = records(stream, 2 * SIZE * PARTIES)
    settings = PublicSettings(
        ModelSettings(name="mlp", hidden=[16]), (12,), 4, 2, PARTIES, participants,
        training or TrainingSettings(lr=0.2, batch=4, epochs=4), strategy,
        sizes=(SIZE,) * PARTIES, privacy=(privacy,) * PARTIES,
    )  # fmt: skip
    dealt = stream.permutation(len(pool)).reshape(PARTIES, 2 * SIZE)
    trains, heldouts = dealt[:, :SIZE], dealt[:, SIZE:]
    trained_on = trains if learns else np.stack([trains[0], *heldouts[1:]])
    if not learns:  # records that are no candidates at all
        pool = Records.concatenate([pool, records(stream, SIZE * PARTIES)])
        fresh = 2 * SIZE * PARTIES + np.arange(SIZE * PARTIES).reshape(PARTIES, SIZE)
        trained_on = np.concatenate([trains[:1], fresh[1:]])
    start = weights_of(zoo.build(settings.model, settings.input_shape, settings.classes, seed=1))
    models, replies = _federate(settings, start, pool, trained_on, participants)
    half = stream.permutation(np.concatenate([trains[1:].ravel(), heldouts[1:].ravel()]))[: SIZE * 2]
    party = np.array([np.flatnonzero((dealt == row).any(axis=1))[0] for row in half])
    view = ParticipantView(
        settings, models, replies, pool.take(trains[0]), pool.take(heldouts[0]),
        AdversarySettings(candidates=2 * SIZE), candidate_party=party if told else np.full(len(half), -1),
    )  # fmt: skip
    return World(view, pool.take(half), np.isin(half, trains[1:]))


def _federate(
    settings: PublicSettings, start: Weights, pool: Records, trained_on: np.ndarray, participants: int
) -> tuple[dict[int, Weights], dict[int, Weights]]:
    """FedAvg of parties 0, …, participants − 1 by true party-rounds."""
    bare = replace(settings, strategy="fedavg", participants=settings.parties)
    plan = federation_plan(ParticipantView(bare, {0: start}, {}, pool, pool), settings.rounds)
    models, replies = {0: start}, {}
    for t in range(1, settings.rounds + 1):
        who = np.arange(participants)
        sets = MemberSets(who, trained_on[who], 100 * t + who)
        updates = simulate(plan, models[t - 1], pool, sets, seed=5) * settings.parties
        replies[t] = added(models[t - 1], updates[0])
        models[t] = added(models[t - 1], updates.mean(axis=0))
    return models, replies


def added(weights: Weights, update: np.ndarray) -> Weights:
    """w + Δ, Δ (p,) in the order of the names."""
    pieces = np.split(update, np.cumsum([array.size for array in weights.values()])[:-1])
    return {
        name: (array + piece.reshape(array.shape)).astype(np.float32)
        for (name, array), piece in zip(weights.items(), pieces, strict=True)
    }


def with_batch_norm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A module whose records meet in a batch: it cannot be stacked."""
    return nn.Sequential(nn.Linear(*shape, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))
