"""A tiny federation in plain torch: the attacks need nothing else of the program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings, Weights
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


@dataclass(frozen=True)
class Federation:
    """The view of party 0, and what only an evaluation may know."""

    view: ParticipantView
    candidates: Records
    member: np.ndarray  # (n,) bool
    party: np.ndarray  # (n,) of int


def noise(stream: np.random.Generator, n: int, dimension: int = 10, classes: int = 2) -> Records:
    """Records whose labels can only be learnt by heart."""
    features = stream.normal(size=(n, dimension)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def initial(settings: PublicSettings) -> Weights:
    return weights_of(zoo.build(settings.model, settings.input_shape, settings.classes, seed=1))


def train(settings: PublicSettings, weights: Weights, records: Records, epochs: int, lr: float) -> Weights:
    """Full-batch gradient descent from ``weights``."""
    module = zoo.build(settings.model, settings.input_shape, settings.classes)
    load_weights(module, weights)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    features, labels = torch.tensor(records.features), torch.tensor(records.labels)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(features), labels).backward()
        optimizer.step()
    return weights_of(module)


def federate(rounds: int, epochs: int, lr: float, parties: int = 3, members: int = 20) -> Federation:
    stream = np.random.default_rng(0)
    model, shape = ModelSettings(name="mlp", hidden=[64, 64]), (40,)
    settings = PublicSettings(model, shape, 10, rounds, parties, parties, TrainingSettings(), "fedavg")
    trains = [noise(stream, members, 40, 10) for _ in range(parties)]
    heldouts = [noise(stream, members, 40, 10) for _ in range(parties)]
    seen, replies = {0: initial(settings)}, {}
    for t in range(1, rounds + 1):
        answers = [train(settings, seen[t - 1], records, epochs, lr) for records in trains]
        replies[t] = answers[0]
        seen[t] = {name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]}
    view = ParticipantView(settings, seen, replies, trains[0], heldouts[0])
    victims = Records.concatenate([*trains[1:], *heldouts[1:]])
    party = np.tile(np.repeat(np.arange(1, parties), members), 2)
    return Federation(view, victims, np.arange(len(victims)) < len(victims) // 2, party)
