"""A tiny federation in plain torch: the attacks need nothing else of the program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch

from attacks.observer import ParticipantView, PublicSettings, Weights
from fedsim import models
from fedsim.data.records import Records
from fedsim.scenario import ModelSettings, TrainingSettings

# A first call that imports a package, or a busy machine, is no failure of a property.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


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
    return models.weights(models.build(settings.model, settings.input_shape, settings.classes, seed=1))


def train(settings: PublicSettings, weights: Weights, records: Records, epochs: int, lr: float) -> Weights:
    """Full-batch gradient descent from ``weights``."""
    module = models.build(settings.model, settings.input_shape, settings.classes)
    models.load_weights(module, weights)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    features, labels = torch.tensor(records.features), torch.tensor(records.labels)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(features), labels).backward()
        optimizer.step()
    return models.weights(module)


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


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def records() -> Callable[..., Records]:
    return noise


@pytest.fixture(scope="session")
def overfitted() -> Federation:
    """Three parties that learnt their records by heart."""
    return federate(rounds=12, epochs=60, lr=0.5)


@pytest.fixture(scope="session")
def early() -> Federation:
    """A federation of few short rounds, of which the last loss tells little yet and the steps tell all."""
    return federate(rounds=10, epochs=1, lr=0.05)


@pytest.fixture
def untrained(overfitted: Federation) -> ParticipantView:
    """The same view of models that never saw a record."""
    view = overfitted.view
    never = initial(view.settings)
    return ParticipantView(view.settings, {0: never, 1: never}, {}, view.own_train, view.own_heldout)


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Run a program in a new interpreter and return what it printed."""

    def run(program: str) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return done.stdout

    return run
