"""A party's plan and training, as the audit repeats them."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from fedsim.audit.white_box import Train
from fedsim.core.data.records import Records
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp
from fedsim.core.training.sgd import train as train_openly


def plan_of(scenario: Scenario, party: str, n: int) -> Plan:
    """Return the party's plan; without DP, one that stands for plain training, seen round by round."""
    dp_settings, rounds = scenario.dp_of(party), scenario.federation.rounds
    if dp_settings is not None:
        return make_plan(dp_settings, scenario.training_of(party), n, rounds)
    return Plan(
        sample_rate=1.0,
        expected_batch=float(min(scenario.training.batch, n)),
        steps_per_round=1,
        noise_multiplier=0.0,
        rounds=rounds,
        delta=DPSettings(epsilon=1.0).delta,
        clipping_norm=1.0,
        accountant="prv",
        epsilon=math.inf,
        budget=math.inf,
    )


def training_of(scenario: Scenario, party: str) -> Train:
    """Return a round of the party's training: its own DP-SGD, or plain SGD."""
    dp_settings = scenario.dp_of(party)
    if dp_settings is None:
        return functools.partial(train_openly_as_private, like=scenario.training_of(party))
    train = functools.partial(dp.train_private, gradients=dp_settings.gradients, device=scenario.device)
    return functools.partial(from_secure_source, train=train) if dp_settings.secure else train


def train_openly_as_private(
    module: torch.nn.Module,
    records: Records,
    settings: TrainingSettings,
    plan: Plan,
    *,
    sampling: torch.Generator,
    noise: torch.Generator,
    watch: dp.Watch,
    like: TrainingSettings,
) -> None:
    """Train without DP, called as DP-SGD is: ``watch`` sees the first and the last weights."""
    settings = like.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "l2": 0.0, "lr": settings.lr})
    parameters = [p for p in module.parameters() if p.requires_grad]
    watch(parameters, plan.clipping_norm)
    train_openly(module, records, settings, sampling)
    watch(parameters, plan.clipping_norm)


def from_secure_source(*arguments: Any, train: Train, **named: Any) -> Any:
    """Train with batches and noise from the operating system's source."""
    return train(*arguments, **named | {"sampling": None, "noise": None})
