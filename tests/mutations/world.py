"""A party, its messages and its records, small enough that every check of every bug can have them anew."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.engines import flower_internals  # before any other import of flwr

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict  # isort: skip

from clients import messages, participant
from clients.party import Party
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords
from fedsim.core.models import weights
from fedsim.core.models.layers import linear_stack
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import Gradients, LocalTraining, TrainingReport

FEATURES, CLASSES = 10, 3

# Neither C, nor the expected batch, nor the learning rate is 1: a factor that is missing shows.
PLAN = Plan(
    sample_rate=1.0,
    expected_batch=12.0,
    steps_per_round=1,
    noise_multiplier=1.3,
    rounds=3,
    delta=1e-5,
    clipping_norm=0.5,
    accountant="prv",
    epsilon=8.0,
    budget=8.0,
)
LR = 0.4


def some_records(n: int = 12) -> Records:
    """Records of which the first has a gradient some hundred times as large as the others."""
    stream = np.random.default_rng(0)
    features = stream.normal(size=(n, FEATURES)).astype(np.float32)
    features[0] *= 300
    return Records(features, stream.integers(0, CLASSES, n))


def module(path: str) -> nn.Module:
    """A small model that DP-SGD trains on ``path``: plain layers of Linear and ReLU, or others."""
    nonlinear = nn.ReLU if path == "written out" else nn.Tanh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Linear(FEATURES, FEATURES), nonlinear(), nn.Linear(FEATURES, FEATURES), nonlinear()]
        built = nn.Sequential(*layers, nn.Linear(FEATURES, CLASSES))
    assert (linear_stack(built) is not None) == (path == "written out")
    return built


# The paths of fedsim.core.training.dp, by the `gradients` that take them, given the module of the path.
PATHS: dict[str, Gradients] = {"written out": "auto", "per-sample": "per-sample", "ghost": "ghost"}


def trained(
    path: str, start: nn.Module, records: Records, plan: Plan, draw: int = 0
) -> tuple[dict[str, np.ndarray], TrainingReport]:
    """What one round of DP-SGD adds to each parameter, and its report; ``draw`` numbers noise and batches."""
    after = copy.deepcopy(start)
    draws = PartyDraws(
        rng.torch_generator(0, "mutations: sampling", round=draw),
        rng.torch_generator(0, "mutations: noise", round=draw),
    )
    local = LocalTraining(TrainingSettings(lr=LR), gradients=PATHS[path])
    report = dp.train_private(after, records, local, plan, draws)
    before = weights.weights_of(start)
    return {name: array - before[name] for name, array in weights.weights_of(after).items()}, report


def a_party(path: str = "written out", name: str = "hospital-1", game: int = 0, **options: object) -> Party:
    """A party with DP-SGD switched on; ``options`` are fields of its DP and training settings.

    One step a round, no rounding of q: 12 records, batches of 12 unless ``batch`` says otherwise.
    """
    training = {"batch": 12, "steps": 1, "lr": LR}
    training |= {key: options.pop(key) for key in list(options) if key in TrainingSettings.model_fields}
    settings = {"clipping_norm": 0.5, "gradients": PATHS[path]} | options
    settings |= {} if "epsilon" in settings else {"noise_multiplier": settings.get("noise_multiplier", 1.3)}
    scenario = Scenario.model_validate(
        {
            "seed": 5,
            "federation": {"rounds": 3},
            "training": training
            | {"private": training},  # what is checked is Poisson sampling, q < 1 included
            "dp": {"all": DPSettings.model_validate(settings)},
        }
    )
    return Party(
        name=name,
        partition=0,
        game=game,
        scenario=scenario,
        records=PartyRecords(name, some_records(), some_records(6)),
        module=module(path),
        classes=CLASSES,
        names=("hospital-1", "hospital-2"),
        sizes=(12, 12),
        folder=Path("/nowhere"),
        observations=None,
    )


def without_dp(party: Party) -> Party:
    return replace(party, scenario=party.scenario.model_copy(update={"dp": {}}))


def a_context() -> Context:
    return Context(1, 2, {"partition-id": 0}, RecordDict(), {})


def one_round(party: Party, context: Context, round: int, start: nn.Module | None = None) -> RecordDict:
    """The party's answer to the weights of ``start``, by default those of its path's own module."""
    flower_internals.assume_identity(1)
    start = start or module("written out")
    content = RecordDict(
        {
            "arrays": messages.to_arrays(weights.weights_of(start)),
            "config": ConfigRecord({"server-round": round}),
        }
    )
    return participant.train(party, Message(content, 2, "train"), context)


def flat_update(answer: RecordDict, start: nn.Module) -> np.ndarray:
    """All parameters of the answer less those of ``start``, as one (p,) vector."""
    sent, before = messages.to_numpy(answer.array_records["arrays"]), weights.weights_of(start)
    return np.concatenate([(sent[name] - before[name]).ravel() for name in before])


def metrics(answer: RecordDict) -> dict[str, float]:
    return messages.numbers(MetricRecord(dict(answer.metric_records["metrics"])))
