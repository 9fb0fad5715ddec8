"""A party's plan and training, as the audit repeats them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch

from fedsim.audit.white_box import Train
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp, persons, sgd
from fedsim.core.training.draws import Draws, PartyDraws
from fedsim.core.training.steps import Gradients, LocalTraining, TrainingReport


def units(records: PartyRecords, dp_settings: DPSettings | None) -> int:
    """Return the number of training records, or of persons where they are the unit of the party's DP."""
    if dp_settings is None or dp_settings.unit == "record":
        return len(records.train)
    assert records.train_person is not None  # checked before the run was prepared
    return len(np.unique(records.train_person))


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
    if dp_settings.unit == "person":
        return functools.partial(train_persons_as_set, device=scenario.device, secure=dp_settings.secure)
    return functools.partial(
        train_as_set,
        gradients=dp_settings.gradients,
        device=scenario.device,
        secure=dp_settings.secure,
    )


def train_openly_as_private(
    module: torch.nn.Module,
    records: Records,
    local: LocalTraining,
    plan: Plan,
    draws: Draws,
    *,
    watch: dp.Watch,
    like: TrainingSettings,
) -> None:
    """Train without DP, called as DP-SGD is: ``watch`` sees the first and the last weights."""
    settings = like.model_copy(
        update={"optimizer": "sgd", "momentum": 0.0, "l2": 0.0, "lr": local.settings.lr}
    )
    parameters = [p for p in module.parameters() if p.requires_grad]
    watch(parameters, plan.clipping_norm)
    sgd.train(module, records, LocalTraining(settings), draws)
    watch(parameters, plan.clipping_norm)


def train_as_set(
    module: torch.nn.Module,
    records: Records,
    local: LocalTraining,
    plan: Plan,
    draws: Draws,
    *,
    gradients: Gradients,
    device: str,
    secure: bool,
    **named: Any,
) -> TrainingReport:
    """Train with DP on the party's device and path, and where it is 'secure' from the system's source."""
    local = dataclasses.replace(local, gradients=gradients, device=device)
    draws = PartyDraws(None, None) if secure else draws
    return dp.train_private(module, records, local, plan, draws, **named)


def train_persons_as_set(
    module: torch.nn.Module,
    records: Records,
    local: LocalTraining,
    plan: Plan,
    draws: Draws,
    *,
    person: np.ndarray,
    device: str,
    secure: bool,
    **named: Any,
) -> TrainingReport:
    """Train with DP whose unit is a person, as `train_as_set` does."""
    local = dataclasses.replace(local, device=device)
    draws = PartyDraws(None, None) if secure else draws
    return persons.train_by_person(module, records, person, local, plan, draws, **named)
